"""What guidance buys and what it costs: fidelity and variety of digits against the scale, for three kinds of guidance.

    python benchmarks/guidance.py --figure docs/guidance.png       trains model, weak model and classifier on the first 898 digits
    python benchmarks/guidance.py --run runs/digits898             takes a model that was trained on those; the other two are trained

Scored against the last 899 digits, which other people wrote. For each kind and scale, and in the last line as one JSON object:
  class_accuracy  share of the samples in which an SVM, fitted on the real training half, finds the class asked for
  fd_ratio        Frechet distance, on pixels, of the samples to the other half over that of the training half to the other half
  precision       share of the samples within reach of a real digit; recall: share of the real digits within reach of a sample
                  (k = 3, pixels; Kynkaanniemi et al., 2019, arXiv:1904.06991, eqs. 1-2)
"real" in the last line: the real training half in place of samples (the SVM has seen it, so its class_accuracy says nothing).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits import SPLIT, Array, frechet, half_pixel_shifts
from sklearn.svm import SVC

from ddpm.config import Layer, resolve
from ddpm.data import Dataset, from_arrays
from ddpm.data.digits import handwritten
from ddpm.denoiser import Denoiser, NetworkDenoiser
from ddpm.guidance import AutoGuided, Classifier, ClassifierFree, ClassifierGuided
from ddpm.sampling import sample
from ddpm.training import FAMILIES, ClassifierConfig, TrainConfig, load, train, train_classifier
from ddpm.training.recipes import recipe

SCALES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
INTERVAL = (0.3, 3.0)


def within_reach(points: Array, centres: Array, k: int = 3) -> float:
    """Share of the points (N, F) that lie in a ball round a centre (M, F) reaching to its k-th nearest other centre."""

    def distances(a: Array, b: Array) -> Array:
        return np.sqrt(np.clip((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2.0 * a @ b.T, 0.0, None))

    reach = np.sort(distances(centres, centres), axis=1)[:, k]  # the nearest is the centre itself
    return float((distances(points, centres) <= reach).any(1).mean())


class Judge:
    """The scores of 898 pictures, flat, drawn for the classes of the training half."""

    def __init__(self) -> None:
        x, y = handwritten()
        self.train_x, self.train_y, self.other_x = x[:SPLIT], y[:SPLIT], x[SPLIT:]
        support = SVC(C=10.0, gamma=0.002)  # pyright: ignore[reportArgumentType]  (scikit-learn's hint says str)
        self.svm = support.fit(half_pixel_shifts(self.train_x), np.tile(self.train_y, 5))
        self.fd_real = frechet(self.train_x, self.other_x)

    def data(self) -> Dataset:
        """The training half."""
        return from_arrays(
            self.train_x.reshape(-1, 1, 8, 8).astype(np.uint8),
            cond={"class": self.train_y.astype(np.int64)},
            name="digits, first 898",
            classes=tuple("0123456789"),
            bins=(0, 16),
            holdout=0.0,
        )

    def __call__(self, flat: Array) -> dict[str, float]:
        return {
            "class_accuracy": float((self.svm.predict(flat) == self.train_y).mean()),
            "fd_ratio": frechet(flat, self.other_x) / self.fd_real,
            "precision": within_reach(flat, self.other_x),
            "recall": within_reach(self.other_x, flat),
        }


def variants(model: NetworkDenoiser, weak: Denoiser, classifier: Classifier) -> dict[tuple[str, float], Denoiser]:
    """Every guided model that is scored; scale 1 of two kinds is the model itself, and scored once."""
    made: dict[tuple[str, float], Denoiser] = {}
    for scale in SCALES:
        made["classifier-free", scale] = ClassifierFree(model, scale)
        made["classifier", scale] = ClassifierGuided(model, classifier, scale)
        if scale != 1.0:
            made["autoguidance", scale] = AutoGuided(model, weak, scale)
    for scale in (2.0, 4.0, 8.0):
        made["classifier-free, interval", scale] = ClassifierFree(model, scale, interval=INTERVAL)
        made["classifier-free, rescale 0.7", scale] = ClassifierFree(model, scale, rescale=0.7)
    return made


def figure(results: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Three panels: accuracy and Frechet distance against the scale, precision against recall."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown, axes = plt.subplots(1, 3, figsize=(12.5, 3.9), constrained_layout=True)
    styles = {"classifier-free": ("C0", "o-"), "classifier": ("C1", "s-"), "autoguidance": ("C2", "^-")}
    styles |= {"classifier-free, interval": ("C0", "D--"), "classifier-free, rescale 0.7": ("C0", "x:")}
    for kind, (colour, style) in styles.items():
        scales = sorted(map(float, results[kind]))
        rows = [results[kind][f"{scale:g}"] for scale in scales]
        for axis, key in zip(axes, ("class_accuracy", "fd_ratio"), strict=False):
            axis.plot(scales, [row[key] for row in rows], style, color=colour, label=kind, markersize=4, linewidth=1.2)
        axes[2].plot(
            [row["recall"] for row in rows],
            [row["precision"] for row in rows],
            style,
            color=colour,
            label=kind,
            markersize=4,
            linewidth=1.2,
        )
    real = results["real"]["1"]
    axes[1].axhline(1.0, color="grey", linewidth=0.8, linestyle=(0, (1, 2)))
    axes[1].set_yscale("log")
    axes[1].set_yticks([1, 1.5, 2, 3, 4, 5], ["1", "1.5", "2", "3", "4", "5"])
    axes[1].minorticks_off()
    for axis in axes[:2]:
        axis.set_xlabel("scale: 0 unconditional or weak, 1 conditional")
    axes[2].plot(real["recall"], real["precision"], "*", color="grey", markersize=10, label="real digits")
    for axis, title in zip(axes, ("class found", "Frechet distance over real", "precision against recall"), strict=True):
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[2].set_xlabel("recall")
    axes[2].set_ylabel("precision")
    axes[2].legend(fontsize=7, frameon=False)
    shown.savefig(path, dpi=110)
    print(path)


def main() -> int:
    """Train what is missing, draw, score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default=None, help="run folder of a model trained on the first 898 digits; none: train one")
    parser.add_argument("--weak-steps", type=int, default=200, help="training steps of the weak model")
    parser.add_argument("--sample-steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kinds", default="", help="score only the kinds whose name starts so, such as classifier-free")
    parser.add_argument("--figure", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    began, judge = time.perf_counter(), Judge()
    config = resolve(TrainConfig, [Layer("recipe digits", recipe("digits"))], FAMILIES)
    config = replace(config, preview=0, threads=args.threads)
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        run = runs / "model"
        if args.run is not None:
            shutil.copytree(args.run, run)  # the classifier is kept beside the model; a borrowed run is left as it is
        else:
            train(replace(config, out=str(run)), data=judge.data(), quiet=True)
        model = load(run)
        weak = train(replace(config, steps=args.weak_steps, out=str(runs / "weak")), data=judge.data(), quiet=True).denoiser
        classifier = train_classifier(run, ClassifierConfig(steps=500, threads=args.threads), data=judge.data(), quiet=True).classifier
    print(
        f"model {args.run or 'trained here'}, weak model of {args.weak_steps} steps, classifier: {time.perf_counter() - began:.0f} s",
        flush=True,
    )
    results: dict[str, Any] = {"real": {"1": judge(judge.train_x)}}
    cond = {"class": torch.from_numpy(judge.train_y)}
    for (kind, scale), guided in variants(model, weak, classifier).items():
        if not f"{kind},".startswith(args.kinds):
            continue
        drawn = sample(guided, SPLIT, steps=args.sample_steps, seed=0, cond=cond, batch=SPLIT).numpy()
        results.setdefault(kind, {})[f"{scale:g}"] = judge(drawn.reshape(SPLIT, -1).astype(np.float64))
        row = results[kind][f"{scale:g}"]
        print(f"{kind:28s} {scale:4g}  " + "  ".join(f"{key} {value:.4f}" for key, value in row.items()), flush=True)
    if not args.kinds:
        results["autoguidance"]["1"] = results["classifier-free"]["1"]
    if args.figure:
        figure(results, args.figure)
    rounded = {kind: {scale: {k: round(v, 4) for k, v in row.items()} for scale, row in rows.items()} for kind, rows in results.items()}
    print(f"{args.sample_steps} DDIM steps, {SPLIT} samples each, {time.perf_counter() - began:.0f} s")
    print(json.dumps(rounded))
    return 0


if __name__ == "__main__":
    sys.exit(main())
