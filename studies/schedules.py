"""Which noise schedule is best? One network, one budget; only the schedule changes, and the number of network calls at sampling.

    python studies/schedules.py --figure docs/studies/schedules.png
    python studies/schedules.py --data cifar10-train.tar.xz --figure docs/studies/schedules-cifar10.png

Every schedule is trained twice: with its own L_simple, as it was published, which weighs the noise levels differently from one to the next;
and with one weighting for all, sigmoid(2 - log_snr), where a schedule only says which levels are drawn how often. Every model is sampled by
DDIM on its own usual grid and on one even in log-SNR, so that the schedule of training and the places of sampling are told apart. The
learned schedule is a table made by a run of equal length that made the variance of the bound least (Kingma et al., 2021,
arXiv:2107.00630); that run is not counted.

The last line is JSON: for every weighting, schedule and number of calls the Frechet distance on both grids, mean and standard error over
the seeds, and bits per dimension.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Found, Job, World, about, arguments, bits, column, distance, finite, mean, perform, run, save, settings, table, world

from ddpm.data.dataset import Dataset
from ddpm.denoiser import Denoiser
from ddpm.objective import Denoising, LearnedSchedule
from ddpm.objective.weighting import Sigmoid as SigmoidWeighting
from ddpm.objective.weighting import Simple, Weighting
from ddpm.process import Cosine, Linear, LogSNR, LogSNRTable, Schedule, Sigmoid, Straight
from ddpm.training import train
from ddpm.training.learned import learned_schedule

CALLS = (5, 10, 20, 50)
SCHEDULES: dict[str, Schedule] = {"linear": Linear(T=None), "cosine": Cosine(T=None), "sigmoid": Sigmoid(), "straight": Straight()}
WEIGHTINGS: dict[str, Weighting] = {"own L_simple": Simple(), "one weighting": SigmoidWeighting(bias=2.0)}


def measure(job: Job, model: Denoiser, here: World) -> Found:
    """Bits, and the distance at every number of calls on both grids; a table where the job was to learn one."""
    found: Found = {"bits": bits(model, here)}
    for calls in CALLS:
        found[f"own {calls}"] = distance(model, here, calls)
        found[f"log-snr {calls}"] = distance(model, here, calls, grid=LogSNR())
    return found


def learn(job: Job, path: str | None) -> Found:
    """The table a run with the learned schedule ends with."""
    torch.set_num_threads(1)
    data: Dataset = world(path).data
    with tempfile.TemporaryDirectory() as folder:
        train(replace(job.config, seed=job.seed, out=folder), data=data, quiet=True)
        return {"table": list(learned_schedule(folder, knots=256).log_snr), "seconds": []}


def jobs(args: Any, tables: list[tuple[float, ...]]) -> list[Job]:
    """Every schedule with both weightings for every seed; each seed has its own learned table."""
    return [
        Job(f"{weighting}: {name}", seed, settings(args, schedule=schedule, loss=Denoising(weighting=kind)))
        for weighting, kind in WEIGHTINGS.items()
        for seed in range(args.seeds)
        for name, schedule in {**SCHEDULES, "learned": LogSNRTable(log_snr=tables[seed])}.items()
    ]


def figure(found: dict[str, list[Found]], path: Path, title: str) -> None:
    """A panel for each weighting and grid: distance by calls."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    drawing, axes = plt.subplots(2, 2, figsize=(10.0, 7.6), layout="constrained", sharex=True)
    for row, weighting in zip(axes, WEIGHTINGS, strict=True):
        for axis, grid in zip(row, ("own", "log-snr"), strict=True):
            for index, name in enumerate([*SCHEDULES, "learned"]):
                points = [mean(column(found[f"{weighting}: {name}"], f"{grid} {calls}")) for calls in CALLS]
                where = [calls * 1.03 ** (index - 2) for calls in CALLS]
                values, reach = zip(*points, strict=True)
                axis.errorbar(where, values, yerr=reach, fmt="o-", color=f"C{index}", label=name, capsize=2, markersize=4, linewidth=1)
            axis.set(xscale="log", yscale="log", title=f"{weighting}, {'its usual' if grid == 'own' else 'even log-SNR'} grid")
            axis.set_xticks(CALLS, [str(calls) for calls in CALLS], minor=False)
            axis.minorticks_off()
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0, 7.0)))
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for axis in axes[1]:
        axis.set_xlabel("network calls a sample")
    for axis in axes[:, 0]:
        axis.set_ylabel("Frechet distance over the data's own")
    axes[0, 0].legend(frameon=False, fontsize=8)
    drawing.suptitle(title, fontsize=10)
    save(drawing, path)


def main() -> int:
    """Learn the tables, train what is missing, print, draw."""
    args = arguments("schedules", __doc__ or "")
    learners = [Job("learner", seed, settings(args, schedule=Cosine(T=None), loss=LearnedSchedule())) for seed in range(args.seeds)]
    tables = [tuple(found["table"]) for found in perform(learners, learn, args)["learner"]]
    found = perform(jobs(args, tables), partial(run, measure=measure), args)
    keys = ["bits", *(f"{grid} {calls}" for grid in ("own", "log-snr") for calls in CALLS)]
    scores = {name: {key: mean(column(rows, key)) for key in keys} for name, rows in found.items()}
    print(table(scores))
    if args.figure:
        figure(found, args.figure, about(args))
    print(json.dumps(finite(scores)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
