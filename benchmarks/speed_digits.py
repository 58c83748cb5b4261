"""A small network on 1,797 digits of 8x8: whole training runs of this package's trainer, of denoising-diffusion-pytorch's Trainer and of
diffusers' unconditional script, and the time to 64 pictures of equal quality.

The pictures lie in a folder as PNGs, as the peers want them. diffusers' UNet2DModel is this package's network, layer by layer;
denoising-diffusion-pytorch's Unet differs by 3 % in parameters and 1 % in products. All are unconditional, batch 64.
"""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from clock import Action, Part, interleaved, ratio
from digits import frechet
from peers import Pictures, Run, diffusers_run, library, lucid_run
from PIL import Image
from speed_unet import sizes
from torch import nn

from ddpm.config import Layer, resolve
from ddpm.data.digits import handwritten
from ddpm.denoiser import Eps, NetworkDenoiser
from ddpm.interop.diffusers_unet import from_diffusers_state
from ddpm.networks import UNetConfig
from ddpm.process import Linear, LogSNR
from ddpm.sampling import PRESETS, sample
from ddpm.training import FAMILIES, TrainConfig, train
from ddpm.training.recipes import recipe

BATCH, LR = 64, 2e-3
NETWORK = UNetConfig(channels=32, mults=(1, 2), blocks=1, attention=(0, 1), groups=8, dropout=0.0)
SHAPE = (1, 8, 8)
Precision = Literal["auto", "fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def write_pictures(folder: Path) -> None:
    """The digits as PNGs, 0..16 becoming 0..255."""
    for number, picture in enumerate(handwritten()[0].reshape(-1, 8, 8)):
        Image.fromarray((picture * 255 / 16).astype(np.uint8)).save(folder / f"{number:04d}.png")


def config(pictures: Path, out: Path, steps: int, precision: Precision = "auto") -> TrainConfig:
    """The digits recipe with the network and the process that diffusers has too, and one checkpoint at its end."""
    base = resolve(TrainConfig, [Layer("recipe digits", recipe("digits"))], FAMILIES)
    return replace(
        base, data=replace(base.data, data=str(pictures), holdout=0.0), out=str(out), network=NETWORK, steps=steps, batch=BATCH,
        schedule=Linear(), parameterization=Eps(), preview=0, checkpoint_every=steps, evaluate_every=steps, precision=precision,
        threads=torch.get_num_threads(),
    )  # fmt: skip


def unet2d(groups: int = 8) -> Any:
    """The same network in diffusers."""
    return library("diffusers").UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(32, 64), down_block_types=("AttnDownBlock2D",) * 2,
        up_block_types=("AttnUpBlock2D",) * 2, layers_per_block=1, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1,
        norm_eps=1e-6, norm_num_groups=groups, attention_head_dim=None,
    )  # fmt: skip


def lucid() -> nn.Module:
    """Its Unet of this package's size."""
    unet = library("denoising_diffusion_pytorch").Unet
    return unet(32, dim_mults=(1, 2), channels=1, full_attn=(False, True), attn_dim_head=16, attn_heads=2)


def training(steps: int, rounds: int) -> Part:
    """Interleaved runs of so many steps, from the call to its return."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        (pictures := place / "pictures").mkdir()
        write_pictures(pictures)
        numbers = itertools.count()

        def ours(precision: Precision) -> object:
            return train(config(pictures, place / f"run{next(numbers)}", steps, precision), quiet=True)

        def script(precision: Precision) -> object:
            return diffusers_run(unet2d(), Pictures(pictures, 8), steps, Run(BATCH, LR, precision))

        def lucids(precision: Precision) -> object:
            return lucid_run(lucid(), pictures, place / "lucid", steps, 8, Run(BATCH, LR, precision))

        actions: dict[str, Action] = {}
        for precision in PRECISIONS:
            actions[f"ddpm ({precision})"] = partial(ours, precision)
            actions[f"diffusers, its script ({precision})"] = partial(script, precision)
            actions[f"denoising-diffusion-pytorch ({precision})"] = partial(lucids, precision)
        seconds = interleaved(actions, rounds)
    kinds = {"ddpm (fp32)": NETWORK.build(SHAPE), "denoising-diffusion-pytorch (fp32)": lucid()}
    notes = {
        name: f"{sum(p.numel() for p in net.parameters()):,} parameters, {1e3 * sizes(net, SHAPE):.2f} MFLOP" for name, net in kinds.items()
    }
    ratios: dict[str, float] = {}
    for key, name in {"diffusers": "diffusers, its script", "denoising_diffusion_pytorch": "denoising-diffusion-pytorch"}.items():
        ratios[f"digits_vs_{key}"] = ratio(seconds, f"{name} (fp32)", "ddpm (fp32)")
        ratios[f"digits_vs_{key}_bf16"] = ratio(seconds, f"{name} (bf16)", "ddpm (bf16)")
        theirs, best = (min(PRECISIONS, key=lambda p: median(seconds[f"{who} ({p})"])) for who in (name, "ddpm"))
        ratios[f"digits_vs_{key}_best"] = ratio(seconds, f"{name} ({theirs})", f"ddpm ({best})")
    return Part(f"0.7 M U-Net on digits, {steps} steps of {BATCH} end to end", seconds, steps * BATCH, notes, ratios)


def in_diffusers(denoiser: NetworkDenoiser) -> Any:
    """A DDPMPipeline with the weights of the denoiser: every entry goes back where `from_diffusers_state` would have taken it from."""
    diffusers, model = library("diffusers"), unet2d()
    state = model.state_dict()
    ends = np.cumsum([0, *(value.numel() for value in state.values())])
    places = {
        name: torch.arange(first, last, dtype=torch.float64).view_as(value)
        for (name, value), first, last in zip(state.items(), ends[:-1], ends[1:], strict=True)
    }
    flat = torch.empty(int(ends[-1]))
    for name, place in from_diffusers_state(places, NETWORK).items():
        flat[place.long()] = denoiser.network.state_dict()[name]
    model.load_state_dict({name: flat[place.long()] for name, place in places.items()})
    return diffusers.DDPMPipeline(model.eval(), diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear"))


def sampling(rounds: int, steps: int, calls: int, n: int) -> Part:
    """64 pictures by 10 calls of ours and by diffusers' default pipeline, 1000; the Frechet distances of n of each to the digits."""
    with tempfile.TemporaryDirectory() as scratch:
        (pictures := Path(scratch) / "pictures").mkdir()
        write_pictures(pictures)
        denoiser = train(config(pictures, Path(scratch) / "run", steps), quiet=True).denoiser
    pipeline, solver = in_diffusers(denoiser), next(preset.value for preset in PRESETS if preset.name == "dpm++2m")
    pipeline.set_progress_bar_config(disable=True)

    def ours(count: int = 64) -> np.ndarray[Any, Any]:
        return sample(denoiser, count, steps=calls, sampler=solver, grid=LogSNR(), batch=count).numpy()

    def theirs(count: int = 64, steps: int = 1000) -> np.ndarray[Any, Any]:
        drawn = pipeline(batch_size=count, num_inference_steps=steps, generator=torch.Generator().manual_seed(0), output_type="np").images
        return np.round(drawn * 255)

    real = handwritten()[0] * 255 / 16
    distance = [frechet(drawn.reshape(n, -1).astype(np.float64), real) for drawn in (ours(n), theirs(n))]
    seconds = interleaved({"ddpm": ours, "diffusers, DDPMPipeline": theirs}, rounds)
    total = ratio(seconds, "diffusers, DDPMPipeline", "ddpm")
    notes = {name: f"Frechet distance {value:.1f} ({n} samples)" for name, value in zip(seconds, distance, strict=True)}
    ratios = {
        "sampling_vs_diffusers": total,
        "sampling_factor_solver": 1000 / calls,
        "sampling_factor_step": round(total * calls / 1000, 3),
        "sampling_frechet_ratio": round(distance[0] / distance[1], 3),
    }
    return Part(f"64 digits: {calls} calls of dpm++2m; 1000 steps of diffusers' default", seconds, 64, notes, ratios)
