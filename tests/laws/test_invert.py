"""Laws of inversion and of walks that begin below t = 1: second order, the closed-form map of a Gaussian, and the way back to the data."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from members import named, schedules
from torch import Tensor
from worlds import Nudged, close, isotropic, normal_data, three_bumps, toy, unit

from ddpm.denoiser import Denoiser, Mixture, Prediction, V
from ddpm.errors import ConfigError
from ddpm.process import (
    EDM,
    VPSDE,
    At,
    Below,
    Cosine,
    Grid,
    Linear,
    Listed,
    LogSNR,
    Process,
    Schedule,
    Straight,
    Trailing,
    Uniform,
    default_grid,
)
from ddpm.random import normals
from ddpm.sampling import DDIM, Ancestral, interpolate, invert, perturbed, sample, slerp, trajectory
from ddpm.sampling.multistep import Multistep

worlds = [(Straight(), Uniform()), (Cosine(T=None), LogSNR()), (EDM(), None), (Linear(), Uniform())]


class Watched(Nudged):
    """A denoiser that remembers at which instants it was called."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.called: list[float] = []

    def forward(self, x: Tensor, at: At, cond: Any = None) -> Prediction:
        self.called.append(float(at.t))
        return super().forward(x, at, cond)


def data(denoiser: Mixture, count: int = 6) -> Tensor:
    """Draws of the denoiser's own data, of its components in turn."""
    return denoiser.draw(unit(count, *denoiser.shape, seed=5), torch.arange(count) % len(denoiser.means))


def order(errors: list[float]) -> float:
    """Slope of the errors over a chain of doublings."""
    return math.log2(errors[0] / errors[-1]) / (len(errors) - 1)


def back(denoiser: Denoiser, noise: Tensor, steps: int, grid: Grid | None, sampler: Any = None) -> Tensor:
    *_, end = trajectory(denoiser, len(noise), steps=steps, grid=grid, sampler=sampler or Multistep(), start=noise, dtype=torch.float64)
    return end.x


@pytest.mark.parametrize("schedule", named(schedules))
def test_the_regular_coordinates_carry_the_flow_along_straight_lines(schedule: Schedule) -> None:
    """y = (1 - u) x0 + u eps at every instant, both ends included, so that dy/du = eps - x0."""
    process, (x0, eps) = Process(schedule), unit(2, 1, 3)
    at = process.at(torch.tensor([0.0, 1e-4, 0.3, 1.0], dtype=torch.float64))
    scale, u = process.straightened(at.like(x0.expand(4, 3)))
    close(process.perturb(x0, eps, at.like(x0.expand(4, 3))) / scale, (1 - u) * x0 + u * eps, rtol=1e-12, atol=1e-14)
    assert u[0] == 0.0 and bool((u.diff(dim=0) > 0).all()) and bool((u <= 1.0).all())


@pytest.mark.parametrize("world", named([(Straight(), Trailing()), (EDM(), None), (VPSDE(), LogSNR())]))
def test_the_noise_of_gaussian_data_is_the_closed_form_at_second_order(world: tuple[Schedule, Grid | None]) -> None:
    """Along each eigenvector with variance c the flow scales x - alpha m by sqrt((alpha^2 c + sigma^2)/c)."""
    process, grid = Process(world[0]), world[1]
    denoiser = normal_data(process)
    x, end = data(denoiser), process.at(1.0)
    stretch = ((end.alpha**2 * denoiser.variances[0] + end.sigma**2) / denoiser.variances[0]).sqrt()
    assert denoiser.basis is not None
    exact = end.alpha * denoiser.means[0] + (x - denoiser.means[0]) @ denoiser.basis[0] * stretch @ denoiser.basis[0].T
    errors = [float((invert(denoiser, x, steps=steps, grid=grid) - exact).abs().max()) for steps in (20, 40, 80)]
    assert order(errors) > 1.8, errors
    assert errors[-1] < 0.02 * float(exact.std())


def test_the_noise_of_mixture_data_settles_at_second_order() -> None:
    denoiser = three_bumps(Process(Straight()))
    x = data(denoiser)
    exact = invert(denoiser, x, steps=200)
    errors = [float((invert(denoiser, x, steps=steps) - exact).abs().max()) for steps in (10, 20, 40)]
    assert order(errors) > 1.8, errors


@pytest.mark.parametrize("world", named(worlds))
def test_data_come_back_from_their_noise_at_second_order(world: tuple[Schedule, Grid | None]) -> None:
    denoiser, grid = three_bumps(Process(world[0])), world[1]
    x = data(denoiser)
    errors = [
        float((back(denoiser, invert(denoiser, x, steps=steps, grid=grid), steps, grid) - x).square().mean().sqrt())
        for steps in (40, 80, 160)
    ]
    assert order(errors) > 1.7, errors
    assert errors[-1] < 0.004


def test_the_model_is_called_at_the_grids_instants_only() -> None:
    process = Process(Linear())
    denoiser = Watched(isotropic(process, 0.3))
    invert(denoiser, unit(2, 2), steps=5, rounds=4)
    assert set(denoiser.called) == set(Trailing().times(process, 5).tolist()) and len(denoiser.called) == 4 + 2 * (5 - 1)
    denoiser.called.clear()
    noise = invert(denoiser, unit(2, 2), steps=3, grid=Below(begin=0.4))
    assert max(denoiser.called) == 0.4 and noise.shape == (2, 2)


def test_more_rounds_solve_the_first_step() -> None:
    """One step: the noise is the x whose prediction is the data."""
    denoiser = isotropic(Process(Straight()), 4.0)
    x, only = unit(3, 2), Listed(at=(0.3,))
    gaps = [
        float((back(denoiser, invert(denoiser, x, steps=1, grid=only, rounds=rounds), 1, only, DDIM()) - x).abs().max())
        for rounds in (1, 3, 40)
    ]
    assert gaps[0] > 2 * gaps[1] > 20 * gaps[2] and gaps[2] < 1e-12


def test_what_cannot_be_inverted_is_refused() -> None:
    denoiser = isotropic(Process(Linear()), 0.3)
    wrong = {"rounds: got 0": {"rounds": 0}, "must be n = 2": {"cond": {"class": torch.zeros(3)}}, "steps: got 0": {"steps": 0}}
    for word, options in wrong.items():
        with pytest.raises(ConfigError, match=word):
            invert(denoiser, unit(2, 2), **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="start: got shape"):
        invert(denoiser, unit(2, 3))
    with pytest.raises(ConfigError, match="trained on"):
        invert(toy(Straight(), V()), unit(2, 2), steps=2, grid=Listed(at=(1.0, 1e-5)))
    denoiser.meaning = "map"
    with pytest.raises(ConfigError, match="not a mean"):
        invert(denoiser, unit(2, 2))


@pytest.mark.parametrize("schedule", named([Linear(), Straight(), EDM()]))
def test_a_squeezed_grid_begins_where_it_is_told_and_ends_where_its_base_does(schedule: Schedule) -> None:
    process = Process(schedule)
    first = schedule.first
    for base in (None, Trailing(), Uniform()):
        times, whole = Below(base=base, begin=0.25).times(process, 10), Below(base=base, begin=1.0).times(process, 10)
        assert times[0] == 0.25
        close(whole, (base or default_grid(process, 10)).times(process, 10), rtol=1e-12)
        rounding = 0.5 / schedule.T if schedule.T else 1e-14
        close(times, first + (whole - first) * (0.25 - first) / (1 - first), atol=1.001 * rounding)
    with pytest.raises(ConfigError, match="begin: got"):
        Below(begin=schedule.first / 2).times(process, 1)


def test_a_chain_has_only_so_many_steps_below() -> None:
    process = Process(Linear(T=10))
    assert (Below(begin=0.4).times(process, 4) * 10).round().tolist() == [4, 3, 2, 1]
    for steps in range(1, 13):
        knots = (Below(begin=0.6).times(Process(Linear(T=20)), steps) * 20).round()
        assert knots[0] == 12 and bool((knots.diff() < 0).all()) and knots[-1] >= 1
    with pytest.raises(ConfigError, match="steps: got 5"):
        Below(begin=0.4).times(process, 5)


@pytest.mark.parametrize("sampler", named([DDIM(), Ancestral(), Multistep()]))
def test_a_walk_can_begin_at_perturbed_data(sampler: Any) -> None:
    """The start is q(x_t | x0) with the noise of each sample; batches agree; the less noise, the closer the data."""
    denoiser, grid = three_bumps(Process(Linear())), Below(begin=0.3)
    x = data(denoiser, 5)
    start = perturbed(denoiser, x, grid, 6, seed=3, first=2)
    at = denoiser.process.at(0.3)
    close(start, at.alpha * x + at.sigma * normals(3, range(2, 7), (2,), "start", dtype=torch.float64), rtol=1e-12)
    frames = list(trajectory(denoiser, 5, steps=6, grid=grid, sampler=sampler, start=start, dtype=torch.float64))
    assert float(frames[0].at.t) == 0.3 and torch.equal(frames[0].x, start)
    drawn = sample(denoiser, 5, steps=6, grid=grid, sampler=sampler, start=start, batch=2, dtype=torch.float64)
    close(drawn, frames[-1].x, rtol=1e-9, atol=1e-10)
    moved = []
    for begin in (0.01, 0.1, 0.5):
        grid = Below(begin=begin)
        drawn = sample(denoiser, 5, steps=5, grid=grid, sampler=sampler, start=perturbed(denoiser, x, grid, 5), dtype=torch.float64)
        moved.append(float((drawn - x).square().mean()))
    assert moved[0] < 0.01 and moved[0] < moved[1] < moved[2]
    with pytest.raises(ConfigError, match="start: got shape"):
        sample(denoiser, 4, steps=5, grid=grid, start=x)


def test_spherical_interpolation_keeps_angle_and_length() -> None:
    a, b = unit(2, 3, 4)
    b = b * a.norm() / b.norm()
    share = torch.linspace(0.0, 1.0, 7, dtype=torch.float64)
    mixed = slerp(a, b, share)
    close(mixed[0], a, rtol=1e-12)
    close(mixed[-1], b, rtol=1e-12)
    close(mixed.flatten(1).norm(dim=1), a.norm(), rtol=1e-12)
    steps = (mixed[1:] * mixed[:-1]).flatten(1).sum(1)
    close(steps, steps[0], rtol=1e-12)
    close(slerp(a, 2 * a, share), (1 + share).reshape(-1, 1, 1) * a, rtol=1e-12)


@pytest.mark.parametrize("world", named(worlds))
def test_interpolation_through_noise_ends_at_its_ends(world: tuple[Schedule, Grid | None]) -> None:
    denoiser = three_bumps(Process(world[0]))
    a, b = data(denoiser, 2)
    between = interpolate(denoiser, a, b, 5, steps=60, sampler=Multistep(), grid=world[1])
    assert between.shape == (5, 2) and bool(between.isfinite().all())
    close(between[0], a, atol=0.05)
    close(between[-1], b, atol=0.05)
    assert float((between[2] - (a + b) / 2).abs().max()) > 0.01


def test_interpolation_of_an_isotropic_gaussian_is_spherical() -> None:
    """Its flow is one scaling, so what is spherical in the noise is spherical in the data."""
    denoiser = isotropic(Process(Straight()), 0.5)
    a, b = unit(2, 2, seed=8)
    between = interpolate(denoiser, a, b, 6, steps=60, sampler=Multistep(), grid=Uniform())
    close(between, slerp(a, b, torch.linspace(0.0, 1.0, 6)), atol=0.01)


@pytest.mark.parametrize("sampler", named([DDIM(), Ancestral()]))
def test_interpolation_at_a_level_mixes_two_perturbed_samples_of_the_same_noise(sampler: Any) -> None:
    """Equal ends give equal samples; the ends are the walks of the perturbed data; the same noise and steps serve every share."""
    denoiser, grid = three_bumps(Process(Linear())), Below(begin=0.2)
    a, b = data(denoiser, 2)
    between = interpolate(denoiser, a, b, 5, level=0.2, steps=8, sampler=sampler, seed=4)
    start = perturbed(denoiser, torch.stack([a, b]), grid, 8, seed=4, shared=True)
    close(start[0] - start[1], denoiser.process.at(0.2).alpha * (a - b), rtol=1e-12)
    *_, ends = trajectory(denoiser, 2, steps=8, grid=grid, sampler=sampler, seed=4, indices=[0, 0], start=start, dtype=torch.float64)
    close(between[[0, -1]], ends.x, rtol=1e-9)
    same = interpolate(denoiser, a, a, 4, level=0.2, steps=8, sampler=sampler)
    close(same, same[:1].expand(4, 2), rtol=1e-12)
    with pytest.raises(ConfigError, match="n: got 1"):
        interpolate(denoiser, a, b, 1)
