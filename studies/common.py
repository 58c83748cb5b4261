"""What all studies share: two data sets, one small network, runs whose scores are kept, error bars.

A study is a list of jobs, each a training run of one seed with what is measured of it, a table, a figure, and a line of JSON. Scores are
kept in --folder: a study that is stopped goes on where it was, and a second call only draws.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.config import to_dict
from ddpm.data import from_arrays, open_data
from ddpm.data.dataset import Dataset, Rows, evenly
from ddpm.data.digits import handwritten
from ddpm.data.settings import DataSettings
from ddpm.denoiser import Denoiser
from ddpm.evaluation.extractors.learned import Learned
from ddpm.likelihood import continuous
from ddpm.metrics import Moments, frechet
from ddpm.networks import UNetConfig
from ddpm.process import Grid
from ddpm.random import generator
from ddpm.sampling import DDIM, Sampler, sample
from ddpm.training import OptimizerSettings, TrainConfig, train
from ddpm.training.checkpoints.storage import replace_text

NETWORK = UNetConfig(channels=20, mults=(1, 2), blocks=1, attention=(1,), dropout=0.1, groups=4)
STEPS, BATCH, SAMPLES, TESTS = 1000, 64, 898, 899
LEVELS = torch.linspace(-8.0, 12.0, 41, dtype=torch.float64)  # log-SNR
Found = dict[str, Any]


class World(NamedTuple):
    """Data to train on, and data, of other people or other pictures, to compare with: (N, *shape) in the data's own units."""

    data: Dataset
    test: Tensor
    extractor: Learned

    def features(self, samples: Tensor) -> Moments:
        """Of the encoder trained on these data."""
        return Moments.of(self.extractor.features(samples))

    def distance(self, samples: Tensor) -> float:
        """Frechet distance of `SAMPLES` samples to as many test data, over that of as many training data: 1 is as close as data are.

        Uncorrected: with equal numbers all distances have about the same bias, and their order is steadier.
        """
        test, floor = compared(self)
        return frechet(self.features(samples), test) / floor


@cache
def world(path: str | None) -> World:
    """The first 898 digits with the other 899, which other people wrote, to test on; or pictures at 16x16, a tenth of them held out."""
    if path is None:
        pictures, classes = handwritten()
        raw = pictures.reshape(-1, 1, 8, 8).astype(np.uint8)
        named: dict[str, Any] = {"classes": tuple("0123456789"), "bins": (0, 16), "holdout": 0.0}
        data = from_arrays(raw[:898], cond={"class": classes[:898].astype(np.int64)}, name="digits, first 898", **named)
        return World(data, torch.from_numpy(raw[898:]), Learned.of(data))
    data = open_data(DataSettings(data=path, size=(16, 16)))
    return World(data, torch.from_numpy(data.batch(tested(data))[0]), Learned.of(data))


def tested(data: Dataset) -> Rows:
    """`TESTS` of the rows held out, evenly and in a mixed order, so that any number of the first are of all classes: data may be sorted."""
    rows = evenly(data.held_rows, TESTS)
    return rows[generator(0, "evaluate").permutation(len(rows))]


@cache
def compared(here: World) -> tuple[Moments, float]:
    """The test data's features, and the distance of training data to them."""
    test = here.features(here.test[: SAMPLES + 1])
    rows = here.data.train_rows
    some = here.data.batch(rows[np.linspace(0, len(rows) - 1, SAMPLES).astype(np.int64)])[0]
    return test, frechet(here.features(torch.from_numpy(some)), test)


class Job(NamedTuple):
    """One run: what is trained, under which name and seed, and, in `extra`, what `measure` wants to know of it."""

    name: str
    seed: int
    config: TrainConfig
    extra: Any = None


Act = Callable[[Job, str | None], Found]  # does a job on the data at a path, None for the digits
Measure = Callable[[Job, Denoiser, World], Found]


def settings(args: argparse.Namespace, **changes: Any) -> TrainConfig:
    """The settings every run starts from: --steps steps of 64, AdamW with a cosine to 0, average of width 0.1."""
    steps = args.steps
    quiet: dict[str, Any] = {"preview": 0, "monitor": False, "track": ("none",), "evaluate_every": 10**6, "checkpoint_every": 10**6}
    optimizer = OptimizerSettings(lr=2e-3, warmup=min(100, steps), decay="cosine")
    base = TrainConfig(steps=steps, batch=BATCH, network=NETWORK, conditional=False, ema=0.1, optimizer=optimizer, threads=1, **quiet)
    return replace(base, **changes)


def trained(job: Job, data: Dataset) -> Denoiser:
    """The averaged weights after the run; nothing of it stays on disk."""
    with tempfile.TemporaryDirectory() as folder:
        return train(replace(job.config, seed=job.seed, out=folder), data=data, quiet=True).denoiser


def run(job: Job, path: str | None, measure: Measure) -> Found:
    """Train one network and measure it."""
    torch.set_num_threads(1)
    here, began = world(path), time.perf_counter()
    model = trained(job, here.data)
    middle = time.perf_counter()
    return measure(job, model, here) | {"seconds": [round(middle - began, 1), round(time.perf_counter() - middle, 1)]}


def perform(jobs: Sequence[Job], act: Act, args: argparse.Namespace) -> dict[str, list[Found]]:
    """Every job's scores by name, seeds in order: those kept are read, the others found now, in --processes processes."""
    folder = Path(args.folder) / args.study / ("digits" if args.data is None else f"{Path(args.data).name.split('.')[0]}-16x16")
    folder.mkdir(parents=True, exist_ok=True)
    paths = {job: folder / f"{key(job)}.json" for job in jobs}
    left = [job for job in jobs if not paths[job].is_file()]
    if left:
        world(args.data)  # its extractor is made once, here
        with ProcessPoolExecutor(args.processes, get_context("spawn")) as pool:
            asked = {pool.submit(act, job, args.data): job for job in left}
            for done, future in enumerate(as_completed(asked), 1):
                job, found = asked[future], future.result()
                replace_text(paths[job], json.dumps({"name": job.name, "seed": job.seed, **found}) + "\n")
                print(f"{done}/{len(left)}  {job.name}, seed {job.seed}: {_short(found)}", flush=True)
    found: dict[str, list[Found]] = {}
    for job in jobs:
        found.setdefault(job.name, []).append(json.loads(paths[job].read_text("utf-8")))
    return found


def key(job: Job) -> str:
    """A name for a job's scores, of the settings that are not the defaults: those that later versions add change nothing."""
    usual = to_dict(TrainConfig(), named=True)
    changed = {name: value for name, value in to_dict(job.config, named=True).items() if value != usual[name]}
    about = repr((job.name, job.seed, changed, job.extra, SAMPLES, TESTS, LEVELS.tolist()))
    plain = "".join(letter if letter.isalnum() else "-" for letter in job.name)
    return f"{plain}-{job.seed}-{hashlib.sha256(about.encode()).hexdigest()[:12]}"


def _short(found: Found) -> str:
    return "  ".join(f"{key} {value:.4g}" for key, value in found.items() if isinstance(value, float)) + f"  {found['seconds']} s"


@torch.no_grad()
def bits(model: Denoiser, here: World, draws: int = 8) -> float:
    """Bits per dimension of the test data by the bound of infinitely many steps, the first 899 samples."""
    x0 = model.codec.encode(here.test[:TESTS]).float()  # pyright: ignore[reportOptionalMemberAccess]
    return continuous(model, x0, draws=draws).bits_per_dim(x0[0].numel()).mean()[0]


@torch.no_grad()
def errors(model: Denoiser, here: World, count: int = 500) -> list[float]:
    """Mean |eps - eps_hat|^2 per entry of the test data at each of `LEVELS`, with the same noise for every model."""
    x0, process = model.codec.encode(here.test[:count]).float(), model.process  # pyright: ignore[reportOptionalMemberAccess]
    found: list[float] = []
    for index, t in enumerate(process.time_of(LEVELS)):
        eps = torch.from_numpy(generator(0, "evaluate", index).standard_normal(tuple(x0.shape), dtype=np.float32))
        at = process.at(t.repeat(len(x0)), like=x0)
        found.append(float((eps - model(process.perturb(x0, eps, at), at).eps).square().mean()))
    return found


def distance(model: Denoiser, here: World, steps: int, sampler: Sampler | None = None, grid: Grid | None = None, n: int = SAMPLES) -> float:
    """`World.distance` of n samples, seed 0; infinite where they are not finite."""
    drawn = sample(model, n, steps=steps, sampler=sampler or DDIM(), grid=grid, seed=0, batch=n)
    return here.distance(drawn) if bool(drawn.isfinite().all()) else math.inf


def mean(values: Iterable[float]) -> tuple[float, float]:
    """(mean, standard error) over the seeds; infinite, and unknown, where one is."""
    kept = list(values)
    if not all(map(math.isfinite, kept)):
        return math.inf, math.nan
    return statistics.fmean(kept), statistics.stdev(kept) / math.sqrt(len(kept)) if len(kept) > 1 else math.nan


def paired(one: Iterable[float], two: Iterable[float]) -> tuple[float, float]:
    """(mean, standard error) of the difference, seed by seed."""
    return mean(a - b for a, b in zip(one, two, strict=True))


def column(found: Sequence[Found], key: str) -> list[float]:
    """One score of every seed."""
    return [seed[key] for seed in found]


def table(rows: Mapping[str, Mapping[str, tuple[float, float]]], digits: int = 3) -> str:
    """Mean +- standard error, a line for each name."""
    heads = list(next(iter(rows.values())))
    wide = max(len(name) for name in rows) + 2
    lines = [" " * wide + "".join(f"{head:>20}" for head in heads)]
    for name, row in rows.items():
        cells = (f"{value:.{digits}f} +- {error:.{digits}f}" if math.isfinite(value) else "-" for value, error in row.values())
        lines.append(f"{name:<{wide}}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


def finite(rows: Mapping[str, Mapping[str, tuple[float, float]]]) -> dict[str, dict[str, tuple[float, float]]]:
    """The rows without what could not be measured, for JSON."""
    return {name: {key: value for key, value in row.items() if math.isfinite(value[0])} for name, row in rows.items()}


def about(args: argparse.Namespace) -> str:
    """The figure's title: data, and what its bars are."""
    data = "digits, 8x8" if args.data is None else f"{Path(args.data).name}, 16x16"
    return f"{data}: mean and standard error of {args.seeds} seeds"


def save(drawing: Any, path: Path) -> None:
    """Write the figure, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=130)
    print(path)


def arguments(study: str, text: str, *, seeds: int = 3) -> argparse.Namespace:
    """The flags all studies have."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=None, help="pictures to use, at 16x16, instead of the digits: such as CIFAR-10's archive")
    parser.add_argument("--folder", default="runs/studies", help="where scores are kept")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of a run")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, a thread each")
    parser.add_argument("--figure", type=Path, default=None, help=f"write the figure, such as docs/studies/{study}.png")
    args = parser.parse_args()
    args.study = study
    return args
