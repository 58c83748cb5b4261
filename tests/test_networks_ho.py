"""The network of Ho et al. 2020: its size, and equality with diffusers' UNet2DModel, an independent implementation of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from ddpm.errors import CheckpointError, ConfigError
from ddpm.interop.diffusers_unet import from_diffusers_state
from ddpm.networks import UNetConfig
from ddpm.networks.blocks import Attention, reference

CIFAR: dict[str, Any] = {  # the configuration of google/ddpm-cifar10-32
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "center_input_sample": False,
}
SMALL: dict[str, Any] = {
    **CIFAR,
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
TINY = UNetConfig(channels=32, mults=(1, 2), blocks=1, groups=8)


def test_the_defaults_are_the_cifar10_network_of_35746307_parameters() -> None:
    network = UNetConfig().build((3, 32, 32))
    assert sum(value.numel() for value in network.parameters()) == 35_746_307
    with_attention = {name.rpartition(".")[0] for name, part in network.named_modules() if isinstance(part, Attention)}
    assert with_attention == {"down.1.attention", "middle", "up.1.attention"}
    assert sum(isinstance(part, Attention) for part in network.modules()) == 2 + 1 + 3
    assert network.middle.attention.heads == 1
    assert all(part.num_groups == 32 and part.eps == 1e-6 for part in network.modules() if isinstance(part, torch.nn.GroupNorm))


def compare(config: UNetConfig, there: dict[str, Any], size: tuple[int, int], outputs: float, gradients: float) -> None:
    """Both networks at the same random weights: outputs, and gradients of a mean square, each relative to its largest entry."""
    diffusers = pytest.importorskip("diffusers", reason="needs pip install 'ddpm[diffusers]'")
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(**there).eval()
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "norm" in name or name.endswith("bias"):
                value.add_(0.1 * torch.randn_like(value))  # their start, 1 and 0, would hide a mix-up
    ours = config.build((3, *size)).eval()
    ours.load_state_dict(from_diffusers_state(theirs.state_dict(), config))
    x, times, target = torch.randn(2, 3, *size), torch.tensor([3.0, 987.0]), torch.randn(2, 3, *size)
    expected = theirs(x, times).sample
    (expected - target).square().mean().backward()
    wanted = from_diffusers_state({name: value.grad for name, value in theirs.named_parameters()}, config)
    scale = max(value.abs().max() for value in wanted.values())
    result = ours(x, times)
    assert expected.abs().max() > 0.1
    assert (result - expected).abs().max() < outputs
    (result - target).square().mean().backward()
    for name, value in ours.named_parameters():
        assert value.grad is not None
        if name.endswith("qkv.bias"):  # the middle third, the keys' bias, cancels in the softmax
            assert (value.grad - wanted[name]).abs().max() < gradients * scale, name
        else:
            assert (value.grad - wanted[name]).abs().max() < gradients * wanted[name].abs().max(), name
    with torch.no_grad(), reference(ours):
        assert (ours(x, times) - expected).abs().max() < outputs


def test_output_and_gradients_equal_diffusers() -> None:
    compare(UNetConfig(), CIFAR, (32, 32), outputs=1e-5, gradients=1e-4)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"film": True}, {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8}),
        ({"head_channels": 8}, {"attention_head_dim": 8}),
        ({"blocks": 2}, {"layers_per_block": 2}),
    ],
    ids=["plain", "film", "heads", "blocks"],
)
def test_options_equal_diffusers_too(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    compare(dataclasses.replace(TINY, **ours), {**SMALL, **theirs}, (8, 16), outputs=1e-5, gradients=1e-4)


def state_there() -> dict[str, torch.Tensor]:
    """A state by their names for TINY, made without diffusers."""
    from ddpm.interop.diffusers_unet import _modules

    own = TINY.build((3, 8, 8)).state_dict()
    state: dict[str, torch.Tensor] = {}
    for ours, theirs in _modules(TINY):
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in own:
                for name, part in zip(theirs, torch.randn_like(own[f"{ours}.{kind}"]).chunk(len(theirs)), strict=True):
                    state[f"{name}.{kind}"] = part
    return state


def test_every_weight_has_a_place() -> None:
    state = state_there()
    mapped = from_diffusers_state(state, TINY)
    own = TINY.build((3, 8, 8)).state_dict()
    assert {name: value.shape for name, value in mapped.items()} == {name: value.shape for name, value in own.items()}
    there = [state[f"mid_block.attentions.0.to_{which}.weight"] for which in "qkv"]
    assert torch.equal(mapped["middle.attention.qkv.weight"], torch.cat(there))


def test_attention_names_of_older_files_are_read() -> None:
    state = state_there()
    old = dict(state)
    for today, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        old = {name.replace(today, before): value for name, value in old.items()}
    assert set(old) != set(state)
    one, two = from_diffusers_state(state, TINY), from_diffusers_state(old, TINY)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_weights_of_another_network_are_refused_by_name() -> None:
    state = state_there()
    state["class_embedding.weight"] = state.pop("conv_in.weight")
    with pytest.raises(CheckpointError, match=r"1 missing \(conv_in.weight\), 1 left over \(class_embedding.weight\)"):
        from_diffusers_state(state, TINY)
    with pytest.raises(ConfigError, match="only 'conv' has a counterpart"):
        from_diffusers_state(state, dataclasses.replace(TINY, resample="block"))
