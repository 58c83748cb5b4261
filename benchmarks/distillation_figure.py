"""The figure of distillation.py: quality by number of network calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MARKS = "osD^vP*X"
TICKS = (-0.01, -0.005, 0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
EVEN = 0.01  # distances below are drawn evenly, those above by their logarithm: near 0 chance makes them negative


def figure(rows: Mapping[str, Mapping[str, Any]], best: Mapping[int, float], methods: Sequence[str], reference: int, path: Path) -> None:
    """Distances: of the teacher by its own chain and by its best solver, and of every student, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator

    drawing, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    whole = rows["chain"]
    axes.plot(list(best), list(best.values()), "-", color="black", linewidth=2.2, label="teacher, best solver")
    for number, name in enumerate(methods):
        own = sorted((row for row in rows.values() if row.get("kind") == name), key=lambda row: row["calls"])
        ends = [(row["value"], row["low"] or row["value"], row["high"] or row["value"]) for row in own]
        spread = [[value - low for value, low, _ in ends], [high - value for value, _, high in ends]]
        axes.errorbar(
            [row["calls"] * 1.015 ** (number - len(methods) / 2) for row in own], [row["value"] for row in own], yerr=spread,
            fmt=MARKS[number % len(MARKS)] + "-", color=f"C{number}", label=name, markersize=4, linewidth=1.2, elinewidth=0.8,
        )  # fmt: skip
    if whole["low"] is not None:
        axes.axhspan(whole["low"], whole["high"], color="grey", alpha=0.15, linewidth=0, zorder=0)
    axes.axhline(whole["value"], color="grey", linewidth=0.8, linestyle=(0, (1, 2)), zorder=0, label=f"{reference:,} ancestral steps")
    axes.set(xscale="log", xlabel="network calls a sample", ylabel="Frechet distance")
    axes.set_yscale("symlog", linthresh=EVEN)
    axes.set_xticks(list(best), [str(calls) for calls in best])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(FixedLocator(TICKS))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"digits, {rows['chain']['samples']:,} samples a point, 95 % intervals", fontsize=10)
    axes.legend(frameon=False, fontsize=7, loc="upper right")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=130)
    plt.close(drawing)
    print(path)
