"""Which recipe reaches a held-out loss with the fewest images? Ours against AdamW at its best of five learning rates, on the digits.

    python benchmarks/recipe.py                                  what is compared: about 90 minutes of one quiet core
    python benchmarks/recipe.py --runs "muon 0.004 linear 600"   other candidates, as kind, lr, decay, steps and settings batch=32...
    python benchmarks/recipe.py --known                          the table of what the folder already holds
    python benchmarks/recipe.py --figure docs/recipe.png

Every run has the digits recipe's network, process, loss and rule of weight averaging (width 0.1) and its split: a tenth of the 1,797 digits
is held out. The batch is the recipe's 64 unless a candidate names another: images are counted, not steps. The loss is |eps - eps_hat|^2 per
pixel of the averaged weights, on all held-out digits at 16 log-SNR levels evenly from -6 to 6 (the middle 94 % of the cosine schedule),
with the same noise for every run.

AdamW has a warm-up of 5 % of its run and the best of five rates: constant and with a cosine to 0 in batches of 64, and with the cosine in
batches of 16, which are ours too: three rivals. What is chosen, theirs and ours, is chosen with seed 0; seeds 1, 2 and 3 judge. The target
is the lowest loss that a rival reaches within its budget; images are counted until a curve first reaches it, between two measurements by a
straight line.

Scores are kept in --folder and not measured again. The last line is JSON: for each rival its name, target_loss, images_adamw, images_ours
and their ratio on the mean curve of the seeds, and the ratio of each seed by itself.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm.config import Layer, from_dict, resolve
from ddpm.data import open_data
from ddpm.data.dataset import Dataset
from ddpm.denoiser import NetworkDenoiser
from ddpm.random import generator
from ddpm.training import FAMILIES, OptimizerSettings, TrainConfig, load, train
from ddpm.training.checkpoints.storage import replace_text
from ddpm.training.recipes import recipe

LEVELS = torch.linspace(-6.0, 6.0, 16, dtype=torch.float64)
ADAMW = ("none 900", "cosine 900", "cosine 3600 batch=16")  # each 57,600 images, the digits recipe's
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
OURS = "muon 0.006 linear 2400 batch=16 momentum=0.9"
JUDGES = (1, 2, 3)  # seeds; 0 is the one that choices are made with
EVERY = 50  # steps between two measurements
Curve = list[tuple[int, float]]


@torch.no_grad()
def eps_error(denoiser: NetworkDenoiser, data: Dataset) -> float:
    """Mean |eps - eps_hat|^2 per pixel over the held-out samples and the levels."""
    raw, values = data.batch(data.held_rows)
    assert denoiser.codec is not None
    x0, process = denoiser.codec.encode(torch.from_numpy(raw)).float(), denoiser.process
    cond = {key: torch.from_numpy(value) for key, value in values.items()}
    errors: list[float] = []
    for index, t in enumerate(process.time_of(LEVELS)):
        eps = torch.from_numpy(generator(0, "evaluate", index).standard_normal(tuple(x0.shape), dtype=np.float32))
        at = process.at(t.repeat(len(x0)), like=x0)
        errors.append((eps - denoiser(process.perturb(x0, eps, at), at, cond).eps).square().mean().item())
    return statistics.fmean(errors)


def settings(name: str, folder: Path, seed: int) -> TrainConfig:
    """The digits recipe with another optimizer: `kind lr decay steps key=value ...`, where a key is of the optimizer, or `batch`."""
    kind, lr, decay, steps, *more = name.split()
    extra = dict(word.split("=") for word in more)
    base = resolve(TrainConfig, [Layer("recipe digits", recipe("digits"))], FAMILIES)
    batch = int(extra.pop("batch", base.batch))
    about = {"kind": kind, "lr": lr, "decay": decay, "warmup": str(round(0.05 * int(steps))), **extra}
    optimizer = from_dict(OptimizerSettings, about, text=True)
    every = max(1, EVERY * base.batch // batch)
    return replace(
        base, optimizer=optimizer, steps=int(steps), batch=batch, seed=seed, out=str(folder), preview=0, threads=1,
        checkpoint_every=every, evaluate_every=int(steps), log_every=every, keep=1000,
    )  # fmt: skip


class Study:
    """The data, and the curves so far."""

    def __init__(self, folder: Path, known: bool) -> None:
        self.folder, self.only_known = folder, known
        self.data = open_data(resolve(TrainConfig, [Layer("recipe digits", recipe("digits"))], FAMILIES).data)
        self.path = folder / "curves.json"
        self.kept: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def curve(self, name: str, seed: int) -> Curve | None:
        """Images seen and held-out loss, at every measurement; None where it is not known and may not be found out."""
        key = f"{name} seed {seed}"
        if key not in self.kept and not self.only_known:
            began, run = time.perf_counter(), self.folder / key.replace(" ", "_")
            config = settings(name, run, seed)
            if code := train(config, data=self.data, quiet=True).code:
                raise SystemExit(code)  # interrupted; the run is saved, and the next call resumes it
            trained = time.perf_counter() - began
            steps = sorted(int(path.name[5:]) for path in run.glob("step-*"))
            points = [(step * config.batch, eps_error(load(run, step=step), self.data)) for step in steps]
            self.kept = {**self.kept, key: {"points": points, "seconds": round(trained, 1)}}
            replace_text(self.path, json.dumps(self.kept, indent=1) + "\n")
            shutil.rmtree(run)
            print(f"{key}: lowest {min(y for _, y in points):.5f}, last {points[-1][1]:.5f}, {trained:.0f} s", flush=True)
        return [(int(x), float(y)) for x, y in self.kept[key]["points"]] if key in self.kept else None


def lowest(curve: Curve) -> float:
    """The best loss on a curve."""
    return min(y for _, y in curve)


def images_to(curve: Curve, target: float) -> float:
    """Images until the curve first reaches the target, by a straight line between two measurements; infinite where it does not."""
    before: tuple[int, float] | None = None
    for x, y in curve:
        if y <= target:
            return float(x) if before is None else before[0] + (x - before[0]) * (before[1] - target) / (before[1] - y)
        before = x, y
    return float("inf")


def best_adamw(study: Study, how: str) -> str:
    """AdamW's best of the five rates with the first seed."""
    curves = {name: curve for lr in RATES if (curve := study.curve(name := f"adamw {lr:g} {how}", 0))}
    return min(curves, key=lambda name: lowest(curves[name]))


def mean_curve(curves: list[Curve]) -> Curve:
    """The mean loss of several runs wherever all of them were measured."""
    seen = [dict(curve) for curve in curves]
    return [(x, statistics.fmean(one[x] for one in seen)) for x in sorted(set.intersection(*map(set, seen)))]


def against(theirs: list[Curve], mine: list[Curve]) -> dict[str, Any]:
    """How many times fewer images ours needs, on the mean curves and seed by seed; None where the target is not reached."""
    goal = mean_curve(theirs)
    images = images_to(goal, target := lowest(goal)), images_to(mean_curve(mine), target)
    ratios = [images_to(one, lowest(one)) / images_to(other, lowest(one)) for one, other in zip(theirs, mine, strict=True)]
    spread = [[round(lowest(curve), 5) for curve in curves] for curves in (theirs, mine)]
    return {
        "target_loss": round(target, 5), "images_adamw": images[0], "images_ours": images[1] if math.isfinite(images[1]) else None,
        "ratio": round(images[0] / images[1], 3) or None, "ratios": [round(ratio, 3) or None for ratio in ratios],
        "lowest_adamw": spread[0], "lowest_ours": spread[1],
    }  # fmt: skip


def report(study: Study, rivals: list[str], ours: str) -> None:
    """Every run of seed 0 in a table, the comparison with each rival, and the JSON line."""
    known = {key.removesuffix(" seed 0"): value["points"] for key, value in study.kept.items() if key.endswith(" seed 0")}
    goal = min(lowest(known[name]) for name in rivals)
    print(f"{'kind lr decay steps':56s} {'images':>7s} {'lowest':>8s} {'last':>8s} {'images to ' + format(goal, '.4f'):>16s}")
    for name, points in sorted(known.items(), key=lambda entry: lowest(entry[1])):
        print(f"{name:56s} {points[-1][0]:7d} {lowest(points):8.5f} {points[-1][1]:8.5f} {images_to(points, goal):16.0f}")
    results: list[dict[str, Any]] = []
    for rival in rivals:
        pairs = [(study.curve(rival, seed), study.curve(ours, seed)) for seed in JUDGES]
        both = [(theirs, mine) for theirs, mine in pairs if theirs and mine]
        if both:
            results.append({"adamw": rival, **against([theirs for theirs, _ in both], [mine for _, mine in both])})
            print("; ".join(f"{key} {value}" for key, value in results[-1].items()))
    print(json.dumps({"ours": ours, "seeds": list(JUDGES), "against": results}))


def figure(study: Study, rivals: list[str], ours: str, path: Path) -> None:
    """Held-out loss against images: the best run of each kind, and every seed of those that are compared."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, axes = pyplot.subplots(figsize=(7.0, 4.5))
    firsts = {key.removesuffix(" seed 0"): value["points"] for key, value in study.kept.items() if key.endswith(" seed 0")}
    shown = dict(zip([*rivals, ours], ("0.7", "0.45", "0.15", "C3"), strict=True))
    for kind, colour in (("muon", "C1"), ("schedule-free", "C0")):
        names = sorted((name for name in firsts if name.startswith(kind) and name not in shown), key=lambda name: lowest(firsts[name]))
        shown |= dict.fromkeys(names[:1], colour)
    for name, colour in shown.items():
        bold = name in (*rivals, ours)
        for key in (key for key in study.kept if key.startswith(f"{name} seed ")):
            points = [point for point in study.kept[key]["points"] if point[1] < 0.26]
            label = name if key.endswith(f" seed {JUDGES[0] if bold else 0}") else None
            axes.plot(
                [x for x, _ in points], [y for _, y in points], color=colour, lw=1.6 if bold else 1.0, ls="-" if bold else "--", label=label
            )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:.2f}")
    axes.yaxis.set_minor_formatter("{x:.2f}")
    axes.set_xlabel("images seen in training")
    axes.set_ylabel("held-out loss, 16 log-SNR levels")
    axes.legend(frameon=False, title="optimizer, rate, decay, steps")
    picture.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(picture)
    print(path)


def main() -> int:
    """Train what is not known yet, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/recipe"), help="scores, and unfinished runs")
    parser.add_argument("--runs", default="", help="candidates to train with the first seed, comma-separated; then stop")
    parser.add_argument("--ours", default=OURS, help="the candidate that is compared with AdamW")
    parser.add_argument("--known", action="store_true", help="train nothing")
    parser.add_argument("--figure", type=Path, default=None)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    study = Study(args.folder, args.known)
    if args.runs:
        for name in args.runs.split(","):
            study.curve(name.strip(), 0)
        return 0
    rivals = [best_adamw(study, how) for how in ADAMW]
    report(study, rivals, args.ours)
    if args.figure:
        figure(study, rivals, args.ours, args.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
