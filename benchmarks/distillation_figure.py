"""The figure of distillation.py: quality by number of network calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MARKS = "osD^vP*X"
TICKS = (0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100, 200)


def figure(rows: Mapping[str, Mapping[str, Any]], best: Mapping[int, float], methods: Sequence[str], reference: int, path: Path) -> None:
    """The distance over that of the teacher's own chain: of the teacher by its best solver, and of every student, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator

    drawing, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    whole = rows["chain"]["value"]
    axes.plot(list(best), [value / whole for value in best.values()], "-", color="black", linewidth=2.2, label="teacher, best solver")
    for number, name in enumerate(methods):
        own = sorted((row for row in rows.values() if row.get("kind") == name), key=lambda row: row["calls"])
        ends = [(row["value"], row["low"] or row["value"], row["high"] or row["value"]) for row in own]
        spread = [[(value - low) / whole for value, low, _ in ends], [(high - value) / whole for value, _, high in ends]]
        axes.errorbar(
            [row["calls"] * 1.015 ** (number - len(methods) / 2) for row in own], [row["value"] / whole for row in own], yerr=spread,
            fmt=MARKS[number % len(MARKS)] + "-", color=f"C{number}", label=name, markersize=4, linewidth=1.2, elinewidth=0.8,
        )  # fmt: skip
    axes.axhline(1.0, color="grey", linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
    axes.annotate(f"{reference:,} ancestral steps", (min(best), 1.0), xytext=(0, 3), textcoords="offset points", fontsize=7, color="grey")
    axes.set(xscale="log", yscale="log", xlabel="network calls a sample", ylabel="Frechet distance over that of the chain")
    axes.set_xticks(list(best), [str(calls) for calls in best])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(FixedLocator(TICKS))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"digits, {rows['chain']['samples']:,} samples a point, 95 % intervals", fontsize=10)
    axes.legend(frameon=False, fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=130)
    plt.close(drawing)
    print(path)
