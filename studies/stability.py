"""How steady is training? A diffusion model, a GAN and a VAE of equal size and equal budget, five seeds each.

    python studies/stability.py --figure docs/studies/stability.png

All three have the parameters of the studies' network, within 5 %, and the same arithmetic for training, counted in floating point
operations of forward and backward passes; so the cheaper a step, the more of them. The GAN: transposed convolutions against convolutions
with spectral norm, non-saturating loss, Adam with beta1 = 0.5 (Goodfellow et al., 2014, arXiv:1406.2661; Radford et al., 2015,
arXiv:1511.06434; Miyato et al., 2018, arXiv:1802.05957). The VAE: convolutions to and from 32 latent numbers, Gaussian likelihood with one
learned variance, samples are means (Kingma, Welling, 2013, arXiv:1312.6114; Rybkin et al., 2020, arXiv:2006.13202). Weights of all three
are averaged in the same way. The settings of each are the first of `RATES` learning rates with the least distance on seed 100.

A run counts as failed, by a rule written before the runs: values that are not finite, a distance above three times the median of its kind,
or a digit that less than 1 % of the samples show, by the classifier the distance is measured with.

The last line is JSON: for each kind the distances of its seeds, their mean and standard deviation, and how many runs failed.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import SAMPLES, Found, Job, World, arguments, column, perform, save, settings, trained, world
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.flop_counter import FlopCounterMode

from ddpm.data.export import grid
from ddpm.networks import UNetConfig
from ddpm.random import generator
from ddpm.sampling import DDIM, sample

KINDS = ("diffusion", "GAN", "VAE")
RATES = {"diffusion": (1e-3, 2e-3, 4e-3), "GAN": (1e-4, 2e-4, 5e-4), "VAE": (5e-4, 1e-3, 2e-3)}
TUNING = 100  # the seed that rates are chosen with
BATCH, NOISE, LATENT = 64, 32, 32


def up(width: int, channels: int) -> nn.Sequential:
    """Latent numbers to 8x8, or with another doubling 16x16, pictures in -1..1."""
    return nn.Sequential(
        nn.Linear(LATENT, 2 * width * 16), nn.Unflatten(1, (2 * width, 4, 4)), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, channels, 3, 1, 1), nn.Tanh(),
    )  # fmt: skip


def down(width: int, channels: int, out: int, norm: Any = lambda layer: layer) -> nn.Sequential:
    """8x8 pictures to numbers."""
    return nn.Sequential(
        norm(nn.Conv2d(channels, width, 3, 1, 1)), nn.LeakyReLU(0.2), norm(nn.Conv2d(width, 2 * width, 4, 2, 1)), nn.LeakyReLU(0.2),
        norm(nn.Conv2d(2 * width, 2 * width, 3, 1, 1)), nn.LeakyReLU(0.2), nn.Flatten(), norm(nn.Linear(2 * width * 16, out)),
    )  # fmt: skip


class GAN(nn.Module):
    """Generator and discriminator; `step` takes one step of each."""

    def __init__(self, width: int, channels: int, rate: float) -> None:
        super().__init__()
        self.up, self.down = up(width, channels), down(width, channels, 1, spectral_norm)
        self.one, self.two = (torch.optim.Adam(part.parameters(), lr=rate, betas=(0.5, 0.999)) for part in (self.up, self.down))

    def step(self, x: Tensor, noise: Tensor) -> None:
        """The discriminator's step, then the generator's."""
        made = self.up(noise)
        self.two.zero_grad()
        (F.softplus(-self.down(x)).mean() + F.softplus(self.down(made.detach())).mean()).backward()
        self.two.step()
        self.one.zero_grad()
        F.softplus(-self.down(made)).mean().backward()
        self.one.step()


class VAE(nn.Module):
    """Encoder and decoder; `step` takes one step of both."""

    def __init__(self, width: int, channels: int, rate: float) -> None:
        super().__init__()
        self.up, self.down, self.spread = up(width, channels), down(width, channels, 2 * LATENT), nn.Parameter(torch.zeros(()))
        self.one = torch.optim.Adam(self.parameters(), lr=rate)

    def step(self, x: Tensor, noise: Tensor) -> None:
        """One step on the bound, in nats a picture."""
        centre, spread = self.down(x).chunk(2, 1)
        made = self.up(centre + (0.5 * spread).exp() * noise)
        squares = (x - made).square() * (-2.0 * self.spread).exp()
        nats = 0.5 * squares.flatten(1).sum(1) + self.spread * x[0].numel()
        divergence = 0.5 * (spread.exp() + centre.square() - 1.0 - spread).sum(1)
        self.one.zero_grad()
        (nats + divergence).mean().backward()
        self.one.step()


def operations(act: Any) -> int:
    """Floating point operations of a call."""
    with FlopCounterMode(display=False) as counted:
        act()
    return counted.get_total_flops()


def rival(kind: str, goal: int, channels: int, rate: float) -> GAN | VAE:
    """The one whose width brings its parameters nearest to a goal."""
    make = GAN if kind == "GAN" else VAE
    sizes = {width: sum(p.numel() for p in make(width, channels, rate).parameters()) for width in range(8, 96)}
    return make(min(sizes, key=lambda width: abs(sizes[width] - goal)), channels, rate)


def fitted(job: Job, here: World) -> tuple[Tensor, dict[str, Any]]:
    """Samples of a GAN or VAE trained with the arithmetic of the diffusion model's run, and what it was."""
    kind, rate = job.extra
    network: UNetConfig = job.config.network  # pyright: ignore[reportAssignmentType]
    shape = here.data.card.shape
    torch.manual_seed(job.seed)
    ours = network.build(shape)
    goal = sum(p.numel() for p in ours.parameters())
    x, t = torch.randn(BATCH, *shape), torch.rand(BATCH) * 999
    budget = job.config.steps * operations(lambda: ours(x, t).square().mean().backward())
    model = rival(kind, goal, shape[0], rate)
    raw = torch.from_numpy(here.data.batch(here.data.train_rows)[0]).float()
    low, high = here.data.card.bins or (float(raw.min()), float(raw.max()))
    data = (raw - low) / (high - low) * 2.0 - 1.0
    spare = rival(kind, goal, shape[0], rate)
    steps = max(1, budget // operations(lambda: spare.step(data[:BATCH], torch.randn(BATCH, LATENT))))
    average = {name: value.clone() for name, value in model.up.state_dict().items()}
    for step in range(steps):
        draw = generator(job.seed, "order", step)
        rows = torch.from_numpy(draw.integers(0, len(data), BATCH))
        model.step(data[rows], torch.from_numpy(draw.standard_normal((BATCH, LATENT), dtype="float32")))
        keep = (1.0 - 1.0 / (step + 1)) ** 8.0  # a power average of width 0.1
        for name, value in model.up.state_dict().items():
            average[name].lerp_(value, 1.0 - keep) if value.is_floating_point() else average[name].copy_(value)
    model.up.load_state_dict(average)
    model.up.eval()
    noise = torch.from_numpy(generator(0, "start").standard_normal((SAMPLES, LATENT), dtype="float32"))
    with torch.no_grad():
        made = (model.up(noise) + 1.0) / 2.0 * (high - low) + low
    parameters = sum(p.numel() for p in model.parameters())
    return made.round().clamp(low, high), {"steps": steps, "parameters": parameters, "goal": goal}


def act(job: Job, path: str | None) -> Found:
    """One run of any kind: distance, share of the rarest digit among the samples, and the first samples."""
    torch.set_num_threads(1)
    here, began = world(path), time.perf_counter()
    kind, rate = job.extra
    about: dict[str, Any] = {"steps": job.config.steps}
    if kind == "diffusion":
        config = replace(job.config, optimizer=replace(job.config.optimizer, lr=rate))
        drawn = sample(trained(job._replace(config=config), here.data), SAMPLES, steps=50, sampler=DDIM(), seed=0, batch=SAMPLES)
    else:
        drawn, about = fitted(job, here)
    fine = bool(drawn.isfinite().all())
    logits = here.extractor.logits(here.extractor.features(drawn)) if fine else None
    counts = torch.bincount(logits.argmax(1), minlength=logits.shape[1]) if logits is not None else torch.zeros(1)
    return {
        "frechet": here.distance(drawn) if fine else math.inf,
        "rarest": float(counts.min()) / SAMPLES,
        "shown": drawn[:16].flatten().tolist() if fine else [],
        "seconds": [round(time.perf_counter() - began, 1)],
        **about,
    }


def failed(rows: list[Found]) -> int:
    """How many of one kind's runs failed, by the rule above."""
    middle = statistics.median(column(rows, "frechet"))
    return sum(not math.isfinite(row["frechet"]) or row["frechet"] > 3.0 * middle or row["rarest"] < 0.01 for row in rows)


def figure(found: dict[str, list[Found]], path: Path, shape: tuple[int, ...], title: str) -> None:
    """Distances and rarest digits of every seed, their mean and standard deviation, and samples of each kind's first seed."""
    import matplotlib.pyplot as plt

    drawing, axes = plt.subplots(1, 5, figsize=(13.0, 3.6), layout="constrained", width_ratios=(1.3, 1.3, 1, 1, 1))
    for index, (kind, rows) in enumerate(found.items()):
        for axis, key in zip(axes[:2], ("frechet", "rarest"), strict=True):
            values = column(rows, key)
            axis.plot([index + 0.06 * (k - 2) for k in range(len(values))], values, "o", color=f"C{index}", markersize=5)
            axis.errorbar(index + 0.2, statistics.fmean(values), statistics.stdev(values), fmt="_", color="0.3", capsize=3)
        pictures = torch.tensor(rows[0]["shown"]).reshape(16, *shape)
        axes[2 + index].imshow(grid(pictures.numpy(), (0.0, 16.0), columns=4), cmap="gray")
        axes[2 + index].set(title=f"{kind}, seed 0")
        axes[2 + index].axis("off")
    axes[0].set(yscale="log", ylabel="Frechet distance over the data's own")
    for formatter in (axes[0].yaxis.set_major_formatter, axes[0].yaxis.set_minor_formatter):
        formatter(lambda value, _: f"{value:g}")
    axes[1].set(ylabel="share of the rarest digit", ylim=(0.0, None))
    axes[1].axhline(0.01, color="0.6", linestyle="--", linewidth=0.8)
    for axis in axes[:2]:
        axis.set_xticks(range(len(found)), list(found))
    drawing.suptitle(title, fontsize=10)
    save(drawing, path)


def main() -> int:
    """Choose rates, train what is missing, print, draw."""
    args = arguments("stability", __doc__ or "", seeds=5)
    base = settings(args)
    tried = {(kind, rate): f"{kind} at {rate:g}" for kind in KINDS for rate in RATES[kind]}
    tuned = perform([Job(name, TUNING, base, pair) for pair, name in tried.items()], act, args)
    best = {kind: min(RATES[kind], key=lambda rate: tuned[tried[kind, rate]][0]["frechet"]) for kind in KINDS}
    found = perform([Job(kind, seed, base, (kind, best[kind])) for kind in KINDS for seed in range(args.seeds)], act, args)
    result: dict[str, Any] = {}
    for kind, rows in found.items():
        values = column(rows, "frechet")
        result[kind] = {
            "rate": best[kind], "steps": rows[0]["steps"], "distances": [round(value, 3) for value in values],
            "mean": round(statistics.fmean(values), 3), "deviation": round(statistics.stdev(values), 3), "failed": failed(rows),
            "rarest": [round(row["rarest"], 3) for row in rows],
        }  # fmt: skip
        print(f"{kind:<10}", result[kind])
    if args.figure:
        figure(found, args.figure, world(args.data).data.card.shape, f"every seed, mean and standard deviation of {args.seeds}")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
