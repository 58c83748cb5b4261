"""Laws of grids: what comes out falls strictly, lies where the network was trained and is as long as asked, or is refused with a reason."""

from __future__ import annotations

import pytest
import torch
from members import grids, named, schedules
from worlds import close, printed

from ddpm.errors import ConfigError
from ddpm.process import (
    EDM,
    VE,
    VPSDE,
    Cosine,
    Full,
    Grid,
    Karras,
    Leading,
    Linear,
    Listed,
    LogSNR,
    Process,
    Quadratic,
    Schedule,
    Straight,
    Trailing,
    Uniform,
    default_grid,
)

every = pytest.mark.parametrize("schedule", named(schedules))


@every
@pytest.mark.parametrize("grid", named(grids))
def test_a_grid_falls_strictly_within_the_trained_range_or_is_refused(grid: Grid, schedule: Schedule) -> None:
    process, got = Process(schedule), 0
    for steps in (1, 2, 3, 7, 10, 20, 40, 1000):
        try:
            times = grid.times(process, steps)
        except ConfigError as refusal:
            assert str(steps) in str(refusal)
            continue
        got += 1
        assert times.dtype == torch.float64 and times.shape == (steps,)
        assert bool((times.diff() < 0).all()) and times[0] <= 1.0 and times[-1] >= schedule.first - 1e-15
        if schedule.T and not isinstance(grid, Listed):
            close(times * schedule.T, (times * schedule.T).round(), rtol=1e-12)
    assert got >= (0 if isinstance(grid, Full) else 1)


@every
@pytest.mark.parametrize("grid", named([Trailing(), Uniform(), Leading()]))
def test_even_grids_serve_every_number_of_steps_up_to_the_chains(grid: Grid, schedule: Schedule) -> None:
    length = schedule.T or 30
    for steps in range(1, min(length, 60) + 1):
        assert len(grid.times(Process(schedule), steps)) == steps


@every
def test_the_default_grid_suits_the_schedule(schedule: Schedule) -> None:
    process = Process(schedule)
    for steps in (5, 10, schedule.T or 25):
        times = default_grid(process, steps).times(process, steps)
        assert times[0] == 1.0 and len(times) == steps
    if schedule.T:
        assert isinstance(default_grid(process, schedule.T), Full)


@every
@pytest.mark.parametrize("grid", named([Trailing(), Uniform(), Quadratic(), LogSNR(), Karras()]))
def test_grids_over_the_whole_range_begin_at_pure_noise(grid: Grid, schedule: Schedule) -> None:
    assert grid.times(Process(schedule), 2)[0] == 1.0


def test_the_full_grid_is_the_chain() -> None:
    close(Full().times(Process(Linear(T=10)), 10), torch.arange(10, 0, -1) / 10.0, rtol=1e-7)
    assert torch.equal(Full().times(Process(Linear()), 1000), torch.arange(1000, 0, -1, dtype=torch.float64) / 1000)


def test_even_grids_are_what_their_names_say() -> None:
    chain, path = Process(Linear()), Process(Straight())
    assert (Leading().times(chain, 10) * 1000).round().tolist() == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert (Trailing().times(chain, 10) * 1000).round().tolist() == [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]
    assert (Uniform().times(chain, 4) * 1000).round().tolist() == [1000, 667, 334, 1]
    assert (Leading().times(chain, 600) * 1000).round().tolist() == list(range(600, 0, -1))  # whole strides
    close(Trailing().times(path, 4), torch.tensor([1.0, 0.75, 0.5, 0.25]))
    close(Uniform().times(path, 3), torch.tensor([1.0, 0.5005, 0.001], dtype=torch.float64))
    close(Quadratic(start=0.81).times(path, 3)[0], 0.81)
    close(Quadratic().times(path, 9).sqrt().diff().diff(), 0.0, atol=1e-14)


@pytest.mark.parametrize("schedule", named([VPSDE(), EDM(), VE(), Cosine(clip=None, T=None), Straight()]))
def test_log_snr_and_karras_grids_are_even_in_their_own_variable(schedule: Schedule) -> None:
    process = Process(schedule)
    inner = process.log_snr(LogSNR().times(process, 12))[1:]  # the first instant is t = 1, whose log-SNR may be -inf
    close(inner.diff(), inner.diff().mean(), rtol=1e-6)
    ratio = (-0.5 * process.log_snr(Karras(rho=5.0).times(process, 12))[1:]).exp() ** (1 / 5)
    close(ratio.diff(), ratio.diff().mean(), rtol=1e-5)


def test_karras_is_the_published_grid() -> None:
    sigma = Process(EDM()).at(Karras().times(Process(EDM()), 18)).sigma
    figures = [
        "80",
        "57.586",
        "40.786",
        "28.375",
        "19.353",
        "12.910",
        "8.401",
        "5.315",
        "3.257",
        "1.923",
        "1.088",
        ".5853",
        ".2964",
        ".1395",
        ".0599",
        ".0229",
        ".0075",
        ".002",
    ]
    for got, figure in zip(sigma, figures, strict=True):
        printed(got, figure, units=0.6)  # one of them is printed a hair past the half
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    close(sigma, (high + torch.arange(18, dtype=torch.float64) / 17 * (low - high)) ** 7)


@pytest.mark.parametrize(
    ("grid", "schedule", "steps", "reason"),
    [
        (Full(), Linear(), 999, "exactly that many"),
        (Full(), Straight(), 10, "exactly that many"),
        (Trailing(), Linear(T=10), 11, "allowed 1 to 10"),
        (Trailing(), Straight(), 0, "allowed 1 to"),
        (Uniform(), Linear(T=10), 11, "allowed 1 to 10"),
        (Karras(), Linear(T=10), 9, "fall together"),
        (Quadratic(), Linear(T=10), 9, "fall together"),
        (Listed(at=(1.0, 0.5)), Linear(), 3, "lists 2 instants"),
    ],
)
def test_impossible_steps_are_refused(grid: Grid, schedule: Schedule, steps: int, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        grid.times(Process(schedule), steps)


@pytest.mark.parametrize("at", [(), (0.5, 0.5), (0.4, 0.6), (1.1, 0.5), (0.5, 0.0)])
def test_a_list_that_does_not_fall_is_refused(at: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="strictly decreasing"):
        Listed(at=at)
