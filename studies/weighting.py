"""Why do likelihood and sample quality disagree? One network, one schedule, one budget; only the weight of the noise levels changes.

    python studies/weighting.py --steps 1500 --figure docs/studies/weighting.png
    python studies/weighting.py --data cifar10-train.tar.xz --figure docs/studies/weighting-cifar10.png

First the weightings w = w_simple^(1-p), from L_simple at p = 0 to the variational bound at p = 1. Then L_simple with one band of log-SNR at
a time counted `FACTOR` times. Of every run: bits per dimension and the Frechet distance of 898 DDIM samples of 50 steps, both on test
data, and where in log-SNR the bits are spent: bits/dim = 1/(2 ln 2) int |eps - eps_hat|^2 d log_snr + decoder, the integral up to the
level whose noise is half a bin of the data; what lies beyond is trained on, and drawn grey, but not in the score.

The last line is JSON: both scores of every weighting as mean and standard error over the seeds, and the bands' differences from L_simple,
seed by seed.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from common import (
    LEVELS,
    Found,
    Job,
    World,
    about,
    arguments,
    bits,
    column,
    distance,
    errors,
    mean,
    paired,
    perform,
    run,
    save,
    settings,
    table,
    world,
)

from ddpm.config import setting
from ddpm.denoiser import Codec, Denoiser
from ddpm.objective import Denoising
from ddpm.objective.weighting import Bound, LevelWeighting, Simple, SimpleWeighting
from ddpm.process import At, Cosine, Linear, Process

POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
EDGES = (-30.0, -4.0, -1.0, 2.0, 5.0, 30.0)
FACTOR = 5.0


@dataclass(frozen=True, kw_only=True)
class Between(LevelWeighting):
    """w_simple^(1 - power): L_simple at 0, the bound at 1."""

    power: float = setting(0.0, "how far on the way from L_simple to the bound", low=0.0, high=1.0)

    def __call__(self, at: At, process: Process) -> torch.Tensor:
        """(alpha sigma / W)^(1 - power)."""
        return Simple()(at, process) ** (1.0 - self.power)


@dataclass(frozen=True, kw_only=True)
class Band(SimpleWeighting):
    """L_simple with one band of log-SNR counted more."""

    low: float = setting(0.0, "where the band begins")
    high: float = setting(0.0, "where it ends")
    factor: float = setting(FACTOR, "how often it counts", above=0.0)

    def relative(self, at: At) -> torch.Tensor:
        """The factor inside, 1 outside."""
        inside = (at.log_snr >= self.low) & (at.log_snr < self.high)
        return torch.where(inside, self.factor, 1.0).to(at.t)


def measure(job: Job, model: Denoiser, here: World) -> Found:
    """Both scores, and the error at every level."""
    unit = float(model.codec.unit(torch.zeros(1, *model.shape)).mean())  # pyright: ignore[reportOptionalMemberAccess]
    return {"bits": bits(model, here), "frechet": distance(model, here, 50), "errors": errors(model, here), "unit": unit}


def jobs(args: Any) -> list[Job]:
    """Every weighting for every seed; levels are drawn by their loss, so that no weighting suffers from rare large terms."""
    kinds: dict[str, LevelWeighting] = {f"power {power:g}": Between(power=power) for power in POWERS}
    kinds |= {f"band {low:g} to {high:g}": Band(low=low, high=high) for low, high in pairwise(EDGES)}
    return [
        Job(name, seed, settings(args, schedule=Cosine(T=None), loss=Denoising(weighting=weighting, importance=True)))
        for name, weighting in kinds.items()
        for seed in range(args.seeds)
    ]


def spent(found: list[Found]) -> torch.Tensor:
    """Bits per dimension and unit of log-SNR at each level, mean over the seeds."""
    return torch.tensor(column(found, "errors")).mean(0) / (2.0 * math.log(2.0))  # pyright: ignore[reportArgumentType]


def entered(here: World) -> float:
    """log-SNR at which the scored bound leaves the rest to its decoder: sigma/alpha is half the width of a bin."""
    width = Codec.of(here.data.card).bin_width(torch.zeros(1, *here.data.card.shape))
    return math.inf if width is None else -2.0 * math.log(float(width.max()) / 2.0)


def rate_and_distortion(found: list[Found]) -> tuple[torch.Tensor, torch.Tensor]:
    """Bits/dim sent until a level is known, and the root mean squared error of x0_hat there in the data's own units."""
    bit, step = spent(found), float(LEVELS[1] - LEVELS[0])
    rate = torch.cat([bit.new_zeros(1), (0.5 * step * (bit[1:] + bit[:-1])).cumsum(0)])
    squares = bit * 2.0 * math.log(2.0) * (-LEVELS).exp()
    return rate, squares.sqrt() * found[0]["unit"]


def effective(schedule: Cosine | Linear) -> torch.Tensor:
    """w_simple over the bound's 1 at each level, of largest value 1."""
    process = Process(schedule)
    weight = Simple()(process.at(process.time_of(LEVELS)), process)
    return weight / weight.max()


def figure(found: dict[str, list[Found]], path: Path, title: str, entry: float) -> None:
    """Six panels: the trade, where bits are spent, rate and distortion; the effective weight, and the bands' effect on both scores."""
    import matplotlib.pyplot as plt

    drawing, axes = plt.subplots(2, 3, figsize=(12.6, 7.2), layout="constrained")
    (trade, density, curve), (weight, first, second) = axes
    for index, power in enumerate(POWERS):
        rows, colour = found[f"power {power:g}"], plt.get_cmap("viridis")(index / (len(POWERS) - 1) * 0.9)
        x, y = mean(column(rows, "bits")), mean(column(rows, "frechet"))
        trade.errorbar(x[0], y[0], xerr=x[1], yerr=y[1], fmt="o", color=colour, label=f"p = {power:g}", capsize=2)
        if power in (0.0, 0.5, 1.0):
            density.plot(LEVELS, spent(rows), color=colour, label=f"p = {power:g}")
            curve.plot(*(values[LEVELS <= entry] for values in rate_and_distortion(rows)), color=colour, label=f"p = {power:g}")
    if entry < LEVELS[-1]:
        density.axvspan(entry, float(LEVELS[-1]), color="0.92", zorder=0, label="not in bits/dim")
    trade.set(xlabel="bits/dim of test data", ylabel="Frechet distance over the data's own", title="w = w_simple^(1-p)")
    density.set(xlabel="log-SNR", ylabel="bits/dim per unit of log-SNR", title="where the bits are spent")
    curve.set(xlabel="rate, bits/dim", ylabel="root mean squared error, own units", title="rate and distortion")
    for schedule, style in ((Linear(), "--"), (Cosine(), "-")):
        weight.plot(LEVELS, effective(schedule), style, color="C0", label=f"L_simple, {type(schedule).__name__.lower()}")
    weight.plot(LEVELS, Bound()(Process(Cosine()).at(Process(Cosine()).time_of(LEVELS)), Process(Cosine())), color="0.3", label="bound")
    weight.set(xlabel="log-SNR", ylabel="weight of |eps - eps_hat|^2 d log-SNR", title="effective weight (largest: 1)")
    for axis in (trade, density, curve, weight):
        axis.legend(frameon=False, fontsize=8)
    for axis, key, said in ((first, "bits", "bits/dim"), (second, "frechet", "Frechet distance")):
        for low, high in pairwise(EDGES):
            value, error = paired(column(found[f"band {low:g} to {high:g}"], key), column(found["power 0"], key))
            axis.errorbar((max(low, -9) + min(high, 11)) / 2, value, yerr=error, fmt="o", color="C3", capsize=3)
            axis.axvspan(max(low, -9), min(high, 11), color="0.95" if EDGES.index(low) % 2 else "1.0", zorder=0)
        axis.axhline(0.0, color="0.6", linewidth=0.8)
        axis.set(xlabel=f"band of log-SNR counted {FACTOR:g} times", ylabel=f"change of {said}", title=f"{said}: lower is better")
    drawing.suptitle(title, fontsize=10)
    save(drawing, path)


def main() -> int:
    """Train what is missing, print, draw."""
    args = arguments("weighting", __doc__ or "")
    found = perform(jobs(args), partial(run, measure=measure), args)
    scores = {name: {key: mean(column(rows, key)) for key in ("bits", "frechet")} for name, rows in found.items()}
    print(table(scores, 4))
    changes = {
        name: {f"{key} - L_simple": paired(column(rows, key), column(found["power 0"], key)) for key in ("bits", "frechet")}
        for name, rows in found.items()
        if name.startswith("band")
    }
    print(table(changes, 4))
    if args.figure:
        figure(found, args.figure, about(args), entered(world(args.data)))
    print(json.dumps({"scores": scores, "changes": changes}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
