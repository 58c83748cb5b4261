"""Which of the six decisions matters most? One is changed at a time, five are kept; see docs/six_steps.md for what they are.

    python studies/six_steps.py --figure docs/studies/six_steps.png

The model as it is: levels of a cosine schedule in continuous time, many small steps, one network told the level, the variance-reduced
Gaussian regression with L_simple's weight, prediction of eps, 50 ancestral steps. Changed:

  1 augment         10 noise levels instead of a continuum; the noise ends at log-SNR -2 instead of far below the data
  2 step by step    sampling in 5 steps, and in 1, of the same networks
  3 share           four networks of a quarter of the parameters, each for a quarter of the levels and with a quarter of the training
                    steps; one network that is not told the level
  4 reduce, Gauss   the next level drawn instead of averaged out, beside the same step-wise likelihood with it averaged out (which weighs
                    levels as the bound does); the reverse variance large instead of small, of the same networks
  5 what to predict x0, v, with the same loss in terms of eps
  6 schedule        linear; sigmoid and straight, which end without signal and so predict v: to be compared with v of step 5

The last line is JSON: the Frechet distance and bits per dimension of every change, mean and standard error over the seeds.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from common import (
    NETWORK,
    TESTS,
    Found,
    Job,
    World,
    about,
    arguments,
    bits,
    column,
    distance,
    finite,
    mean,
    perform,
    run,
    save,
    settings,
    table,
    trained,
    world,
)
from torch import Tensor, nn

from ddpm.config import setting
from ddpm.denoiser import Cond, Denoiser, Prediction
from ddpm.denoiser.clock import Clock
from ddpm.denoiser.parameterization import X0, Eps, V
from ddpm.likelihood import discrete
from ddpm.objective import Denoising, Stepwise
from ddpm.objective.times import Times
from ddpm.process import At, Cosine, Linear, LogSNRTable, Process, Sigmoid, Straight
from ddpm.sampling import Ancestral

LEVELS, PARTS = 10, 4
OTHERWISE: tuple[tuple[str, int, Literal["small", "large"]], ...] = (  # other samplings of the model as it is
    ("5 steps", 5, "small"), ("1 step", 1, "small"), ("large", 50, "large"),
)  # fmt: skip
CHAIN = 1000  # for the step-wise likelihoods


@dataclass(frozen=True, kw_only=True)
class Blind(Clock):
    """Tells the network nothing."""

    def __call__(self, at: At) -> torch.Tensor:
        """0."""
        return torch.zeros_like(at.t)


@dataclass(frozen=True, kw_only=True)
class Part(Times):
    """Instants evenly from [low, high] alone."""

    low: float = setting(0.0, "where it begins", low=0.0, high=1.0)
    high: float = setting(1.0, "where it ends", low=0.0, high=1.0)

    def cdf(self, t: Tensor, process: Process) -> Tensor:
        """(t - low) / (high - low), within 0..1."""
        return ((t - self.low) / (self.high - self.low)).clamp(0.0, 1.0)

    def quantile(self, p: Tensor, process: Process) -> Tensor:
        """low + p (high - low)."""
        return self.low + p * (self.high - self.low)

    def density(self, t: Tensor, process: Process) -> Tensor:
        """1 / (high - low) inside."""
        return torch.full_like(t, 1.0 / (self.high - self.low))


class Parts(Denoiser):
    """A denoiser for each of PARTS equal stretches of t."""

    def __init__(self, members: list[Denoiser]) -> None:
        super().__init__()
        first = members[0]
        self.members = nn.ModuleList(members)
        self.process, self.parameterization, self.log_snr_range = first.process, first.parameterization, first.log_snr_range
        self.shape, self.codec, self.meaning, self.classes = first.shape, first.codec, first.meaning, first.classes

    def forward(self, x: Tensor, at: At, cond: Cond = None) -> Prediction:
        """Each row by the member for its instant."""
        place = (at.t.reshape(-1).double().cpu() * PARTS).ceil().clamp(1, PARTS) - 1
        if len(place) == 1:
            return self.members[int(place)](x, at)
        x0, eps = torch.empty_like(x), torch.empty_like(x)
        for index, member in enumerate(self.members):
            rows = (place == index).to(x.device)
            if bool(rows.any()):
                found = member(x[rows], At(*(level[rows] for level in at)))
                x0[rows], eps[rows] = found.x0, found.eps
        return Prediction(x0, eps)

    def residual(self, at: At) -> Tensor:
        """None was measured."""
        raise NotImplementedError("the parts' residuals are not measured")


def measure(job: Job, model: Denoiser, here: World) -> Found:
    """The distance of samples; of the model as it is also with other steps and variances. Bits where the levels have no end in the data."""
    found: Found = {"frechet": distance(model, here, min(50, model.process.schedule.T or 50), Ancestral(variance="small"))}
    found["bits"] = bits(model, here) if model.process.schedule.T != LEVELS else _chain_bits(model, here)
    if job.extra == "base":
        for name, steps, variance in OTHERWISE:
            found[name] = distance(model, here, steps, Ancestral(variance=variance))
    return found


def _chain_bits(model: Denoiser, here: World) -> float:
    """The bound of a short chain: between its few levels the network knows nothing."""
    x0 = model.codec.encode(here.test[:TESTS]).float()  # pyright: ignore[reportOptionalMemberAccess]
    return discrete(model, x0, variance="large").scores.bits_per_dim(x0[0].numel()).mean()[0]


def act(job: Job, path: str | None) -> Found:
    """One network, or four small ones, trained one after the other with the steps of one."""
    if job.extra != "apart":
        return run(job, path, measure)
    torch.set_num_threads(1)
    here, began, members = world(path), time.perf_counter(), []
    for index in range(PARTS):
        loss = Denoising(times=Part(low=index / PARTS, high=(index + 1) / PARTS))
        config = replace(job.config, steps=job.config.steps // PARTS, loss=loss)
        members.append(copy.deepcopy(trained(job._replace(config=config), here.data)))
    return measure(job, Parts(members), here) | {"seconds": [round(time.perf_counter() - began, 1)]}


def jobs(args: Any) -> list[Job]:
    """The model as it is, and what takes its own training."""
    base = settings(args, schedule=Cosine(T=None), parameterization=Eps(), loss=Denoising())
    small = replace(NETWORK, channels=NETWORK.channels // 2)  # a quarter of the parameters
    kinds: dict[str, tuple[Any, Any]] = {
        "as it is": (base, "base"),
        "1 ten levels": (replace(base, schedule=Cosine(T=LEVELS)), None),
        "1 noise to log-SNR -2": (replace(base, schedule=LogSNRTable(log_snr=(13.8, -2.0))), None),
        "3 four networks": (replace(base, network=small), "apart"),
        "3 not told the level": (replace(base, clock=Blind()), None),
        "4 step-wise, averaged": (replace(base, schedule=Cosine(T=CHAIN), loss=Stepwise()), None),
        "4 step-wise, drawn": (replace(base, schedule=Cosine(T=CHAIN), loss=Stepwise(reduced=False)), None),
        "5 x0": (replace(base, parameterization=X0()), None),
        "5 v": (replace(base, parameterization=V()), None),
        "6 linear": (replace(base, schedule=Linear(T=None)), None),
        "6 sigmoid": (replace(base, schedule=Sigmoid(), parameterization=V()), None),
        "6 straight": (replace(base, schedule=Straight(), parameterization=V()), None),
    }
    return [Job(name, seed, config, extra) for name, (config, extra) in kinds.items() for seed in range(args.seeds)]


def rows(found: dict[str, list[Found]]) -> dict[str, dict[str, list[float]]]:
    """Every change with its scores by seed, in the order of the steps."""
    out = {name: {key: column(scores, key) for key in ("frechet", "bits")} for name, scores in found.items()}
    base = found["as it is"]
    for label, key in (("2 five steps", "5 steps"), ("2 one step", "1 step"), ("4 variance large", "large")):
        out[label] = {"frechet": column(base, key), "bits": [math.inf] * len(base)}
    return dict(sorted(out.items(), key=lambda item: (item[0][0] != "a", item[0][0])))


def figure(scores: dict[str, dict[str, list[float]]], path: Path, title: str) -> None:
    """The distance of every change, on a logarithmic axis, seeds as points."""
    import matplotlib.pyplot as plt

    drawing, axis = plt.subplots(figsize=(8.6, 5.4), layout="constrained")
    base = mean(scores["as it is"]["frechet"])[0]
    axis.axvline(base, color="0.7", zorder=0)
    for place, (name, row) in enumerate(scores.items()):
        colour = "0.2" if name == "as it is" else f"C{int(name[0]) - 1}"
        value, error = mean(row["frechet"])
        axis.errorbar(value, -place, xerr=error, fmt="o", color=colour, capsize=3)
        axis.plot(row["frechet"], [-place - 0.2] * len(row["frechet"]), ".", color=colour, alpha=0.5, markersize=3)
    axis.set_yticks([-place for place in range(len(scores))], list(scores), fontsize=8)
    axis.set(xscale="log", xlabel="Frechet distance over the data's own (1: as close as data are)")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_title(title, fontsize=10)
    save(drawing, path)


def main() -> int:
    """Train what is missing, print, draw."""
    args = arguments("six_steps", __doc__ or "")
    found = perform(jobs(args), act, args)
    scores = rows(found)
    means = {name: {key: mean(values) for key, values in row.items()} for name, row in scores.items()}
    print(table(means))
    if args.figure:
        figure(scores, args.figure, about(args))
    print(json.dumps(finite(means)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
