"""Laws of stochastic samplers: on a Gaussian a step is affine, so mean and covariance are computed, and compared with the textbook's."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from members import named, samplers, stochastic_samplers
from torch import Tensor
from worlds import Nudged, close, covariance, isotropic, normal_data, three_bumps, unit

from ddpm.denoiser import Denoiser
from ddpm.errors import ConfigError
from ddpm.process import VPSDE, Cosine, Full, Grid, Karras, Linear, Listed, Process, Schedule, Straight, Trailing, Uniform
from ddpm.sampling import DDIM, Ancestral, Sampler, sample, trajectory

every = pytest.mark.parametrize("sampler", named(samplers))
V = 0.3  # the variance output of the model
walks: list[tuple[Schedule, Grid, int]] = [
    (Linear(), Full(), 1000),
    (Linear(T=600), Full(), 600),
    (Linear(), Trailing(), 10),
    (Linear(T=10), Full(), 10),
    (Linear(T=7), Full(), 7),
    (Linear(), Trailing(), 7),
    (Linear(), Listed(at=(1.0, 0.97, 0.6, 0.599, 0.25, 0.031, 0.002)), 7),
]


def bars(times: Tensor) -> np.ndarray:
    """alpha_bar at the instants and, last, 1 at the data: Ho's product of 1 - beta, interpolated in its logarithm."""
    log_bar = np.concatenate([[0.0], np.cumsum(np.log1p(-np.linspace(1e-4, 0.02, 1000)))])
    return np.concatenate([np.exp(np.interp(times.numpy() * 1000, np.arange(1001), log_bar)), [1.0]])


Reverse = tuple[float, float, float]  # x_s = a x0 + b x_t + std z


def ancestral(sampler: Ancestral, now: float, after: float, residual: float) -> Reverse:
    """Ho et al., 2020, eqs. 6-7, for a step from alpha_bar = now to alpha_bar = after."""
    beta = 1 - now / after
    a, b = math.sqrt(after) * beta / (1 - now), math.sqrt(now / after) * (1 - after) / (1 - now)
    small = beta * (1 - after) / (1 - now)
    wide = {
        "small": small,
        "large": beta,
        "learned": math.exp((1 - V) * math.log(max(small, 1e-300)) + V * math.log(beta)),
        "analytic": small + a**2 * residual,
    }
    return a, b, 0.0 if after == 1.0 else math.sqrt(wide[sampler.variance])


def ddim(sampler: DDIM, now: float, after: float, residual: float) -> Reverse:
    """Song, Meng, Ermon, 2020, eqs. 12 and 16."""
    std = sampler.eta * math.sqrt((1 - after) / (1 - now)) * math.sqrt(1 - now / after)
    along = math.sqrt(max(1 - after - std**2, 0.0))
    return math.sqrt(after) - along * math.sqrt(now) / math.sqrt(1 - now), along / math.sqrt(1 - now), std


TEXTBOOK: dict[type[Sampler], Callable[..., Reverse]] = {Ancestral: ancestral, DDIM: ddim}  # a new sampler's recursion goes here


def textbook(sampler: Sampler, times: Tensor, mean: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance at the end of the walk on N(mean, c), by matrices."""
    assert type(sampler) in TEXTBOOK, f"give {type(sampler).__name__} its textbook recursion, so that it is tested"
    bar, eye = bars(times), np.eye(len(c))
    m, cov = np.zeros(len(c)), eye
    for now, after in itertools.pairwise(bar):
        noisy = now * c + (1 - now) * eye
        gain = math.sqrt(now) * c @ np.linalg.inv(noisy)  # E[x0 | x] = mean + gain (x - sqrt(now) mean)
        residual = np.trace(c - gain @ c * math.sqrt(now)) / len(c)
        a, b, std = TEXTBOOK[type(sampler)](sampler, now, after, residual)
        push = a * gain + b * eye
        m = push @ m + a * (mean - gain @ mean * math.sqrt(now))
        cov = push @ cov @ push.T + std**2 * eye
    return m, cov


def pushed(sampler: Sampler, denoiser: Denoiser, times: Tensor, size: int) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
    """Mean and covariance at the end, by pushing 0, unit x and unit z through `step`; and of every step offset and matrices."""
    model, n = denoiser.bind(), 1 + 2 * size
    plan, eye = sampler.plan(model, times), torch.eye(size, dtype=torch.float64)
    x, z = torch.zeros(n, size, dtype=torch.float64), torch.zeros(n, size, dtype=torch.float64)
    x[1 : 1 + size], z[1 + size :] = eye, eye
    mean, cov, parts = torch.zeros(size, dtype=torch.float64), denoiser.process.prior_std(denoiser.process.at(times[0])) ** 2 * eye, []
    for row in plan.rows(x):
        out, _, _ = sampler.step(model, x, row, sampler.init(x), z if sampler.stochastic else None)
        offset, of_x, of_z = out[0], (out[1 : 1 + size] - out[0]).T, (out[1 + size :] - out[0]).T
        mean, cov = of_x @ mean + offset, of_x @ cov @ of_x.T + of_z @ of_z.T
        parts.append((offset, of_x, of_z))
    return mean, cov, parts


def world(schedule: Schedule) -> Nudged:
    """A correlated Gaussian in the plane, with a variance output."""
    return Nudged(normal_data(Process(schedule)), 0.0, V)


@every
@pytest.mark.parametrize("walk", named(walks))
def test_mean_and_covariance_are_the_textbooks(sampler: Sampler, walk: tuple[Schedule, Grid, int]) -> None:
    schedule, grid, steps = walk
    denoiser = world(schedule)
    times = grid.times(denoiser.process, steps)
    mean, cov, parts = pushed(sampler, denoiser, times, 2)
    wanted_mean, wanted_cov = textbook(sampler, times, 0.5 * unit(2, seed=3).numpy(), covariance(2, seed=4).numpy())
    close(mean, torch.from_numpy(wanted_mean), rtol=1e-9, atol=1e-9)
    close(cov, torch.from_numpy(wanted_cov), rtol=1e-9, atol=1e-9)
    assert float(parts[-1][2].abs().max()) == 0.0  # z = 0 at the last
    assert all(bool((of_z.diagonal() > 0).all()) == sampler.stochastic for _, _, of_z in parts[:-1])


@pytest.mark.parametrize("sampler", named(stochastic_samplers))
def test_samples_have_the_composed_mean_and_covariance(sampler: Sampler) -> None:
    """`sample()` itself, noise and all, a fixed seed."""
    denoiser, n = world(Linear()), 2000
    x = sample(denoiser, n, steps=8, sampler=sampler, seed=7, batch=n, dtype=torch.float64)
    mean, cov, _ = pushed(sampler, denoiser, Trailing().times(denoiser.process, 8), 2)
    spread = cov.diagonal()
    assert float(((x.mean(0) - mean) / (spread / n).sqrt()).abs().max()) < 4.5
    assert float(((x.T.cov() - cov) / ((cov**2 + spread[:, None] * spread) / n).sqrt()).abs().max()) < 4.5


@pytest.mark.parametrize("schedule", named([Linear(), Cosine(), VPSDE(), Straight()]))
def test_ddim_at_eta_one_is_ancestral_with_the_small_variance(schedule: Schedule) -> None:
    denoiser = three_bumps(Process(schedule))
    frames = [
        list(trajectory(denoiser, 5, steps=13, sampler=sampler, seed=3, dtype=torch.float64))
        for sampler in (DDIM(eta=1.0), Ancestral(variance="small"))
    ]
    for one, other in zip(*frames, strict=True):
        close(one.x, other.x, rtol=1e-9, atol=1e-10)


def test_ancestral_is_the_textbook_reverse_step() -> None:
    """x_{t-1} = (x_t - beta_t/sqrt(1 - alpha_bar_t) eps)/sqrt(1 - beta_t) + sqrt(beta_t) z, z = 0 at the last."""
    denoiser, z = three_bumps(Process(Linear())), unit(6, 2, seed=1)
    beta = np.linspace(1e-4, 0.02, 1000)
    bar = np.cumprod(1 - beta)
    sampler, model = Ancestral(), denoiser.bind()
    rows = sampler.plan(model, Full().times(denoiser.process, 1000)).rows(z)
    for t in (1000, 999, 700, 500, 100, 10, 2, 1):
        x = math.sqrt(bar[t - 1]) * unit(6, 2, seed=2) + math.sqrt(1 - bar[t - 1]) * unit(6, 2, seed=3)
        got, _, prediction = sampler.step(model, x, rows[1000 - t], (), z)
        wanted = (x - beta[t - 1] / math.sqrt(1 - bar[t - 1]) * prediction.eps) / math.sqrt(1 - beta[t - 1])
        close(got, wanted + (math.sqrt(beta[t - 1]) * z if t > 1 else 0.0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 50, 1000])
@pytest.mark.parametrize("c", [0.1, 1.0, 4.0])
def test_the_analytic_variance_keeps_the_variance_of_isotropic_data_at_any_number_of_steps(steps: int, c: float) -> None:
    """Every x_s on the way has the variance alpha^2 c + sigma^2 it should have; at the end only what x_t cannot tell of x0 is missing."""
    denoiser, sampler = isotropic(Process(Linear()), c), Ancestral(variance="analytic")
    times = Uniform().times(denoiser.process, steps)
    at = denoiser.process.at(times)
    _, _, parts = pushed(sampler, denoiser, times, 2)
    variance = float(at.alpha[0] ** 2 * c + at.sigma[0] ** 2)
    for i, (offset, of_x, of_z) in enumerate(parts):
        variance = variance * float(of_x[0, 0]) ** 2 + float(of_z[0, 0]) ** 2
        missing = float(denoiser.residual(at)[i]) if i + 1 == steps else 0.0
        here = c - missing if i + 1 == steps else float(at.alpha[i + 1] ** 2 * c + at.sigma[i + 1] ** 2)
        close(variance, here, rtol=1e-9)
        assert float(offset.abs().max()) == 0.0
    if steps > 1:
        close(variance, c, rtol=2e-3)  # the grid ends at t = 1/1000


def test_small_and_large_variances_miss_the_datas_where_analytic_does_not() -> None:
    """With ten steps the textbook's two choices fall short of, and exceed, the variance of the step's true reverse."""
    denoiser = isotropic(Process(Linear()), 0.25)
    times = Uniform().times(denoiser.process, 10)
    end = {kind: float(pushed(Ancestral(variance=kind), denoiser, times, 1 + 1)[1][0, 0]) for kind in ("small", "large", "analytic")}  # type: ignore[arg-type]
    assert end["small"] < 0.99 * end["analytic"] and end["large"] > 1.01 * end["analytic"]


def test_a_learned_variance_must_be_predicted_and_is_kept_within_bounds() -> None:
    sampler, x = Ancestral(variance="learned"), unit(3, 2)
    with pytest.raises(ConfigError, match="learned"):
        list(trajectory(normal_data(Process(Linear())), 2, steps=3, sampler=sampler))
    for v, same in ((-2.0, "small"), (0.0, "small"), (1.0, "large"), (5.0, "large")):
        model = Nudged(normal_data(Process(Linear())), 0.0, v).bind()
        times = Trailing().times(model.process, 5)
        row, other = (kind.plan(model, times).rows(x)[1] for kind in (sampler, Ancestral(variance=same)))  # type: ignore[arg-type]
        close(sampler.step(model, x, row, (), x)[0], Ancestral(variance=same).step(model, x, other, (), x)[0])  # type: ignore[arg-type]


def test_karras_grids_serve_chains_too() -> None:
    process = Process(Linear())
    assert bool((Karras().times(process, 10).diff() < 0).all())
