"""Does the detector of copies fire on a model that copies, and keep silent on one that does not?

    python benchmarks/memorisation.py                  about 20 minutes on one core

Two runs with the digits recipe. One sees 100 digits for --steps steps, without dropout, and has as many held out: it can only learn them by
heart. The other is the recipe as it is. Of each, --n samples are drawn and scored as `ddpm evaluate` does. The last line is JSON: the share
of samples nearer to training data than 99 % of held-out data are (1 % by chance), and what the detector says.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm.config import Layer, resolve
from ddpm.data import from_arrays, open_data
from ddpm.data.dataset import Dataset
from ddpm.data.digits import handwritten
from ddpm.evaluation.extractors.learned import Learned
from ddpm.evaluation.report import Evaluator
from ddpm.sampling import sample
from ddpm.training import FAMILIES, TrainConfig, train
from ddpm.training.recipes import recipe


def few(count: int) -> Dataset:
    """So many digits to train on, and so many held out, all drawn at random."""
    pictures, classes = handwritten()
    rows = np.random.default_rng(0).permutation(len(pictures))[: 2 * count]
    raw = pictures[rows].reshape(-1, 1, 8, 8).astype(np.uint8)
    named: dict[str, Any] = {"classes": tuple("0123456789"), "bins": (0, 16), "holdout": 0.5}
    return from_arrays(raw, cond={"class": classes[rows].astype(np.int64)}, name=f"{count} digits", **named)


def judged(config: TrainConfig, data: Dataset, n: int) -> dict[str, Any]:
    """Train, or go on, draw and score."""
    model = train(config, data=data).denoiser
    evaluator = Evaluator(data, Learned.of(data))
    cond = evaluator.conditions(n, 0, model.conditions, torch.device("cpu"))
    scores, _ = evaluator.scores(sample(model, n, steps=50, cond=cond, seed=0))
    assert scores.copies is not None
    return {"trained_on": len(data.train_rows), "steps": config.steps, **scores.copies._asdict(), "warnings": scores.warnings}


def main() -> int:
    """Both runs, and whether the detector is right about both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/memorisation"))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; none: as many as suit")
    args = parser.parse_args()
    base = resolve(TrainConfig, [Layer("recipe digits", recipe("digits"))], FAMILIES)
    base = replace(base, preview=0, monitor=False, threads=args.threads)
    network: Any = replace(base.network, dropout=0.0)  # pyright: ignore[reportArgumentType]
    every = {"checkpoint_every": args.steps, "evaluate_every": args.steps}
    heart = replace(base, network=network, steps=args.steps, out=str(args.folder / "heart"), **every)
    plain = replace(base, out=str(args.folder / "plain"))
    found = {"by heart": judged(heart, few(args.count), args.n), "digits": judged(plain, open_data(base.data), args.n)}
    for name, row in found.items():
        print(name, row)
    right = found["by heart"]["found"] and not found["digits"]["found"]
    print(json.dumps({"right": right, **found}))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
