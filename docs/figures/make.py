"""Draws the figures of docs/six_steps.md and renews its code blocks.

    python docs/figures/make.py            all of it
    python docs/figures/make.py --check    only say whether a code block differs from the source; exit status 1 if one does

Needs ddpm, torch and matplotlib. Every curve is exact (quadrature) but the points and paths, whose seeds are fixed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import blocks
import curves
import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ddpm.denoiser import X0, Eps, V
from ddpm.objective import Simple
from ddpm.process import Cosine, Linear, Process, Schedule, Sigmoid, Straight

FOLDER = Path(__file__).resolve().parent
PAGE = FOLDER.parent / "six_steps.md"
BLUE, ORANGE, GREEN, RED, GREY, PURPLE = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#777777", "#9b4f96"
LINEAR = Process(Linear())
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.wspace": 0.06,
}


def panels(widths: tuple[float, ...] = (1.0, 1.0), height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """A row of axes."""
    figure, axes = plt.subplots(1, len(widths), figsize=(9.0, height), gridspec_kw={"width_ratios": widths})
    return figure, list(axes)


def dress(axes: Axes, title: str, x: str, y: str) -> None:
    """Title and labels."""
    axes.set(title=title, xlabel=x, ylabel=y)


def augment() -> Figure:
    """Step 1: chains of the augmentation, and the densities they pass through."""
    figure, (left, right) = panels((1.15, 1.0))
    path = curves.walk(LINEAR, curves.draw(LINEAR, 16, seed=2))[::10, :, 0]
    t = torch.linspace(0, 1, len(path))
    for column in range(path.shape[1]):
        left.plot(t, path[:, column], color=BLUE if path[0, column] > 0 else ORANGE, linewidth=0.8, alpha=0.8)
    dress(left, "16 data and their noisier copies: paths of the chain", "t", "$x_t$")
    world = curves.mixture(LINEAR)
    x = torch.linspace(-3.5, 3.5, 501, dtype=torch.float64)[:, None]
    for level, color in zip((0.0, 0.05, 0.15, 0.3, 1.0), (BLUE, GREEN, ORANGE, RED, "black"), strict=True):
        right.plot(x[:, 0], world.log_density(x, LINEAR.at(level)).exp(), color=color, label=f"t = {level:g}")
    dress(right, "density $p_t$ of each copy", "$x_t$", "$p_t(x_t)$")
    right.legend()
    return figure


def regression() -> Figure:
    """Step 2: one regression from noise to data, against a short step."""
    figure, axes = panels((1.0, 1.0, 1.0), 3.3)
    world, x0 = curves.mixture(LINEAR), curves.draw(LINEAR, 1500, seed=7)
    rng = curves.generator(8)
    for ax, (s, t) in zip(axes, ((0.0, 1.0), (0.4, 0.5), (0.49, 0.5)), strict=True):
        now, then = LINEAR.at(t), LINEAR.at(s)
        scale, std = LINEAR.transition(then, now)
        before = LINEAR.perturb(x0, torch.randn(x0.shape, dtype=torch.float64, generator=rng), then)
        after = scale * before + std * torch.randn(x0.shape, dtype=torch.float64, generator=rng)
        ax.scatter(after, before, s=3, color=GREY, alpha=0.4, linewidths=0)
        grid = torch.linspace(-3.3, 3.3, 301, dtype=torch.float64)[:, None]
        c_x0, c_xt, _ = LINEAR.posterior(then, now)
        ax.plot(grid, c_x0 * world(grid, now).x0 + c_xt * grid, color=RED, label=r"$\mathrm{E}[x_s\,|\,x_t]$")
        left_over = 100 * curves.unexplained(LINEAR, s, t)
        dress(ax, f"from t = {t:g} to s = {s:g}\nunexplained: {left_over:.3g} % of Var $x_s$", f"$x_t$, t = {t:g}", f"$x_s$, s = {s:g}")
        ax.set(xlim=(-3.3, 3.3), ylim=(-3.3, 3.3))
    axes[0].legend(loc="upper left")
    return figure


def sharing() -> Figure:
    """Step 3: the best eps_hat as one function of x and t."""
    figure, (left, right) = panels((1.15, 1.0))
    world = curves.mixture(LINEAR)
    x = torch.linspace(-2.5, 2.5, 160, dtype=torch.float64)[:, None]
    t = torch.linspace(0.005, 1, 160, dtype=torch.float64)
    surface = torch.stack([world(x, LINEAR.at(level)).eps[:, 0] for level in t], 1)
    drawn = left.imshow(surface, extent=(0.0, 1.0, -2.5, 2.5), origin="lower", aspect="auto", cmap="RdBu_r", vmin=-3, vmax=3)
    left.contour(t, x[:, 0], surface, levels=[-2, -1, 0, 1, 2], colors="black", linewidths=0.6)
    figure.colorbar(drawn, ax=left, extend="both")
    dress(left, r"the best $\hat\epsilon(x_t, t)$", "t", "$x_t$")
    steps = [2, 3, 5, 8, 12, 20, 35, 60, 100, 160, 250, 400, 600, 800, 1000]
    for distance, color in ((1, BLUE), (10, ORANGE), (100, RED)):
        after = [step for step in steps if step > distance]
        change = [curves.change_between(LINEAR, (step - distance) / 1000, step / 1000) for step in after]
        right.loglog(
            [step / 1000 for step in after], change, color=color, marker="o", markersize=3, label=f"{distance} of 1000 levels apart"
        )
    dress(right, r"how much $\hat\epsilon$ changes between levels", "t", r"root mean square of $\hat\epsilon(x,t)-\hat\epsilon(x,s)$")
    right.legend(fontsize=8.5)
    return figure


def reduction() -> Figure:
    """Step 4: variance of the gradient of the step-wise regression, with x_s sampled and with its mean."""
    figure, (left, right) = panels()
    steps = [2, 3, 4, 6, 10, 16, 25, 40, 63, 100, 160, 250, 400, 630, 1000]
    exact = [curves.gradient_variance(LINEAR, step) for step in steps]
    seen = [curves.measured_gradient_variance(LINEAR, step) for step in steps]
    t = [step / 1000 for step in steps]
    for column, (color, label) in enumerate(((ORANGE, "$x_s$ sampled"), (BLUE, r"$x_s$ replaced by its mean given $x_t$, $x_0$"))):
        left.loglog(t, [row[column] for row in exact], color=color, label=label)
        left.loglog(t, [row[column] for row in seen], "o", color=color, markersize=4, markerfacecolor="white")
    dress(left, "T = 1000; lines: exact, circles: 4000 draws", "t", "variance of the loss's gradient")
    left.set_ylim(1e-9, 1e4)
    left.legend(loc="upper right")
    for length, color in ((10, GREEN), (100, RED), (1000, BLUE)):
        process = curves.with_steps(LINEAR, length)
        some = sorted({round(step * length / 1000) for step in steps} - {0, 1} | {2})
        ratio = [sampled / reduced for sampled, reduced in (curves.gradient_variance(process, step) for step in some)]
        right.loglog([step / length for step in some], ratio, color=color, marker="o", markersize=3, label=f"T = {length}")
    dress(right, "how many times less variance", "t", "sampled / replaced")
    right.legend()
    return figure


def gaussian() -> Figure:
    """Step 4: the Gaussian assumption, one step and a whole chain."""
    figure, axes = panels((0.85, 0.85, 1.3), 3.5)
    for ax, s in zip(axes, (0.1, 0.19), strict=False):
        y, exact, normal = curves.reverse_densities(LINEAR, s, 0.2, -0.1)
        ax.fill_between(y, exact, color=BLUE, alpha=0.35, linewidth=0, label="exact")
        ax.plot(y, normal, color=RED, label="Gaussian")
        dress(ax, f"one step, t = 0.2 to {s:g}\n({'T = 10' if s == 0.1 else 'T = 100'})", "$x_s$", r"$q(x_s\,|\,x_t = -0.1)$")
        ax.set_xlim(-2.0, 1.8)
        ax.set_ylim(0, 1.35 * float(max(exact.max(), normal.max())))
        ax.legend(loc="upper right", fontsize=8)
    lengths = (10, 20, 50, 100, 200, 500, 1000)
    last = axes[2]
    lines: tuple[tuple[curves.Variance, bool, str, str, str], ...] = (
        ("small", False, ORANGE, "o-", "small"),
        ("large", False, GREEN, "s-", "large"),
        ("analytic", False, BLUE, "D-", "analytic"),
        ("analytic", True, "black", "x:", "analytic, noise at the last step too"),
    )
    for variance, noisy_end, color, mark, label in lines:
        error = [curves.chain_error(curves.with_steps(LINEAR, length), length, variance, noisy_end=noisy_end) for length in lengths]
        last.loglog(lengths, error, mark, color=color, markersize=4, label=label)
    last.loglog((50, 1000), (0.012, 0.0006), color=GREY, linewidth=0.8, linestyle="--", label="slope -1")
    dress(last, "a whole chain of Gaussian steps", "steps T", "total variation to the data, 0 to 1")
    last.set_xticks(lengths, [str(length) for length in lengths])
    last.minorticks_off()
    last.legend(fontsize=8, loc="lower left")
    return figure


def targets() -> Figure:
    """Step 5: what the bound makes of an error in each target, how large the errors are, and what L_simple weighs."""
    figure, axes = panels((1.0, 1.0, 1.0), 3.5)
    kinds = ((X0(), ORANGE, "$x_0$"), (Eps(), BLUE, r"$\epsilon$"), (V(), GREEN, "v"))
    steps = [1, 2, 3, 4, 6, 10, 16, 25, 40, 63, 100, 160, 250, 400, 630, 800, 1000]
    for kind, color, label in kinds:
        axes[0].loglog(
            [step / 1000 for step in steps], [curves.bound_weight(LINEAR, kind, step) for step in steps], color=color, label=label
        )
        axes[1].plot(levels := torch.linspace(-10, 9, 77).tolist(), [best(kind, level) for level in levels], color=color, label=label)
    dress(axes[0], "weight of |error of F|$^2$ in the bound", "t", "weight in one step's term, T = 1000")
    dress(axes[1], "what the best prediction leaves over", "log-SNR", r"$\mathrm{E}\,|F-\hat F|^2$ (Var F = 1)")
    for schedule, color, mark in ((Linear(), BLUE, "-"), (Cosine(clip=None), PURPLE, "--")):
        process = Process(schedule)
        times = process.time_of(torch.linspace(-9.5, 7.5, 75, dtype=torch.float64))
        at = process.at(((1000 * times).ceil().unique() - 0.5) / 1000)  # between the knots of the linear table, where its slope jumps
        axes[2].semilogy(at.log_snr, Simple()(at, process), mark, color=color, label=type(schedule).__name__.lower())
    axes[2].axhline(1.0, color=GREY, linewidth=0.8)
    axes[2].text(7.5, 1.05, "the bound", color=GREY, fontsize=8.5, ha="right", va="bottom")
    dress(axes[2], "weight w of L_simple", "log-SNR", "w (the bound: 1)")
    axes[0].legend(loc="upper right")
    axes[2].legend(loc="lower center")
    axes[2].set_ylim(top=2.0)
    return figure


def best(kind: Eps | X0 | V, level: float) -> float:
    """Error of the best prediction of F at a log-SNR."""
    return curves.best_error(LINEAR, kind, LINEAR.at(LINEAR.time_of(level)))[1]


def schedules() -> Figure:
    """Step 6: log-SNR by time, and the sampler's error at equal steps."""
    figure, (left, right) = panels()
    t = torch.linspace(0.001, 0.999, 400, dtype=torch.float64)
    lengths = (5, 10, 20, 50, 100, 200)
    members: tuple[tuple[Schedule, str, str], ...] = (
        (Linear(), BLUE, "o-"),
        (Cosine(clip=None), PURPLE, "s-"),
        (Sigmoid(), GREEN, "^-"),
        (Straight(), RED, "D-"),
    )
    for schedule, color, mark in members:
        process, name = Process(schedule), type(schedule).__name__.lower()
        left.plot(t, process.log_snr(t), color=color, label=name)
        error = [curves.chain_error(curves.with_steps(process, length), length, "analytic") for length in lengths]
        right.loglog(lengths, error, mark, color=color, markersize=4, label=name)
    left.set_ylim(-14, 14)
    dress(left, "log-SNR by time", "t", r"log-SNR, $\log\,\alpha^2/\sigma^2$")
    dress(right, "error of the sampler, steps even in t", "steps", "total variation to the data, 0 to 1")
    right.set_xticks(lengths, [str(length) for length in lengths])
    right.minorticks_off()
    left.legend()
    right.legend()
    return figure


FIGURES: tuple[tuple[str, Callable[[], Figure]], ...] = (
    ("step-1-augment", augment),
    ("step-2-regression", regression),
    ("step-3-sharing", sharing),
    ("step-4-reduction", reduction),
    ("step-4-gaussian", gaussian),
    ("step-5-targets", targets),
    ("step-6-schedules", schedules),
)


def save(figure: Figure, path: Path) -> None:
    """A PNG of 160 colours, a third of the full palette's size."""
    drawn = BytesIO()
    figure.savefig(drawn, dpi=110)
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(160, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 when --check finds a stale block."""
    parser = argparse.ArgumentParser(description="Draw the figures of docs/six_steps.md and renew its code blocks.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 when a code block differs from the source")
    parser.add_argument("--only", metavar="NAME", help="draw only the figures whose name holds this")
    chosen = parser.parse_args(arguments)
    if chosen.check:
        old = blocks.stale(PAGE)
        for name in old:
            print(f"{PAGE.name}: the code of {name} is not that of the source; run python docs/figures/make.py", file=sys.stderr)
        return 1 if old else 0
    print(f"{PAGE.name}: code blocks {'renewed' if blocks.refresh(PAGE) else 'up to date'}")
    mpl.use("Agg")
    torch.set_num_threads(1)
    with mpl.rc_context(STYLE):
        for name, draw in FIGURES:
            if chosen.only is None or chosen.only in name:
                save(draw(), FOLDER / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
