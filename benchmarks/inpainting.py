"""Filling half of a digit nobody trained on: how near the truth, how varied, and is it still the same digit?

    python benchmarks/inpainting.py                         trains the digits recipe on the first 898 digits, fills the other writers'
    python benchmarks/inpainting.py --run runs/digits898    with a model trained so before
    python benchmarks/inpainting.py --digits 7 --fillings 2 --picture docs/inpainting.png

The lower half, or a 4x4 hole, of held-out digits is hidden; the model is not told the class. A line a method, over the hidden pixels, in
levels (0 to 16); the last line is one JSON object.
  rms       of a filling to the truth, root mean square over all fillings;  best: of the nearest filling of each digit, mean
  spread    standard deviation between the fillings of a digit;  calibration: spread over the error of their mean, 1 if they are draws of
            the true posterior (corrected for the number of fillings)
  class     share of fillings, completed by the true rest, that a classifier takes for the right digit
  passes    network calls forward + backward for each filling
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits import SPLIT, half_pixel_shifts
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sklearn.svm import SVC
from torch import Tensor

from ddpm.config import Layer, resolve
from ddpm.data import from_arrays
from ddpm.data.digits import handwritten
from ddpm.data.export import grid, save_picture
from ddpm.denoiser import Denoiser, NetworkDenoiser
from ddpm.guidance import DPS, Mask, MomentMatching, PiGDM, Projection
from ddpm.sampling import Ancestral, RePaint, Sampler, sample
from ddpm.training import FAMILIES, TrainConfig, load, train
from ddpm.training.recipes import recipe

Array = NDArray[Any]
SHOWN = 7
Made = tuple[Denoiser, Sampler, str]


@dataclass(frozen=True)
class Study:
    """What is filled, and how often."""

    model: NetworkDenoiser
    truth: Array  # (N, 1, 8, 8) levels
    labels: Array
    classifier: SVC
    fillings: int
    steps: int

    def values(self) -> Tensor:
        """Every digit, once for each filling, in the space diffused in."""
        return self.model.codec.encode(torch.from_numpy(self.truth)).repeat_interleave(self.fillings, 0)


def methods(model: NetworkDenoiser, values: Tensor, known: Tensor, steps: int) -> dict[str, Callable[[], Made]]:
    """Denoiser, sampler and network passes of each method."""
    mask = Mask(known)

    def repaint(resamples: int) -> Made:
        sampler = RePaint(values=values, known=known, jump=5, resamples=resamples)
        return model, sampler, f"{sampler.calls(steps)} + 0"

    return {
        "not told": lambda: (model, Ancestral(), f"{steps} + 0"),
        "replacement": lambda: repaint(1),
        "RePaint, jump 5, 5 times": lambda: repaint(5),
        "Projection": lambda: (Projection(model, mask, values), Ancestral(), f"{steps} + 0"),
        "PiGDM": lambda: (PiGDM(model, mask, values), Ancestral(), f"{steps} + {steps}"),
        "MomentMatching, 3 rounds": lambda: (MomentMatching(model, mask, values), Ancestral(), f"{steps} + {3 * steps}"),
        "DPS, scale 1": lambda: (DPS(model, mask, values), Ancestral(), f"{steps} + {steps}"),
        "DPS, scale 3": lambda: (DPS(model, mask, values, scale=3.0), Ancestral(), f"{steps} + {steps}"),
    }


def scores(study: Study, filled: Array, hidden: Array) -> dict[str, float]:
    """The figures of one method; filled (N, K, 64), hidden (64,)."""
    truth = study.truth.reshape(-1, 1, 64).astype(np.float64)
    off = (filled - truth)[..., hidden]
    each = np.sqrt((off**2).mean(-1))
    spread = float(np.sqrt(filled[..., hidden].var(1, ddof=1).mean()))
    of_mean = float(np.sqrt((off.mean(1) ** 2).mean()))
    found = study.classifier.predict(filled.reshape(-1, 64)).reshape(filled.shape[:2])
    return {
        "rms": float(np.sqrt((off**2).mean())),
        "best": float(each.min(1).mean()),
        "spread": spread,
        "calibration": spread * (1 + 1 / filled.shape[1]) ** 0.5 / of_mean,
        "class": float((found == study.labels[:, None]).mean()),
    }


def trained(run: Path | None, x: Array, y: Array, threads: int | None) -> NetworkDenoiser:
    """The model of a run folder, or the digits recipe trained on x and y."""
    if run is not None:
        return load(run)
    config = resolve(TrainConfig, [Layer("recipe digits", recipe("digits"))], FAMILIES)
    data = from_arrays(
        x.reshape(-1, 1, 8, 8).astype(np.uint8),
        cond={"class": y.astype(np.int64)},
        name="digits, first 898",
        classes=tuple("0123456789"),
        bins=(0, 16),
        holdout=0.0,
    )
    with tempfile.TemporaryDirectory() as folder:
        return train(replace(config, preview=0, threads=threads, out=folder), data=data, quiet=True).denoiser


def holes() -> dict[str, Tensor]:
    """What is known, (1, 8, 8), for each task."""
    known = {name: torch.ones(1, 8, 8, dtype=torch.bool) for name in ("lower half", "4x4 hole")}
    known["lower half"][:, 4:] = False
    known["4x4 hole"][:, 2:6, 2:6] = False
    return known


def sheet(sheets: list[dict[str, list[Array]]]) -> Image.Image:
    """A row a filling, named at the left, the tasks beside each other."""
    blocks: list[tuple[str, Image.Image]] = []
    for name in sheets[0]:
        gap = np.full((1, 1, 8, 8), 16)
        lines = [np.concatenate([left, gap, right]) for left, right in zip(*(shown[name] for shown in sheets), strict=True)]
        padded = np.pad(np.concatenate(lines), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=16)
        blocks.append((name, grid(padded, (0.0, 16.0), columns=len(lines[0]), width=760)))
    left, width, height = 130, blocks[0][1].width, sum(block.height + 6 for _, block in blocks)
    whole = Image.new("RGB", (left + width, height), "white")
    pen, top = ImageDraw.Draw(whole), 0
    for name, block in blocks:
        whole.paste(block, (left, top))
        pen.text((6, top + block.height // 2 - 6), name, fill="black", font=ImageFont.load_default(13))
        top += block.height + 6
    return whole


def main() -> int:
    """Fill, score, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=None, help="a run trained on the first 898 digits; trained anew by default")
    parser.add_argument("--digits", type=int, default=30, help="held-out digits, evenly among the 899")
    parser.add_argument("--fillings", type=int, default=6)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--picture", type=Path, default=None, help="write truth, hole and two fillings a method, seven digits a task")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    x, y = handwritten()
    support = SVC(C=10.0, gamma=0.002)  # pyright: ignore[reportArgumentType]  (scikit-learn's hint says str)
    classifier = support.fit(half_pixel_shifts(x[:SPLIT]), np.tile(y[:SPLIT], 5))
    rows = SPLIT + np.linspace(0, len(x) - SPLIT - 1, args.digits).astype(int)
    truth = x[rows].reshape(-1, 1, 8, 8).astype(np.uint8)
    study = Study(trained(args.run, x[:SPLIT], y[:SPLIT], args.threads), truth, y[rows], classifier, args.fillings, args.steps)
    n, values = args.digits * args.fillings, study.values()
    results: dict[str, dict[str, dict[str, float]]] = {}
    sheets: list[dict[str, list[Array]]] = []
    for task, known in holes().items():
        hidden = ~known.numpy()
        print(f"{task}, {args.digits} digits, {args.fillings} fillings each")
        results[task], shown = {}, {"truth": [truth[:SHOWN]], "given": [np.where(hidden, 8, truth[:SHOWN])]}
        for name, make in methods(study.model, values, known, args.steps).items():
            began = time.perf_counter()
            denoiser, sampler, passes = make()
            drawn = sample(denoiser, n, steps=args.steps, sampler=sampler, batch=n, seed=1).numpy()
            filled = np.where(hidden, drawn, truth.repeat(args.fillings, 0)).reshape(args.digits, args.fillings, 64)
            results[task][name] = scores(study, filled.astype(np.float64), hidden.ravel())
            line = "  ".join(f"{key} {value:.3f}" for key, value in results[task][name].items())
            print(f"  {name:26} {line}  passes {passes:9} {time.perf_counter() - began:.0f} s", flush=True)
            if name not in ("not told", "DPS, scale 1"):
                shown[name.split(",")[0]] = [filled[:SHOWN, k].reshape(-1, 1, 8, 8) for k in range(2)]
        sheets.append(shown)
    if args.picture:
        print(save_picture(sheet(sheets), args.picture))
    print(json.dumps({task: {name: {k: round(v, 4) for k, v in row.items()} for name, row in of.items()} for task, of in results.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
