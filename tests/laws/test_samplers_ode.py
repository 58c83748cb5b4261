"""Laws of samplers that follow the probability flow: they converge at the order they declare, on every schedule, to the same place."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from members import named, ode_samplers, schedules
from scipy.integrate import solve_ivp
from torch import Tensor
from worlds import close, three_bumps, unit

from ddpm.process import EDM, VPSDE, At, Linear, Listed, Process, Schedule, Straight, default_grid
from ddpm.sampling import Multistep, Sampler, trajectory

every = pytest.mark.parametrize("sampler", named(ode_samplers))
START = unit(12, 2, seed=21)
long_enough = [s for s in schedules if s.T is None or s.T >= 256]


def level(log_snr: float) -> float:
    """u = sigma/(alpha + sigma) at a log-SNR."""
    return 1 / (1 + math.exp(log_snr / 2))


@lru_cache(maxsize=256)
def flow(begin: float, end: float) -> Tensor:
    """The mixture's probability flow from y = START at u = begin to u = end, dy/du = eps - x0, by an eighth-order method.

    Written on the straight path y = (1 - u) x0 + u eps, so no schedule has a say in it.
    """
    denoiser = three_bumps(Process(Straight()))

    def slope(u: float, flat: np.ndarray) -> np.ndarray:
        here = torch.tensor(u, dtype=torch.float64)
        x0, eps, _ = denoiser(torch.from_numpy(flat.copy()).reshape(12, 2), At(here, 1 - here, here))
        return (eps - x0).reshape(-1).numpy()

    done = solve_ivp(slope, (begin, end), START.reshape(-1).numpy(), method="DOP853", rtol=1e-9, atol=1e-10)
    return torch.from_numpy(done.y[:, -1].copy()).reshape(12, 2)


def walk(sampler: Sampler, process: Process, times: Tensor, y: Tensor, exact: int = 0) -> list[Tensor]:
    """x at every instant of the plan, the last at `clean`, from x = (alpha + sigma) y at the first; the first `exact` more are replaced by
    the flow's own.
    """
    model = three_bumps(process).bind()
    plan = sampler.plan(model, times)
    x = y * (plan.instants.alpha[0] + plan.instants.sigma[0])
    seen, state = [x], sampler.init(x)
    for k, row in enumerate(plan.rows(x)):
        x, state, _ = sampler.step(model, x, row, state, None)
        if k < exact:
            begin, here = (float(at.level) for at in (plan.instants.take(0), row.next))
            x = flow(begin, here) * (row.next.alpha + row.next.sigma)
        seen.append(x)
    return seen


@every
@pytest.mark.parametrize("schedule", named([VPSDE(), EDM()]))
def test_the_order_is_the_one_declared(sampler: Sampler, schedule: Schedule) -> None:
    """Log-SNR -5 to 5 in equal steps, exact starting values."""
    process, counts, errors = Process(schedule), (32, 64, 128, 256), []
    for count in counts:
        times = process.time_of(torch.linspace(-5.0, 5.0, count + 1, dtype=torch.float64))
        end = process.at(times[-1])
        warm = sampler.least if isinstance(sampler, Multistep) else 0  # as many as it remembers
        x = walk(sampler, process, times, START, warm)[-2]  # the last row of a plan goes on to clean
        errors.append(float((x / (end.alpha + end.sigma) - flow(level(-5.0), level(5.0))).abs().mean()))
    used = slice(-3, None) if sampler.convergence > 3 else slice(None)  # where the last terms of the error have died out
    slope = -np.polyfit(np.log(counts[used]), np.log(errors[used]), 1)[0]
    assert slope >= sampler.convergence - 0.2, f"slope {slope:.3f} from errors {errors}"


@every
@pytest.mark.parametrize("schedule", named(long_enough))
def test_the_error_over_the_whole_range_falls_at_every_doubling(sampler: Sampler, schedule: Schedule, tmp_path: Path) -> None:
    """Down to what the last step, which returns x0 or reads it off a polynomial, leaves even of the exact flow."""
    process, errors, floors = Process(schedule), [], []
    opening = process.at(1.0)
    exact = flow(float(opening.level), 0.0)
    for steps in (12, 24, 48, 96):
        times = default_grid(process, steps).times(process, steps)
        near, begin = process.at(times[-1]), float(opening.level)
        x0 = three_bumps(process)(flow(begin, float(near.level)) * (near.alpha + near.sigma), near).x0
        floors.append(float((x0 - exact).abs().mean()))
        errors.append(float((walk(sampler, process, times, START)[-1] - exact).abs().mean()))
    table = tmp_path / "errors.txt"
    table.write_text(
        f"{sampler!r} {schedule!r}\n" + "\n".join(f"{12 * 2**i:5d} {error:.3e}" for i, error in enumerate(errors)), encoding="utf-8"
    )
    falls = [after < before or after < 1.5 * floor for before, after, floor in zip(errors, errors[1:], floors[1:], strict=False)]
    assert all(falls), table.read_text(encoding="utf-8")
    assert errors[-1] < 0.1, table.read_text(encoding="utf-8")


@every
def test_samples_agree_across_schedules(sampler: Sampler) -> None:
    """The same start, carried along the same log-SNRs: x/(alpha + sigma) does not depend on the schedule that is walked."""
    if isinstance(sampler, Multistep) and sampler.variable == "time":
        return  # its polynomials are in the schedule's own time
    wanted, log_snr = None, torch.linspace(-5.0, 7.0, 40, dtype=torch.float64)
    for schedule in schedules:
        process = Process(schedule)
        if process.log_snr(1.0) > -5.0:
            continue
        seen = walk(sampler, process, process.time_of(log_snr), START)
        wanted = seen[-1] if wanted is None else wanted
        close(seen[-1], wanted, rtol=1e-7, atol=1e-7)
    assert wanted is not None


@every
def test_a_trajectory_is_the_walk_of_its_plan(sampler: Sampler) -> None:
    process, grid = Process(Linear()), Listed(at=(1.0, 0.83, 0.4, 0.05))
    frames = list(trajectory(three_bumps(process), 12, steps=4, sampler=sampler, grid=grid, start=START, dtype=torch.float64))
    size = process.at(1.0).alpha + process.at(1.0).sigma
    for frame, x in zip(frames, walk(sampler, process, grid.times(process, 4), START / size), strict=True):
        close(frame.x, x, rtol=1e-12, atol=1e-13)
