"""The digits part of distillation.py: a teacher, its students and its solvers, each in a process of its own; what is found is kept."""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from distillation_figure import figure
from torch import Tensor

from ddpm.config import Layer, resolve
from ddpm.data import open_data
from ddpm.denoiser import NetworkDenoiser
from ddpm.distillation import Consistency, ContinuousConsistency, Distillation, DistillConfig, Matching, Progressive, distill
from ddpm.errors import ConfigError
from ddpm.evaluation.extractors import Learned
from ddpm.metrics import Estimate, Frechet, Moments
from ddpm.process import Grid, Level, LogSNR, Trailing
from ddpm.random import generator
from ddpm.sampling import DDIM, PRESETS, Ancestral, Sampler, sample, steps_for
from ddpm.training import FAMILIES, Finished, TrainConfig, load, train
from ddpm.training.checkpoints.checkpoint import newest
from ddpm.training.checkpoints.storage import replace_text
from ddpm.training.config import OptimizerSettings
from ddpm.training.recipes import recipe

METHODS: dict[str, Distillation] = {
    "progressive": Progressive(),
    "consistency": Consistency(),
    "consistency, from data": Consistency(source="data"),
    "continuous": ContinuousConsistency(),
    "continuous, from data": ContinuousConsistency(source="data"),
    "matching": Matching(),
}
PASSES = {"progressive": 5, "consistency": 6, "consistency, from data": 4, "continuous": 8, "continuous, from data": 6, "matching": 7}
RATES = {Progressive: 2e-3, Consistency: 1e-4, ContinuousConsistency: 1e-4, Matching: 5e-5}  # learning rates; higher ones are far worse
FEW = 2000  # updates below which consistency goes through 4 stages instead of 7, and the continuous one begins in finite steps
SHARE = 8  # a student makes an eighth of the teacher's passes, which in batches of half the size is up to a fifth of the time
COUNTS = (1, 2, 4)  # steps of students
CALLS = (1, 2, 4, 8, 16, 32)  # of solvers; beyond 16 DDIM alone
SOLVERS: dict[str, Sampler] = {"ddim": DDIM(), **{one.name: one.value for one in PRESETS if one.name in ("dpm++2m", "unipc", "adams")}}
GRIDS: dict[str, Grid] = {"trailing": Trailing(), "level": Level(), "log-SNR": LogSNR()}
TIMED, TURNS = (20, 140), 3  # updates of two runs whose difference gives the time of an update, and how often
BLOCK = 1000  # samples of the chain that are one job
Rows = dict[str, dict[str, Any]]
Job = Callable[[], Rows]
SAME = ("teacher_steps", "student_batch", "lr", "fine", "reference", "n", "seed")  # what rows of one folder have in common


def settings(args: argparse.Namespace) -> TrainConfig:
    """The teacher: the digits recipe, for longer."""
    base = resolve(TrainConfig, [Layer("recipe digits", recipe("digits"))], FAMILIES)
    return replace(
        base, out=str(args.folder / "teacher"), steps=args.teacher_steps, preview=0, monitor=False, threads=args.threads, seed=args.seed
    )


class Student(NamedTuple):
    """A run of a method for a number of steps."""

    method: str
    steps: int
    config: DistillConfig

    @property
    def key(self) -> str:
        """Of its row."""
        return f"{self.method}, {self.steps}"


def students(args: argparse.Namespace, name: str) -> Iterator[Student]:
    """The runs of a method, one for each number of steps. Each makes the same share of the teacher's passes."""
    method, teacher = METHODS[name], settings(args)
    for steps in COUNTS:
        rounds = int(math.log2(args.fine // steps)) if isinstance(method, Progressive) else None
        updates = max(1, teacher.steps * 3 * teacher.batch // (SHARE * args.student_batch * PASSES[name] * (rounds or 1)))
        if isinstance(method, Consistency) and updates < FEW:
            method = replace(method, stages=4)
        if isinstance(method, ContinuousConsistency) and updates < FEW:
            method = replace(method, finite=0.5)
        optimizer = OptimizerSettings(lr=args.lr or RATES[type(method)], warmup=min(20, updates // 5), decay="cosine")
        folder = f"{name.replace(', ', '-').replace(' ', '-')}{steps}"
        yield Student(name, steps, DistillConfig(
            method=method, steps=steps, rounds=rounds, updates=updates, batch=args.student_batch, preview=0, optimizer=optimizer,
            out=str(args.folder / folder), threads=args.threads, seed=args.seed, checkpoint_every=updates, cond_dropout=0.0,
        ))  # fmt: skip


class Judge:
    """The distance of samples of the digits to the training digits, classes in the very shares of these, so that which classes were drawn
    by chance moves no row; every group of the correction and of the interval then has these shares too.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, data = args, open_data(settings(args).data)
        self.extractor = Learned.of(data, cache=args.folder, say=print)
        rows = data.train_rows[generator(0, "order").permutation(len(data.train_rows))]
        self.train = self.extractor.features(torch.from_numpy(data.batch(rows)[0]))
        self.classes = torch.from_numpy(np.asarray(data.cond["class"])[rows])

    def asked(self, first: int, count: int) -> Tensor:
        """The classes of samples first, ..., (count,)."""
        return self.classes[torch.arange(first, first + count) % len(self.classes)]

    def draw(self, denoiser: Any, first: int = 0, most: int | None = None, **how: Any) -> Tensor:
        """Samples number first, ..., at most so many of them; they do not depend on how many there are."""
        count: int = min(self.args.n - first, most or self.args.n)
        return sample(denoiser, count, first=first, cond={"class": self.asked(first, count)}, seed=self.args.seed, batch=500, **how)

    def distance(self, features: Tensor, classes: Tensor) -> Estimate:
        """Of features, of which these are the classes."""
        metric = Frechet(features.shape[1])
        metric.update(features[classes.argsort(stable=True)])
        return metric.result(Moments.of(self.train))

    def row(self, samples: Tensor, **about: Any) -> dict[str, Any]:
        """The distance with its interval, None where there are too few samples for one, and what is to be kept beside it."""
        found = self.distance(self.extractor.features(samples), self.asked(0, len(samples)))._asdict()
        return {**{key: value if math.isfinite(value) else None for key, value in found.items()}, **about}

    def floor(self) -> Estimate:
        """Of training digits drawn anew within their classes: what a perfect model of them would get."""
        asked, chance = self.asked(0, self.args.n), generator(self.args.seed, "evaluate")
        places = [np.flatnonzero(self.classes.numpy() == number) for number in range(10)]
        return self.distance(self.train[[chance.choice(places[k]) for k in asked.tolist()]], asked)


def ended(finished: Finished) -> NetworkDenoiser:
    """What a run came to; RuntimeError where it was stopped."""
    if finished.code:
        raise RuntimeError(f"{finished.run}: stopped; the same call goes on")
    return finished.denoiser


def taught(args: argparse.Namespace) -> Rows:
    """Train the teacher, or go on; the CPU seconds of the whole, by those of the steps done now where it went on."""
    saved = newest(args.folder / "teacher")
    left = 1.0 - (saved.step if saved else 0) / args.teacher_steps
    began = time.process_time()
    ended(train(settings(args), quiet=True))
    return {"teacher": {"seconds": round((time.process_time() - began) / left, 1) if left else None, "steps": args.teacher_steps}}


def costs(args: argparse.Namespace) -> dict[str, float]:
    """The CPU time of each student's whole training over the teacher's: the times of an update, medians of short runs made in turns, so
    that other work on the machine slows all of them alike.
    """
    folder, whole, found = args.folder / "timed", settings(args), dict[str, list[float]]()
    last = {name: list(students(args, name))[-1].config for name in args.methods}  # of progressive the one of fewest rounds

    def short(name: str, updates: int) -> float:
        shutil.rmtree(folder, ignore_errors=True)
        began = time.process_time()
        if name == "teacher":
            ended(train(replace(whole, steps=updates, out=str(folder)), quiet=True))
        else:
            ended(distill(args.folder / "teacher", replace(last[name], updates=updates, out=str(folder)), quiet=True))
        return time.process_time() - began

    for _ in range(TURNS):
        for name in ("teacher", *args.methods):
            less, more = (short(name, updates) for updates in TIMED)
            found.setdefault(name, []).append((more - less) / (TIMED[1] - TIMED[0]))
            print(f"{name}: {found[name][-1]:.4f} s an update", flush=True)
    shutil.rmtree(folder)
    middle = {name: sorted(times)[TURNS // 2] for name, times in found.items()}
    shares = {name: last[name].updates * middle[name] / (whole.steps * middle["teacher"]) for name in args.methods}
    for name, share in shares.items():
        print(f"{name:<32} {share:.3f} of the teacher's CPU time")
    return shares


def chain(args: argparse.Namespace, first: int) -> Rows:
    """Samples of the teacher's own chain, kept in the folder."""
    samples = Judge(args).draw(load(args.folder / "teacher"), first, BLOCK, steps=args.reference, sampler=Ancestral())
    np.save(args.folder / f"chain-{first}.npy", samples.numpy())
    return {}


def solved(args: argparse.Namespace, calls: int) -> Rows:
    """The teacher by every solver on every grid that has a plan of so many calls."""
    judge, teacher, rows = Judge(args), load(args.folder / "teacher"), dict[str, dict[str, Any]]()
    for name, solver in SOLVERS.items():
        for place, grid in GRIDS.items():
            if calls > 16 and name != "ddim":
                continue
            began = time.process_time()
            try:
                samples = judge.draw(teacher, steps=steps_for(solver, calls), sampler=solver, grid=grid)
            except ConfigError:
                continue
            drawn = round(time.process_time() - began, 1)
            rows[f"{name} on {place}, {calls}"] = judge.row(samples, calls=calls, seconds=drawn, share=None, kind="solver")
    return rows


def distilled(args: argparse.Namespace, one: Student, seconds: float | None) -> Rows:
    """Distil, draw and score; what was cut short begins again, so that its cost is that of the whole."""
    shutil.rmtree(str(one.config.out), ignore_errors=True)
    began = time.process_time()
    denoiser = ended(distill(args.folder / "teacher", one.config, quiet=True))
    cost, judge = time.process_time() - began, Judge(args)
    about = {"seconds": round(cost, 1), "share": round(cost / seconds, 3) if seconds else None, "kind": one.method}
    return {one.key: judge.row(judge.draw(denoiser, steps=one.steps), calls=one.steps, **about)}


class Kept:
    """The rows of a folder, written as they are found; SystemExit where the folder is of other settings."""

    def __init__(self, args: argparse.Namespace) -> None:
        args.folder.mkdir(parents=True, exist_ok=True)
        self.path, about = args.folder / "rows.json", {**{key: getattr(args, key) for key in SAME}, "students": "made for their steps"}
        held = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {"about": about, "rows": {}}
        if held["about"] != about:
            raise SystemExit(f"{self.path}: is of {held['about']}, not {about}; use another --folder")
        self.held, self.rows = held, held["rows"]

    def add(self, rows: Rows) -> None:
        """Remember on disk."""
        self.rows.update(rows)
        replace_text(self.path, json.dumps(self.held, indent=1) + "\n")


def jobs(args: argparse.Namespace, rows: Rows) -> Iterator[Job]:
    """What is missing, the longest first."""
    if "chain" not in rows:
        yield from (partial(chain, args, k) for k in range(0, args.n, BLOCK) if not (args.folder / f"chain-{k}.npy").is_file())
    every = [one for name in args.methods for one in students(args, name)]
    yield from (partial(distilled, args, one, rows["teacher"]["seconds"]) for one in every if one.key not in rows)
    yield from (partial(solved, args, calls) for calls in reversed(CALLS) if not solvers(rows, calls))


def done(job: Job) -> Rows:
    """What a process does."""
    return job()


def solvers(rows: Rows, calls: int) -> dict[str, float]:
    """The distances of the teacher by every solver at so many calls."""
    return {name: row["value"] for name, row in rows.items() if row.get("kind") == "solver" and row["calls"] == calls}


def told(name: str, row: dict[str, Any], whole: dict[str, Any]) -> str:
    """A line of the table: the distance with its interval, that over that of the chain unless the chain may be at zero, and the cost."""
    span = "uncorrected" if row["low"] is None else f"[{row['low']:.4f}, {row['high']:.4f}]"
    ratio = f", {row['value'] / whole['value']:6.2f} times the chain's" if (whole["low"] or 0.0) > 0.0 else ""
    cost = "" if row["share"] is None else f"; {row['share']:.2f} of the teacher's CPU time"
    return f"{name:<46} {row['value']:8.4f} {span}{ratio}{cost}"


def table(args: argparse.Namespace, rows: Rows, judge: Judge) -> None:
    """The teacher's chain, its best solver at every number of calls, and the students."""
    whole = rows["chain"]
    print(f"teacher: {args.teacher_steps} steps, {rows['teacher']['seconds']} s of CPU")
    print(told(f"teacher, {args.reference} ancestral steps", rows["chain"], whole))
    floor = judge.floor()
    print(f"{'training digits drawn anew':<46} {floor.value:8.4f} [{floor.low:.4f}, {floor.high:.4f}]")
    for calls in CALLS:
        found = solvers(rows, calls)
        best = min(found, key=found.__getitem__)
        print(told(f"teacher, {best} (best of {len(found)})", rows[best], whole))
    for name in args.methods:
        for count in COUNTS:
            print(told(f"{name}, {count}", rows[f"{name}, {count}"], whole))


def digits(args: argparse.Namespace) -> Rows:
    """Every method on the digits, at one, two and four steps; what the folder knows is not done again."""
    kept, context = Kept(args), multiprocessing.get_context("spawn")

    def run(work: Iterator[Job]) -> None:
        with context.Pool(args.processes, maxtasksperchild=1) as pool:  # each job in a fresh process
            for found in pool.imap_unordered(done, work):
                kept.add(found)
                for name, row in found.items():
                    print(f"{name}: {json.dumps(row)}", flush=True)

    if "teacher" not in kept.rows:
        run(iter([partial(taught, args)]))
    judge = Judge(args)  # trains the encoder once
    run(jobs(args, kept.rows))
    if "chain" not in kept.rows:
        drawn = [torch.from_numpy(np.load(args.folder / f"chain-{k}.npy")) for k in range(0, args.n, BLOCK)]
        kept.add({"chain": judge.row(torch.cat(drawn), calls=args.reference, seconds=None, share=None, kind="chain")})
    table(args, kept.rows, judge)
    if args.figure:
        best = {calls: min(found.values()) for calls in CALLS if (found := solvers(kept.rows, calls))}
        figure(kept.rows, best, args.methods, args.reference, args.figure)
    return kept.rows
