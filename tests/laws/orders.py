"""The tables of docs/samplers.md, orders and errors over the whole range: `PYTHONPATH=src python tests/laws/orders.py` prints them.

The data are three Gaussians in the plane with their exact denoiser; errors are mean absolute differences from the exact flow's end.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from test_samplers_ode import START, flow, level, walk

from ddpm.process import EDM, VPSDE, Cosine, Linear, Process, Schedule, Straight, default_grid
from ddpm.sampling import DDIM, PRESETS, Multistep, Sampler

SAMPLERS: dict[str, Sampler] = {"ddim": DDIM()}
SAMPLERS |= {preset.name: preset.value for preset in PRESETS if not preset.value.stochastic and preset.name not in ("euler", "plms")}
SCHEDULES: dict[str, Schedule] = {
    "linear": Linear(),
    "cosine": Cosine(),
    "VP-SDE": VPSDE(),
    "straight": Straight(),
    "EDM": EDM(),
}


def slopes(sampler: Sampler) -> list[float]:
    """Measured order at each doubling, 32 to 256 steps, log-SNR -5 to 5, exact starting values."""
    process, errors = Process(VPSDE()), []
    for count in (32, 64, 128, 256):
        times = process.time_of(torch.linspace(-5.0, 5.0, count + 1, dtype=torch.float64))
        end = process.at(times[-1])
        x = walk(sampler, process, times, START, sampler.least if isinstance(sampler, Multistep) else 0)[-2]
        errors.append(float((x / (end.alpha + end.sigma) - flow(level(-5.0), level(5.0))).abs().mean()))
    return [float(np.log2(a / b)) for a, b in itertools.pairwise(errors)]


def whole(sampler: Sampler, schedule: Schedule, steps: int) -> float:
    """Error at the data of `steps` steps from t = 1 on the schedule's default grid."""
    process = Process(schedule)
    exact = flow(float(process.at(1.0).level), 0.0)
    return float((walk(sampler, process, default_grid(process, steps).times(process, steps), START)[-1] - exact).abs().mean())


def main() -> None:
    """Print both tables in Markdown."""
    print("| sampler | declared | 32-64 | 64-128 | 128-256 |\n|---|---|---|---|---|")
    for name, sampler in SAMPLERS.items():
        print(f"| {name} | {sampler.convergence} | " + " | ".join(f"{slope:.2f}" for slope in slopes(sampler)) + " |", flush=True)
    print("\n| sampler | " + " | ".join(SCHEDULES) + " |\n|---|" + "---|" * len(SCHEDULES))
    for name, sampler in SAMPLERS.items():
        cells = [" / ".join(f"{whole(sampler, schedule, steps):.1e}" for steps in (12, 24, 48, 96)) for schedule in SCHEDULES.values()]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
