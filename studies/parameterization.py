"""Table 2 of Ho et al. (2020, arXiv:2006.11239) on a small scale: what the network predicts, by which loss, with which variance.

    python studies/parameterization.py --figure docs/studies/parameterization.png

Rows: the mean of the reverse step (mu~), x0, eps, v. Columns: the bound with a fixed and with a learned variance, the plain mean squared
error of what is predicted (of eps: L_simple), and L_simple with a learned variance (hybrid). Ho's linear chain of 1000 steps; samples by
100 ancestral steps. With mu~ a learned variance is not there: the package refuses it. Ho's table has the values of CIFAR-10 at 800,000
steps, with the variance learned by another rule; here only the order of the rows and columns can be compared.

The last line is JSON: the Frechet distance and bits per dimension of every cell, mean and standard error over the seeds.
"""

from __future__ import annotations

import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

from common import TESTS, Found, Job, World, about, arguments, column, distance, finite, mean, perform, run, save, settings, table

from ddpm.denoiser import Denoiser
from ddpm.denoiser.parameterization import X0, Eps, Parameterization, PosteriorMean, V
from ddpm.likelihood import discrete
from ddpm.objective import Denoising, Hybrid, LossSettings, VariationalBound
from ddpm.objective.weighting import Target
from ddpm.process import Linear
from ddpm.sampling import Ancestral

ROWS: dict[str, Parameterization] = {"mu~": PosteriorMean(), "x0": X0(), "eps": Eps(), "v": V()}
COLUMNS: dict[str, LossSettings] = {
    "bound, fixed variance": VariationalBound(variance="large"),
    "bound, learned variance": VariationalBound(variance="learned"),
    "plain error, fixed variance": Denoising(weighting=Target()),
    "L_simple, learned variance": Hybrid(),
}
STEPS = 100  # of ancestral sampling


def measure(job: Job, model: Denoiser, here: World) -> Found:
    """The distance of ancestral samples, and the bound of the whole chain with the same reverse variance."""
    variance: Any = "learned" if job.config.loss.learned_variance else "large"
    x0 = model.codec.encode(here.test[:TESTS]).float()  # pyright: ignore[reportOptionalMemberAccess]
    bound = discrete(model, x0, variance=variance, terms=30, draws=2).scores.bits_per_dim(x0[0].numel()).mean()[0]
    return {"frechet": distance(model, here, STEPS, Ancestral(variance=variance)), "bits": bound if math.isfinite(bound) else math.inf}


def jobs(args: Any) -> list[Job]:
    """Every cell of the table that there is, for every seed."""
    return [
        Job(f"{row}: {column}", seed, settings(args, schedule=Linear(T=1000), parameterization=kind, loss=loss))
        for row, kind in ROWS.items()
        for column, loss in COLUMNS.items()
        if not (isinstance(kind, PosteriorMean) and loss.learned_variance)
        for seed in range(args.seeds)
    ]


def figure(found: dict[str, list[Found]], path: Path, title: str) -> None:
    """The two scores of every cell, a colour for each row, its seeds as points."""
    import matplotlib.pyplot as plt

    drawing, axes = plt.subplots(1, 2, figsize=(11.0, 4.2), layout="constrained")
    for axis, key, said in zip(axes, ("frechet", "bits"), ("Frechet distance over the data's own", "bits/dim, at most"), strict=True):
        for place, head in enumerate(COLUMNS):
            for index, row in enumerate(ROWS):
                rows = found.get(f"{row}: {head}")
                if rows is None or not all(math.isfinite(value) for value in column(rows, key)):
                    continue
                value, error = mean(column(rows, key))
                where = place + 0.15 * (index - 1.5)
                axis.errorbar(where, value, yerr=error, fmt="o", color=f"C{index}", capsize=3, label=row if not place else None)
                axis.plot([where + 0.05] * len(rows), column(rows, key), ".", color=f"C{index}", alpha=0.5, markersize=3)
        axis.set(yscale="log", ylabel=said)
        axis.set_xticks(range(len(COLUMNS)), [head.replace(", ", ",\n") for head in COLUMNS], fontsize=8)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_formatter(lambda value, _: f"{value:g}")
        axis.tick_params(axis="y", which="minor", labelsize=7)
    axes[0].legend(frameon=False, fontsize=8)
    drawing.suptitle(title, fontsize=10)
    save(drawing, path)


def main() -> int:
    """Train what is missing, print, draw."""
    args = arguments("parameterization", __doc__ or "")
    found = perform(jobs(args), partial(run, measure=measure), args)
    scores = {name: {key: mean(column(rows, key)) for key in ("frechet", "bits")} for name, rows in found.items()}
    print(table(scores))
    if args.figure:
        figure(found, args.figure, about(args))
    print(json.dumps(finite(scores)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
