"""Weights of diffusers' UNet2DModel under this package's names; diffusers itself is not imported.

    network = UNetConfig().build((3, 32, 32))
    network.load_state_dict(from_diffusers_state(load_file("diffusion_pytorch_model.safetensors"), UNetConfig()))

The same network is, there: `DownBlock2D` / `AttnDownBlock2D` and their mirror images, `downsample_padding=0`, `flip_sin_to_cos=False`,
`freq_shift=1`, `norm_eps=1e-6`, one head (`attention_head_dim=None`); `resnet_time_scale_shift="scale_shift"` is `film=True`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ddpm.errors import CheckpointError, ConfigError
from ddpm.networks.config import UNetConfig

BLOCK = {"norm1": "norm1", "conv1": "conv1", "project": "time_emb_proj", "norm2": "norm2", "conv2": "conv2", "shortcut": "conv_shortcut"}
ATTENTION = {"norm": "group_norm", "proj": "to_out.0"}
QKV = ("to_q", "to_k", "to_v")
OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # names in files written before 2023


def from_diffusers_state(state_dict: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """The state of `config.build(...)` holding the weights of a UNet2DModel's `state_dict`; query, key and value become one matrix.

    Raises CheckpointError naming the weights that are missing or left over, and ConfigError for settings without a counterpart there.
    """
    if config.resample != "conv":
        raise ConfigError(f"resample: got {config.resample!r}; only 'conv' has a counterpart in UNet2DModel's plain blocks")
    source = {_modern(name): value for name, value in state_dict.items()}
    result: dict[str, Tensor] = {}
    missing: list[str] = []

    def take(*theirs: str) -> Tensor | None:
        missing.extend(name for name in theirs if name not in source)
        found = [source.pop(name) for name in theirs if name in source]
        return torch.cat(found) if len(found) == len(theirs) else None

    for ours, theirs in _modules(config):
        for kind in ("weight", "bias"):
            if ours.endswith("shortcut") and f"{theirs[0]}.{kind}" not in source:
                continue  # a block that keeps its channels has none
            if (value := take(*(f"{name}.{kind}" for name in theirs))) is not None:
                result[f"{ours}.{kind}"] = value
    if missing or source:
        raise CheckpointError(
            f"These weights are not of a UNet2DModel with {config}: {len(missing)} missing ({_few(missing)}), "
            f"{len(source)} left over ({_few(sorted(source))}). Set channels, mults, blocks and attention to those of its config.json"
        )
    return result


def _modules(config: UNetConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each module with weights: our name, and the names of those there that make it up."""
    top = len(config.mults) - 1
    yield from {
        "embed.time_in": ("time_embedding.linear_1",),
        "embed.time_out": ("time_embedding.linear_2",),
        "stem": ("conv_in",),
        "norm": ("conv_norm_out",),
        "head": ("conv_out",),
    }.items()
    for level in range(top + 1):
        for way, theirs, count in (("down", f"down_blocks.{level}", config.blocks), ("up", f"up_blocks.{top - level}", config.blocks + 1)):
            for index in range(count):
                yield from _block(f"{way}.{level}.blocks.{index}", f"{theirs}.resnets.{index}")
                if level in config.attention:
                    yield from _attention(f"{way}.{level}.attention.{index}", f"{theirs}.attentions.{index}")
        if level < top:
            yield f"down.{level}.resample.conv", (f"down_blocks.{level}.downsamplers.0.conv",)
        if level > 0:
            yield f"up.{level}.resample.conv", (f"up_blocks.{top - level}.upsamplers.0.conv",)
    yield from _block("middle.first", "mid_block.resnets.0")
    yield from _attention("middle.attention", "mid_block.attentions.0")
    yield from _block("middle.second", "mid_block.resnets.1")


def _block(ours: str, theirs: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for mine, its in BLOCK.items():
        yield f"{ours}.{mine}", (f"{theirs}.{its}",)


def _attention(ours: str, theirs: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for mine, its in ATTENTION.items():
        yield f"{ours}.{mine}", (f"{theirs}.{its}",)
    yield f"{ours}.qkv", tuple(f"{theirs}.{name}" for name in QKV)


def _modern(name: str) -> str:
    """The name with the attention's parts called as they are today."""
    head, _, kind = name.rpartition(".")
    before, _, last = head.rpartition(".")
    return f"{before}.{OLD[last]}.{kind}" if ".attentions." in name and last in OLD else name


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "none"
