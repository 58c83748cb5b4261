"""Are the samples digits, and are they new? Trains on the first 898 digits, scores against the last 899, which other people wrote.

    python benchmarks/digits.py                    three seeds with the digits recipe
    python benchmarks/digits.py --grid docs/samples.png

Printed for each seed, and as their mean in the last line, one JSON object:
  classifier_accuracy   of a classifier fitted on the real training half (half-pixel shifts added), on the real other half: how far to trust
  it
  class_accuracy        share of the samples in which that classifier finds the class that was asked for
  fd_ratio              Frechet distance, on pixels, of the samples to the other half over that of the training half to the other half
  memorisation_ratio    median distance from a sample to the nearest training digit over that from a held-out digit; well below 1: copies
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.svm import SVC

from ddpm.config import Layer, resolve
from ddpm.data import from_arrays
from ddpm.data.digits import handwritten
from ddpm.data.export import grid, save_picture
from ddpm.sampling import DDIM, Ancestral, sample
from ddpm.training import FAMILIES, TrainConfig, train
from ddpm.training.recipes import recipe

SPLIT = 898
Array = NDArray[Any]


def frechet(a: Array, b: Array) -> float:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)); rows are samples. Heusel et al., 2017, arXiv:1706.08500, eq. 6."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    roots = np.sqrt(np.clip(np.linalg.eigvals(cov_a @ cov_b).real, 0.0, None)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2.0 * roots)


def nearest(a: Array, b: Array) -> Array:
    """Euclidean distance from each row of a to the nearest row of b."""
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2.0 * a @ b.T
    return np.sqrt(np.clip(squared.min(1), 0.0, None))


def half_pixel_shifts(x: Array) -> Array:
    """The digits and their means with each of their four neighbours by one pixel."""
    padded = np.pad(x.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    moved = [padded[:, 1 + dy : 9 + dy, 1 + dx : 9 + dx].reshape(len(x), -1) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))]
    return np.concatenate([x, *(0.5 * (x + other) for other in moved)])


def main() -> int:
    """Train, draw, score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=None, help="training steps; the recipe's by default")
    parser.add_argument("--sample-steps", type=int, default=50)
    parser.add_argument("--sampler", choices=("ddim", "ancestral"), default="ddim")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--grid", type=Path, default=None, help="write the first seed's first 100 samples, ten of each class, as a picture")
    args = parser.parse_args()
    x, y = handwritten()
    train_x, train_y, other_x, other_y = x[:SPLIT], y[:SPLIT], x[SPLIT:], y[SPLIT:]
    support = SVC(C=10.0, gamma=0.002)  # pyright: ignore[reportArgumentType]  (scikit-learn's hint says str)
    classifier = support.fit(half_pixel_shifts(train_x), np.tile(train_y, 5))
    accuracy = float(classifier.score(other_x, other_y))
    fd_real, nearest_real = frechet(train_x, other_x), float(np.median(nearest(other_x, train_x)))
    data = from_arrays(
        train_x.reshape(-1, 1, 8, 8).astype(np.uint8),
        cond={"class": train_y.astype(np.int64)},
        name="digits, first 898",
        classes=tuple("0123456789"),
        bins=(0, 16),
        holdout=0.0,
    )
    config = resolve(TrainConfig, [Layer("recipe digits", recipe("digits"))], FAMILIES)
    config = replace(config, steps=args.steps or config.steps, preview=0, threads=args.threads)
    sampler = DDIM() if args.sampler == "ddim" else Ancestral()
    results: list[dict[str, float]] = []
    for seed in range(args.seeds):
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            denoiser = train(replace(config, seed=seed, out=folder), data=data, quiet=True).denoiser
        trained = time.perf_counter() - began
        drawn = sample(
            denoiser, SPLIT, steps=args.sample_steps, sampler=sampler, seed=seed, cond={"class": torch.from_numpy(train_y)}, batch=SPLIT
        ).numpy()
        flat = drawn.reshape(SPLIT, -1).astype(np.float64)
        results.append(
            {
                "classifier_accuracy": accuracy,
                "class_accuracy": float((classifier.predict(flat) == train_y).mean()),
                "fd_ratio": frechet(flat, other_x) / fd_real,
                "memorisation_ratio": float(np.median(nearest(flat, train_x))) / nearest_real,
            }
        )
        print(
            f"seed {seed}: " + "  ".join(f"{key} {value:.4f}" for key, value in results[-1].items()) + f"  trained in {trained:.0f} s",
            flush=True,
        )
        if seed == 0 and args.grid:
            first = np.concatenate([drawn[train_y == digit][:10] for digit in range(10)])
            print(save_picture(grid(first, (0.0, 16.0), columns=10), args.grid))
    print(f"{config.steps} steps of {config.batch}, {args.sampler} {args.sample_steps} steps, {torch.get_num_threads()} threads")
    print(json.dumps({key: round(sum(result[key] for result in results) / len(results), 4) for key in results[0]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
