"""The figure of forecast.py: one forecast as maps at every lead, and the scores of all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ddpm.data.fields import HOUR, Record
from ddpm.denoiser.fields import Fields

COLOURS = {"model": "C0", "regression": "C1", "climatology": "C2", "persistence": "C3", "expected": "C4", "truth": "black"}
SHOWN = 3  # members


def figure(record: Record, about: Fields, seeds: list[dict[str, Any]], case: dict[str, np.ndarray], path: Path) -> None:
    """Rows of maps, a lead each (truth, members, their mean and spread, its error), above CRPS by lead, ranks and spectra."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    row, leads = int(case["row"]), about.leads
    drawing = plt.figure(figsize=(13.5, 2.15 * len(leads) + 3.8), layout="constrained")
    halves: Any = drawing.subfigures(2, 1, height_ratios=[2.15 * len(leads), 3.6])
    above, below = halves
    columns = ["truth", *(f"member {k + 1}" for k in range(SHOWN)), "mean", "spread", "error of the mean"]
    axes: Any = above.subplots(len(leads), len(columns))
    west, east = about.columns.values[0], about.columns.values[-1]
    south, north = about.rows.values[-1], about.rows.values[0]
    for k, lead in enumerate(leads):
        target = int(record.row(record.seconds[row : row + 1] + round(lead * HOUR))[0])
        real, members = record.values[target, 0], case["members"][k][:, 0]
        mean, spread = members.mean(0), members.std(0, ddof=1)
        low, high = min(real.min(), members[:SHOWN].min()), max(real.max(), members[:SHOWN].max())
        wide, reach = spread.max(), np.abs(mean - real).max()
        panels = [(real, low, high, "turbo"), *((one, low, high, "turbo") for one in members[:SHOWN]), (mean, low, high, "turbo")]
        panels += [(spread, 0.0, wide, "viridis"), (mean - real, -reach, reach, "RdBu_r")]
        for axis, name, (field, least, most, colours) in zip(axes[k], columns, panels, strict=True):
            shown = axis.imshow(field, vmin=least, vmax=most, cmap=colours, extent=(west, east, south, north), aspect="auto")
            axis.set(xticks=[], yticks=[])
            if not k:
                axis.set_title(name, fontsize=9)
            if name in ("truth", "mean", "spread", "error of the mean"):
                above.colorbar(shown, ax=axis, fraction=0.05, pad=0.02).ax.tick_params(labelsize=6)
        axes[k][0].set_ylabel(f"+{lead:g} h", fontsize=9)
    above.suptitle(
        f"{about.long_names[0] or about.names[0]} ({about.units[0]}), started {record.said(row)}, which training had not seen", fontsize=10
    )
    _scores(below, about, seeds)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=100)
    plt.close(drawing)
    print(path)


def _scores(below: Any, about: Fields, seeds: list[dict[str, Any]]) -> None:
    """CRPS by lead with a dot a seed, the ranks of the truth at every lead, and the spectra at the last."""
    left, middle, right = below.subplots(1, 3)
    keys = list(seeds[0]["scores"])
    for name in ("persistence", "climatology", "expected", "regression", "model"):
        values = np.array([[one["scores"][key].get(name, {}).get("crps", np.nan) for key in keys] for one in seeds])
        left.plot([float(key) for key in keys], values.mean(0), "-", color=COLOURS[name], label=name)
        for some in values:
            left.plot([float(key) for key in keys], some, "o", markersize=3, color=COLOURS[name])
    left.set(xlabel="lead (h)", ylabel=f"CRPS ({about.units[0]})", ylim=(0, None), title="lower is better; of one member: MAE")
    left.legend(frameon=False, fontsize=8)
    for key in keys:
        ranks = np.mean([one["scores"][key]["model"]["ranks"] for one in seeds], axis=0)
        middle.plot(np.linspace(0.0, 1.0, len(ranks)), ranks * len(ranks), drawstyle="steps-mid", label=f"+{key} h")
    middle.axhline(1.0, color="black", linewidth=0.8)
    middle.set(xlabel="rank of the truth among the members", ylabel="frequency", ylim=(0, 4), title="flat: members and truth are alike")
    middle.legend(frameon=False, fontsize=8)
    for name in ("truth", "model", "regression"):
        power = np.mean([one["spectrum"][name][-1] for one in seeds], axis=0)[1:]
        right.loglog(np.arange(1, len(power) + 1), power, color=COLOURS[name], label=name)
    right.set(xlabel="wave number", ylabel="power", title=f"spectrum at +{about.leads[-1]:g} h")
    right.legend(frameon=False, fontsize=8)
