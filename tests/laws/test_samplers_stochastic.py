"""Laws of stochastic samplers: on a Gaussian a step is affine, so mean and covariance are computed, and compared with the textbook's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from members import named, samplers, stochastic_samplers
from textbook import V, textbook
from torch import Tensor
from worlds import Nudged, close, covariance, isotropic, normal_data, three_bumps, unit

from ddpm.denoiser import Denoiser
from ddpm.errors import ConfigError
from ddpm.process import VPSDE, Cosine, Full, Grid, Karras, Linear, Listed, Process, Schedule, Straight, Trailing, Uniform
from ddpm.sampling import DDIM, Ancestral, Langevin, Multistep, Restart, Sampler, SingleStep, sample, trajectory

every = pytest.mark.parametrize("sampler", named(samplers))
walks: list[tuple[Schedule, Grid, int]] = [
    (Linear(), Full(), 1000),
    (Linear(T=600), Full(), 600),
    (Linear(), Trailing(), 10),
    (Linear(T=10), Full(), 10),
    (Linear(T=7), Full(), 7),
    (Linear(), Trailing(), 7),
    (Linear(), Listed(at=(1.0, 0.97, 0.6, 0.599, 0.25, 0.031, 0.002)), 7),
]


def pushed(sampler: Sampler, denoiser: Denoiser, times: Tensor, size: int) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
    """Mean and covariance of x at the end, by pushing 0 and unit vectors of x, of what is remembered and of z through `step`; and of every
    step offset and matrices, for x alone.
    """
    model, plan = denoiser.bind(), sampler.plan(denoiser.bind(), times)
    kept = 1 + len(sampler.init(torch.zeros(1, size)))
    known, width = kept * size, (kept + sampler.draws) * size
    basis = torch.cat([torch.zeros(1, width, dtype=torch.float64), torch.eye(width, dtype=torch.float64)]).reshape(1 + width, -1, size)
    x, *state = basis[:, :kept].unbind(1)
    z = basis[:, kept:].transpose(0, 1).contiguous() if sampler.draws > 1 else basis[:, kept] if sampler.draws else None
    mean, cov = torch.zeros(known, dtype=torch.float64), torch.zeros(known, known, dtype=torch.float64)
    cov[:size, :size] = denoiser.process.prior_std(denoiser.process.at(times[0])) ** 2 * torch.eye(size)
    parts = []
    for row in plan.rows(x):
        after, memory, _ = sampler.step(model, x, row, tuple(state), z)
        out = torch.cat([after, *memory], 1)
        offset, of_x, of_z = out[0], (out[1 : 1 + known] - out[0]).T, (out[1 + known :] - out[0]).T
        mean, cov = of_x @ mean + offset, of_x @ cov @ of_x.T + of_z @ of_z.T
        parts.append((offset[:size], of_x[:size, :size], of_z[:size]))
    return mean[:size], cov[:size, :size], parts


def world(schedule: Schedule) -> Nudged:
    """A correlated Gaussian in the plane, with a variance output."""
    return Nudged(normal_data(Process(schedule)), 0.0, V)


long = [walk for walk in walks if walk[2] > 100]
matrix = [(s, walk) for s in samplers for walk in walks if walk not in long or s.stochastic or isinstance(s, DDIM)]
matrix = [(s, walk) for s, walk in matrix if not isinstance(s, Restart) or Process(walk[0]).at(walk[0].first).ratio < s.high]


@pytest.mark.parametrize(
    ("sampler", "walk"), [(pytest.param(s, walk, id=f"{samplers.index(s)}:{type(s).__name__}-{walk}")) for s, walk in matrix]
)
def test_mean_and_covariance_are_the_textbooks(sampler: Sampler, walk: tuple[Schedule, Grid, int]) -> None:
    schedule, grid, steps = walk
    denoiser = world(schedule)
    times = grid.times(denoiser.process, steps)
    mean, cov, parts = pushed(sampler, denoiser, times, 2)
    walked = sampler.plan(denoiser.bind(), times).instants.t[:-1]
    wanted_mean, wanted_cov = textbook(sampler, walked, 0.5 * unit(2, seed=3).numpy(), covariance(2, seed=4).numpy())
    size = max(1.0, float(np.abs(wanted_cov).max()))  # few Euler-Maruyama steps overshoot far
    exact = 1e-5 if isinstance(sampler, Multistep) and sampler.variable == "time" else 1e-9  # Ho's table has a kink at every knot
    close(mean, torch.from_numpy(wanted_mean), rtol=exact, atol=exact * size)
    close(cov, torch.from_numpy(wanted_cov), rtol=exact, atol=exact * size)
    if not isinstance(sampler, Langevin | SingleStep):  # which correct, or churn, once more before the end
        assert not float(parts[-1][2].abs().sum())  # z = 0 at the last
    assert any(float(of_z.abs().sum()) > 0 for _, _, of_z in parts[:-1]) == sampler.stochastic


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


@pytest.mark.parametrize("schedule", named([Linear(), Cosine(clip=None), VPSDE(), Straight()]))
def test_one_step_of_memory_is_ddim_and_with_full_noise_ancestral(schedule: Schedule) -> None:
    denoiser = three_bumps(Process(schedule))
    for mine, theirs in ((Multistep(order=1), DDIM()), (Multistep(order=1, noise=1.0), Ancestral(variance="small"))):
        frames = [list(trajectory(denoiser, 5, steps=13, sampler=kind, seed=3, dtype=torch.float64)) for kind in (mine, theirs)]
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
