"""Our samplers beside every scheduler of diffusers: one exact denoiser, the same starts, the error against the number of network calls.

    python benchmarks/samplers.py            about six minutes of one core
    python benchmarks/samplers.py --quick    fewer starts and grids

Mixtures 0-4 choose each method's grid (all that diffusers offers; our own families, and instants fitted by `sampler_tuning.py`), mixtures
5-9 are reported. ODE methods: root mean square to the exact end point over common starts. Stochastic ones: sliced W2 to the data. Then
where both sides claim the same formula: the largest difference on the same grid. The last line is JSON.
Needs scipy, matplotlib and diffusers; torchsde for diffusers' DPMSolverSDE.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from sampler_agreement import agreements, slopes
from sampler_ours import GRIDS, ODE, STOCHASTIC, TUNED, tuned_start
from sampler_peers import Options, Peer, ode_peers, run, stochastic_peers
from sampler_tuning import tune
from sampler_worlds import LINEAR, REPORTING, TUNING, World, walk
from torch import Tensor

from ddpm.errors import ConfigError
from ddpm.sampling import Sampler, steps_for

SETTINGS = ("1", "2", "3", "midpoint", "heun", "bh1", "bh2")  # words of a name that the figure leaves out
SETTINGS = ("1", "2", "3", "midpoint", "heun", "bh1", "bh2")  # words of a scheduler's name that the figure leaves out
BORROWED = "unipc"  # whose fitted instants the stochastic methods are tried on too: at tau = 0 sa-solver is that method
MAIN = (5, 10, 20)  # calls: the budgets of the tables
FIGURE = Path(__file__).resolve().parent.parent / "docs" / "samplers.png"


@dataclass
class Method:
    """A line of the tables: error on the reporting mixtures, and the grid that the tuning mixtures chose, by calls."""

    name: str
    ours: bool
    error: dict[int, float] = field(default_factory=dict)
    grid: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """The two sets of mixtures, the budgets and the distance."""

    choosing: World
    fitting: World
    reporting: World
    budgets: tuple[int, ...]
    stochastic: bool = False

    def error(self, world: World, x: Tensor) -> float:
        """Of end points."""
        value = world.sliced(x) if self.stochastic else world.rms(x)
        return value if math.isfinite(value) else math.inf

    def chosen(self, method: Method, nfe: int, walks: Iterable[tuple[str, Callable[[World], Tensor]]]) -> None:
        """The best grid of several on the choosing mixtures, reported; beyond the main budgets the grid of the last one stays."""
        if nfe not in MAIN:
            walks = [walk for walk in walks if walk[0] == method.grid.get(MAIN[-1])]
        scored = [(self.error(self.choosing, walk_in(self.choosing)), name, walk_in) for name, walk_in in walks]
        scored = [one for one in scored if one[0] < math.inf]
        if scored:
            _, method.grid[nfe], best = min(scored, key=lambda one: one[0])
            method.error[nfe] = self.error(self.reporting, best(self.reporting))


def of_peer(peer: Peer, bench: Bench) -> Method:
    """A scheduler on all its grids."""
    method = Method(peer.name, False)

    def on(grid: Options, nfe: int) -> Callable[[World], Tensor]:
        return lambda world: run(peer, grid, nfe, world)

    for nfe in bench.budgets:
        bench.chosen(method, nfe, [(named(grid), on(grid, nfe)) for grid in peer.grids])
    return method


def named(grid: Options) -> str:
    """Short words for a scheduler's options."""
    words = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta", "use_lu_lambdas": "lu"}
    parts = [
        words.get(key) or (value if isinstance(value, str) else f"{key}={value}") for key, value in grid.items() if key != "use_flow_sigmas"
    ]
    return " ".join(parts) or "its own"


def of_ours(name: str, sampler: Sampler, bench: Bench, fitted: Mapping[int, Tensor]) -> Method:
    """One of ours on all our grids, and on instants that were fitted to an ODE method."""
    method = Method(name, True)

    def along(times: Tensor) -> Callable[[World], Tensor]:
        return lambda world: walk(world, sampler, times)

    for nfe in bench.budgets:
        walks: list[tuple[str, Callable[[World], Tensor]]] = []
        for grid_name, times in GRIDS.items():
            try:
                walks.append((grid_name, along(times(steps_for(sampler, nfe)))))
            except ConfigError:
                continue
        if nfe in fitted and sampler.calls(nfe) == nfe:
            walks.append((f"{BORROWED}'s fitted", along(fitted[nfe])))
        bench.chosen(method, nfe, walks)
    return method


def of_tuned(name: str, sampler: Sampler, bench: Bench, rounds: int) -> tuple[Method, dict[int, Tensor]]:
    """One of ours on a grid fitted to the tuning mixtures, and the instants."""
    method, fitted = Method(f"{name}, tuned grid", True), dict[int, Tensor]()
    for nfe in bench.budgets:
        found = tune(bench.fitting, sampler, tuned_start(bench.choosing, sampler, steps_for(sampler, nfe)), rounds)
        method.error[nfe], method.grid[nfe] = bench.reporting.rms(walk(bench.reporting, sampler, found.times)), "fitted"
        fitted[nfe] = found.times
        print(f"  {name} at {nfe}: log-SNR " + " ".join(f"{value:.2f}" for value in LINEAR.log_snr(found.times)), flush=True)
    return method, fitted


def table(title: str, methods: list[Method], budgets: tuple[int, ...]) -> None:
    """Best first, by the error at the largest budget that all take part in."""
    print(f"\n{title}; {time.process_time():.0f} s of processor time so far\n")
    print("| method | " + " | ".join(f"{nfe} calls | on" for nfe in budgets) + " |")
    print("|---|" + "---:|---|" * len(budgets))
    for method in sorted(methods, key=lambda one: one.error.get(budgets[1], math.inf)):
        cells = [f"{method.error[nfe]:.4f} | {method.grid[nfe]}" if nfe in method.error else "- | -" for nfe in budgets]
        print(f"| {'**' + method.name + '**' if method.ours else method.name} | " + " | ".join(cells) + " |")
    sys.stdout.flush()


def best(methods: list[Method], nfe: int, ours: bool) -> tuple[float, str]:
    """The least error of one side."""
    return min((method.error[nfe], method.name) for method in methods if method.ours == ours and nfe in method.error)


def figure(methods: list[Method], budgets: tuple[int, ...], path: Path) -> None:
    """Error against calls: ours solid, the best of each class of diffusers thin and dashed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    drawing, axes = plt.subplots(figsize=(8.6, 5.2), constrained_layout=True)
    groups: dict[str, Method] = {}
    for method in (one for one in methods if not one.ours):
        family = " ".join(word for word in method.name.split() if word not in SETTINGS)
        group = groups.setdefault(family, Method(family, False))
        for nfe, error in method.error.items():
            group.error[nfe] = min(error, group.error.get(nfe, math.inf))
    palette = plt.get_cmap("tab20")
    for i, (name, method) in enumerate(sorted(groups.items(), key=lambda item: -item[1].error.get(budgets[-1], 0.0))):
        axes.plot(list(method.error), list(method.error.values()), "--", lw=0.9, color=palette(i % 20), label=name, marker=".", ms=3)
    ranked = sorted((one for one in methods if one.ours), key=lambda one: one.error.get(budgets[1], math.inf))
    shown = ranked[:3] + [one for one in ranked[3:] if one.name in ("DDIM", "dpm++2m", "unipc")]
    for color, method in zip(("#d55e00", "#0072b2", "#009e73", "#9b4f96", "#444444", "#e69f00"), shown):
        axes.plot(list(method.error), list(method.error.values()), "-", lw=2.2, color=color, label=f"ddpm: {method.name}", marker="o", ms=4)
    axes.set(xscale="log", yscale="log", xlabel="network calls", ylabel="RMS to the exact end point, mixtures 5-9")
    axes.set_xticks(budgets, [str(nfe) for nfe in budgets])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7.5, frameon=False, bbox_to_anchor=(1.01, 1.0), loc="upper left", title="dashed: diffusers", title_fontsize=7.5)
    drawing.savefig(path, dpi=120)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer starts, no 50 calls, no figure")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="where the figure goes")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    quick: bool = chosen.quick
    budgets = MAIN if quick else (*MAIN, 50)
    bench = Bench(
        World(TUNING, 64 if quick else 192), World(TUNING, 128 if quick else 768), World(REPORTING, 512 if quick else 4096), budgets
    )

    methods = [of_ours(name, sampler, bench, {}) for name, sampler in ODE.items()]
    print("tuned grids")
    tuning = Bench(bench.choosing, bench.fitting, bench.reporting, MAIN)
    tuned = {name: of_tuned(name, ODE[name], tuning, 4 if quick else 10) for name in TUNED}
    methods += [method for method, _ in tuned.values()]
    methods += [of_peer(peer, bench) for peer in ode_peers()]
    table("ODE methods: RMS to the exact end point, mixtures 5-9 (ours in bold)", methods, MAIN)

    noisy = Bench(World(TUNING, 128 if quick else 512), bench.fitting, bench.reporting, MAIN, stochastic=True)
    drawn = [of_ours(name, sampler, noisy, tuned[BORROWED][1]) for name, sampler in STOCHASTIC.items()]
    drawn += [of_peer(peer, noisy) for peer in stochastic_peers()]
    table("Stochastic methods: sliced W2 to the data, mixtures 5-9 (ours in bold)", drawn, MAIN)
    print(f"\nthe same distance of exact draws: {bench.reporting.sliced(bench.reporting.denoiser.draws(bench.reporting.count)):.4f}")

    agreements(World(REPORTING, 256 if quick else 1024))
    slopes()
    if not quick:
        figure(methods, budgets, chosen.figure)
    summary: dict[str, dict[str, float | str]] = {}
    for nfe in MAIN:
        (our_error, our_name), (their_error, their_name) = best(methods, nfe, True), best(methods, nfe, False)
        summary[str(nfe)] = {"ours": our_error, "ours_name": our_name, "diffusers_best": their_error, "diffusers_name": their_name}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
