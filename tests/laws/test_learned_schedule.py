"""Laws of the learned schedule: it changes the variance of the bound, never the bound; it finds the least; the table is the network."""

from __future__ import annotations

import math

import pytest
import torch
from members import named
from torch import Tensor
from worlds import close, isotropic, three_bumps, uniforms, unit

from ddpm.denoiser import Denoiser
from ddpm.errors import ConfigError
from ddpm.objective import Bound, Denoising, Draws, LearnedSchedule, LearnedScheduleLoss, Simple, Target
from ddpm.process import VPSDE, Cosine, Linear, LogSNRTable, Process, Schedule, Straight, log_snr_ends

schedules = [VPSDE(), Cosine(T=None), Straight(), Linear()]


def bent(settings: LearnedSchedule, seed: int = 0) -> LearnedScheduleLoss:
    """A loss whose schedule is far from its start."""
    loss = LearnedScheduleLoss(settings)
    with torch.no_grad():
        for k, parameter in enumerate(loss.parameters()):
            parameter += 0.15 * unit(*parameter.shape, seed=seed + k).to(parameter)
    return loss


def draws(n: int, size: int = 2, seed: int = 0) -> Draws:
    return Draws(uniforms(n, seed=seed), unit(n, size, seed=seed + 1), unit(n, size, seed=seed + 2))


def path(loss: LearnedScheduleLoss, t: Tensor, process: Process) -> tuple[Tensor, Tensor]:
    """The learned log-SNR and its slope, without a graph."""
    with torch.no_grad():
        return loss.log_snr(t, process)


def even(n: int) -> Tensor:
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def moments(loss: torch.nn.Module, denoiser: Denoiser, x0: Tensor, drawn: Draws) -> tuple[float, float]:
    """Mean and variance of the loss."""
    with torch.no_grad():
        values = loss.eval()(denoiser, x0, None, drawn)
    return float(values.mean()), float(values.var())


def trained(denoiser: Denoiser, x0: Tensor, steps: int = 120, batch: int = 256) -> LearnedScheduleLoss:
    """A schedule trained for an exact denoiser."""
    loss = LearnedScheduleLoss(LearnedSchedule()).train()
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.03)
    for step in range(steps):
        rows = torch.arange(step * batch, (step + 1) * batch) % len(x0)
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / steps)
        optimizer.zero_grad()
        loss(denoiser, x0[rows], None, draws(batch, x0.shape[1], seed=3 * step)).mean().backward()
        optimizer.step()
    return loss


@pytest.mark.parametrize("schedule", named(schedules))
def test_the_schedule_is_monotone_and_its_ends_are_exact(schedule: Schedule) -> None:
    process, loss = Process(schedule), bent(LearnedSchedule())
    t = torch.linspace(0.0, 1.0, 2001, dtype=torch.float64)
    log_snr, slope = path(loss, t, process)
    low, high = log_snr_ends(process)
    close(log_snr[[0, -1]], torch.tensor([high, low], dtype=torch.float64), rtol=1e-14)
    assert bool((log_snr.diff() < 0).all()) and bool((slope > 0).all())
    h = 1e-6
    numeric = (path(loss, t[1:-1] - h, process)[0] - path(loss, t[1:-1] + h, process)[0]) / (2 * h)
    close(slope[1:-1], numeric, rtol=1e-5)
    fresh, _ = path(LearnedScheduleLoss(LearnedSchedule()), t, process)
    assert float((fresh - (high - (high - low) * t)).abs().max()) < 0.05 * (high - low)


@pytest.mark.parametrize("schedule", named(schedules[:3]))
@pytest.mark.parametrize("weighting", named([Bound(), Simple(), Target()]))
def test_the_expected_loss_does_not_depend_on_the_schedule(schedule: Schedule, weighting: Bound | Simple | Target) -> None:
    """An integral over noise levels, whatever the density they are drawn from (Kingma et al., 2021, section 5.1)."""
    n = 4000
    denoiser = isotropic(Process(schedule), 0.3, (64,))
    x0 = math.sqrt(0.3) * unit(n, 64, seed=1)
    drawn = Draws(even(n), unit(n, 64, seed=2), unit(n, 64))
    expected, _ = moments(Denoising(weighting=weighting).build(), denoiser, x0, drawn)
    for seed in (0, 10):
        close(moments(bent(LearnedSchedule(weighting=weighting), seed), denoiser, x0, drawn)[0], expected, rtol=0.02)


def test_the_bound_is_the_closed_form_of_a_gaussian() -> None:
    """1/2 int E|eps - eps_hat|^2 d log_snr with E|.|^2 = sigmoid(log_snr + log c) per entry."""
    process, c, n = Process(VPSDE()), 0.3, 4000
    low, high = log_snr_ends(process)
    expected = 0.5 * (math.log1p(c * math.exp(high)) - math.log1p(c * math.exp(low)))
    drawn = Draws(even(n), unit(n, 64, seed=7), unit(n, 64))
    got, _ = moments(bent(LearnedSchedule()), isotropic(process, c, (64,)), math.sqrt(c) * unit(n, 64, seed=1), drawn)
    close(got, expected, rtol=0.015)


def test_training_finds_the_least_variance() -> None:
    """E[loss^2] = int G2/p is least at p ~ sqrt(G2); for a Gaussian G2 = (sigmoid(log_snr + log c)/2)^2 (1 + 2/D)."""
    process, c, size, n = Process(VPSDE()), 1e-3, 16, 20_000
    denoiser, x0 = isotropic(process, c, (size,)), math.sqrt(c) * unit(n, size, seed=1)
    low, high = log_snr_ends(process)
    integral = 0.5 * (math.log1p(c * math.exp(high)) - math.log1p(c * math.exp(low)))
    best = integral**2 * 2 / size
    drawn = draws(n, size, seed=50)
    _, own = moments(Denoising(weighting=Bound()).build(), denoiser, x0, drawn)
    _, start = moments(LearnedScheduleLoss(LearnedSchedule()), denoiser, x0, drawn)
    loss = trained(denoiser, x0)
    mean, learned = moments(loss, denoiser, x0, drawn)
    close(mean, integral, rtol=0.02)
    assert learned < 0.2 * min(own, start), (best, learned, start, own)
    assert 0.9 * best < learned < 1.6 * best, (best, learned, start, own)
    found, _ = path(loss, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), process)
    for share, log_snr in zip((0.75, 0.5, 0.25), found.tolist(), strict=True):  # quantiles of the optimal density
        passed = 0.5 * (math.log1p(c * math.exp(log_snr)) - math.log1p(c * math.exp(low))) / integral
        assert abs(passed - share) < 0.05, (share, passed)


def test_training_lowers_the_variance_on_a_mixture() -> None:
    process = Process(VPSDE())
    denoiser = three_bumps(process)
    x0 = denoiser.draw(unit(9000, 2, seed=3), torch.arange(9000) % 3)
    drawn = draws(9000, seed=70)
    mean, own = moments(Denoising(weighting=Bound()).build(), denoiser, x0, drawn)
    again, learned = moments(trained(denoiser, x0, steps=60), denoiser, x0, drawn)
    assert learned < 0.8 * own, (own, learned)
    close(again, mean, rtol=0.05)


def test_the_schedules_gradient_is_that_of_the_log_second_moment() -> None:
    """Against finite differences of E[loss^2] with the integrand held: importance weights of one batch under moved schedules."""
    process = Process(VPSDE())
    loss = bent(LearnedSchedule(features=3)).double().train()
    denoiser, n = isotropic(process, 0.05, (4,)), 200
    x0, drawn = math.sqrt(0.05) * unit(n, 4, seed=1), draws(n, 4, seed=2)
    values = loss(denoiser, x0, None, drawn)
    values.mean().backward()
    fixed, slope = path(loss, drawn.u, process)
    weight = (values.detach() ** 2 / slope) / (values.detach() ** 2 / slope * slope).sum()

    def second_moment() -> float:
        """sum of G2/p over the log-SNRs drawn, each reached by the moved schedule at a time found by bisection."""
        low, high = torch.zeros(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64)
        for _ in range(60):
            middle = (low + high) / 2
            cleaner = path(loss, middle, process)[0] > fixed
            low, high = torch.where(cleaner, middle, low), torch.where(cleaner, high, middle)
        return float((weight * path(loss, high, process)[1]).sum())

    for parameter in loss.parameters():
        assert parameter.grad is not None
        for k in range(len(parameter)):
            ends = []
            for h in (1e-4, -1e-4):
                with torch.no_grad():
                    parameter[k] += h
                    ends.append(second_moment())
                    parameter[k] -= h
            close(parameter.grad[k], (ends[0] - ends[1]) / 2e-4, rtol=1e-4, atol=1e-8)


def test_out_of_training_it_is_the_same_number_without_a_pull() -> None:
    loss, denoiser, drawn = bent(LearnedSchedule()), isotropic(Process(VPSDE()), 0.3), draws(32)
    training, held = loss.train()(denoiser, unit(32, 2), None, drawn), loss.eval()(denoiser, unit(32, 2), None, drawn)
    assert torch.equal(training, held) and bool((held > 0).all())
    assert [key for key in loss.state_dict()] == [f"schedule.{name}" for name in ("linear", "height", "steepness", "offset")]


@pytest.mark.parametrize("schedule", named(schedules))
def test_the_table_is_the_network(schedule: Schedule) -> None:
    """To 1e-6 in log-SNR, between the knots too, with the first instant and the T of the schedule it was learned on."""
    process, loss = Process(schedule), bent(LearnedSchedule())
    table = loss.table(process)
    assert (table.first, table.T) == (schedule.first, schedule.T)
    share = torch.linspace(0.0, 1.0, 3001, dtype=torch.float64)
    t = schedule.first + (1 - schedule.first) * share
    wanted, _ = path(loss, share, process)
    assert float((Process(table).log_snr(t) - wanted).abs().max()) < 1e-6


def test_a_table_that_does_not_fall_is_refused() -> None:
    for bad in ((), (1.0,), (1.0, 1.0), (1.0, 2.0)):
        with pytest.raises(ConfigError, match="log_snr: must hold"):
            LogSNRTable(log_snr=bad)
    with pytest.raises(ConfigError, match="T: got 1"):
        LogSNRTable(T=1)
