"""Laws of schedules: alpha falls from 1, sigma rises from 0, the log-SNR has an inverse, members are related as they should be."""

from __future__ import annotations

import math

import pytest
import torch
from members import named, schedules
from worlds import close

from ddpm.denoiser import reaches_zero
from ddpm.errors import ConfigError
from ddpm.process import (
    EDM,
    VE,
    VPSDE,
    Cosine,
    Linear,
    Process,
    Schedule,
    Shifted,
    Sigmoid,
    Straight,
    Table,
    ZeroTerminalSNR,
    betas_from_alpha_bar,
)
from ddpm.process.schedule import VariancePreserving

every = pytest.mark.parametrize("schedule", named(schedules))
fine = torch.cat([torch.logspace(-9, -3, 13, dtype=torch.float64), torch.linspace(0.002, 1.0, 1999, dtype=torch.float64)])


@every
def test_alpha_falls_and_sigma_rises(schedule: Schedule) -> None:
    alpha, sigma = schedule.alpha(fine), schedule.sigma(fine)
    constant = isinstance(schedule, VE | EDM)
    assert bool((alpha.diff() == 0).all()) if constant else bool((alpha.diff()[12:] < 0).all() and (alpha.diff() <= 0).all())
    assert bool((sigma.diff() > 0).all()) and bool((alpha >= 0).all())


@every
def test_both_ends_are_exact(schedule: Schedule) -> None:
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    alpha, sigma = schedule.alpha(t).tolist(), schedule.sigma(t).tolist()
    assert (alpha[0], sigma[0]) == (1.0, 0.0)
    assert (alpha[1] == 0.0) == reaches_zero(schedule)
    if alpha[1] == 0.0:
        assert sigma[1] == pytest.approx(1.0, abs=1e-15)


@every
def test_log_snr_falls_strictly_and_time_of_is_its_inverse(schedule: Schedule) -> None:
    process = Process(schedule)
    log_snr = process.log_snr(fine)
    assert bool((log_snr.diff() < 0).all())
    close(process.time_of(log_snr), fine, rtol=1e-9, atol=1e-12)
    assert process.time_of(math.inf).item() < 1e-15 and process.time_of(-math.inf).item() == 1.0
    close(log_snr, 2 * (schedule.alpha(fine) / schedule.sigma(fine)).log(), rtol=1e-9, atol=1e-9)


@every
def test_rates_are_the_derivatives(schedule: Schedule) -> None:
    process, h = Process(schedule), 1e-5
    t = (torch.arange(30, 970, dtype=torch.float64) + 0.5) / 1000  # between the knots of every table here
    rates = process.rates(process.at(t))
    for level, rate in zip((schedule.alpha, schedule.sigma), rates, strict=True):
        close(rate, (level(t + h) - level(t - h)) / (2 * h), rtol=1e-6, atol=1e-7)


@every
def test_variance_is_preserved_where_promised(schedule: Schedule) -> None:
    base = schedule.base if isinstance(schedule, Shifted | ZeroTerminalSNR) else schedule
    if isinstance(base, VariancePreserving | Cosine | Sigmoid):
        close(schedule.alpha(fine) ** 2 + schedule.sigma(fine) ** 2, 1.0, rtol=1e-14)
        close(Process(schedule).prior_std(Process(schedule).at(fine)), 1.0, rtol=1e-14)


@every
def test_float32_keeps_the_digits_at_both_ends(schedule: Schedule) -> None:
    """The forms that do not cancel: sigma near 0, and alpha near 1, agree with float64 to float32's own rounding of t."""
    t = torch.tensor([1e-3, 1e-2, 0.3, 0.7], dtype=torch.float32)
    close(schedule.sigma(t), schedule.sigma(t.double()), rtol=3e-5)
    close(schedule.alpha(t), schedule.alpha(t.double()), rtol=3e-5)


@pytest.mark.parametrize("schedule", named(s for s in schedules if isinstance(s, Shifted)))
def test_a_shift_lowers_the_log_snr_by_a_constant(schedule: Shifted) -> None:
    close(
        Process(schedule).log_snr(fine[:-1]),
        Process(schedule.base).log_snr(fine[:-1]) - 2 * math.log(schedule.shift),
        rtol=1e-11,
        atol=1e-11,
    )
    assert schedule.T == schedule.base.T and schedule.t_min == schedule.base.t_min


@pytest.mark.parametrize("shift", [0.4, 3.0])
def test_the_shifted_straight_path_is_a_shift_of_time(shift: float) -> None:
    moved = shift * fine / (1 + (shift - 1) * fine)
    schedule = Shifted(base=Straight(), shift=shift)
    close(schedule.alpha(fine), 1 - moved, rtol=1e-12, atol=1e-15)
    close(schedule.sigma(fine), moved, rtol=1e-12)


@pytest.mark.parametrize("base", named([Linear(), VPSDE(), Table(betas=(0.1, 0.3, 0.5))]))
def test_zero_terminal_snr_stretches_alpha_to_zero(base: VariancePreserving) -> None:
    schedule, end = ZeroTerminalSNR(base=base), base.alpha(torch.ones((), dtype=torch.float64))
    alpha = (base.alpha(fine) - end) / (1 - end)
    close(schedule.alpha(fine), alpha, atol=1e-15)
    close(schedule.sigma(fine[20:]), (1 - alpha[20:] ** 2).sqrt(), rtol=1e-9)
    close(schedule.sigma(fine[:5]) ** 2 / base.sigma(fine[:5]) ** 2, 1 / (1 - end), rtol=1e-5)  # near t = 0 both gaps are sigma^2 / 2


def test_a_table_of_linears_betas_is_linear() -> None:
    betas = tuple((1e-4 * (999 - i) + 0.02 * i) / 999 for i in range(1000))
    table, linear = Table(betas=betas), Linear()
    assert table.T == linear.T == 1000
    for level, same in ((table.alpha, linear.alpha), (table.sigma, linear.sigma)):
        close(level(fine), same(fine), rtol=1e-12)


def test_betas_come_back_from_alpha_bar() -> None:
    betas = tuple(0.01 + 0.005 * i for i in range(40))
    t = torch.arange(1, 41, dtype=torch.float64) / 40
    back = betas_from_alpha_bar(tuple((Table(betas=betas).alpha(t) ** 2).tolist()))
    close(torch.tensor(back, dtype=torch.float64), torch.tensor(betas, dtype=torch.float64), rtol=1e-10)


def test_the_cosine_table_is_the_curve_at_its_knots_but_for_the_clipped_last() -> None:
    knots = torch.arange(1, 1001, dtype=torch.float64) / 1000
    table, curve = Cosine().alpha(knots) ** 2, Cosine(clip=None).alpha(knots) ** 2
    close(table[:-1], curve[:-1], rtol=1e-9)
    assert curve[-1] == 0.0
    close(table[-1], 0.001 * curve[-2], rtol=1e-9)


def test_variance_exploding_is_the_published_kernel_but_starts_at_zero() -> None:
    close(VE().sigma(fine) ** 2 + 0.01**2, (0.01 * (50.0 / 0.01) ** fine) ** 2, rtol=1e-10)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Shifted(base=VE(), shift=2.0),
        lambda: Shifted(base=EDM(), shift=2.0),
        lambda: ZeroTerminalSNR(base=Cosine()),
        lambda: Table(),
    ],
)
def test_what_cannot_be_made_is_refused(bad: object) -> None:
    with pytest.raises(ConfigError, match="base:|betas:"):
        bad()  # type: ignore[operator]
