"""Laws of inverse problems: on a Gaussian prior with linear measurements the posterior is known, so what a method promises is computed.

On a Gaussian every denoiser here is affine in x, so a whole walk is pushed through it, and hardly anything is sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from measurements import OPERATORS, SIZE, D, conditioned, ended, eye, matrix_of, measured, pair
from torch import Tensor
from worlds import close, covariance, three_bumps, unit

from ddpm.denoiser import Denoiser, Mixture, gaussian
from ddpm.guidance import DPS, Mask, MomentMatching, Operator, PiGDM, Posterior, Projection
from ddpm.process import EDM, VPSDE, Cosine, Linear, LogSNR, Process, Schedule
from ddpm.sampling import Ancestral, Multistep, sample, trajectory

EXACT = -math.inf  # no floor
operators = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
noises = pytest.mark.parametrize("noise", [0.0, 0.3])


def world(schedule: Schedule, isotropic: float | None = None) -> tuple[Mixture, Tensor, Tensor]:
    """A Gaussian prior: its exact denoiser, mean (n,) and covariance (n, n)."""
    mean, cov = 0.5 * unit(SIZE, seed=3), covariance(SIZE, seed=4) if isotropic is None else isotropic**2 * eye(SIZE)
    return gaussian(Process(schedule), mean.reshape(D), cov), mean, cov


def exact(denoiser: Denoiser, mean: Tensor, cov: Tensor, a: Tensor, y: Tensor, noise: float, x: Tensor, t: float) -> Tensor:
    """E[x0 | x_t, y], (B, n): conditioned on x_t = alpha x0 + sigma eps, then on y."""
    at = denoiser.process.at(t)
    given, spread = conditioned(mean, cov, at.alpha * eye(SIZE), x.flatten(1), at.sigma.item())
    return conditioned(given, spread, a, y.flatten(), noise)[0]


def flow(model: Denoiser, steps: int = 40) -> tuple[Tensor, Tensor]:
    """Mean (n,) and covariance (n, n) of where the probability flow of an affine denoiser ends: the images of 0 and of unit starts."""
    starts = torch.cat([torch.zeros(1, *D, dtype=torch.float64), eye(SIZE).reshape(SIZE, *D)])
    walk = trajectory(model, SIZE + 1, steps=steps, sampler=Multistep(), grid=LogSNR(), start=starts, clip="off", dtype=torch.float64)
    end = list(walk)[-1].x.flatten(1)
    by_x = (end[1:] - end[0]).T * model.process.prior_std(model.process.at(1.0))
    return end[0], by_x @ by_x.T


@operators
@noises
@pytest.mark.parametrize("schedule", [Linear(), Cosine(), EDM()], ids=lambda s: type(s).__name__)
def test_moment_matching_is_the_exact_posterior_mean_on_a_gaussian(schedule: Schedule, operator: Operator, noise: float) -> None:
    denoiser, mean, cov = world(schedule)
    y, x = measured(operator, noise), unit(3, *D, seed=9)
    model = MomentMatching(denoiser, operator, y, noise=noise, floor=EXACT, iterations=2 * SIZE)
    for t in (0.02, 0.3, 0.7, 1.0):
        at = model.process.at(t, x)
        wanted = exact(denoiser, mean, cov, matrix_of(operator), y, noise, x * model.process.prior_std(at), t)
        got = model(x * model.process.prior_std(at), at)
        close(got.x0.flatten(1), wanted, rtol=1e-8, atol=1e-8)
        close(at.alpha * got.x0 + at.sigma * got.eps, x * model.process.prior_std(at), rtol=1e-9, atol=1e-9)


KINDS: tuple[type[Posterior], ...] = (Projection, PiGDM, MomentMatching)


@pytest.mark.parametrize("kind", KINDS)
@operators
@noises
@pytest.mark.parametrize("std", [1.0, 0.4])
def test_the_linear_three_are_exact_on_isotropic_data(kind: Callable[..., Posterior], operator: Operator, noise: float, std: float) -> None:
    denoiser, mean, cov = world(Linear(), std)
    y, x = measured(operator, noise), unit(3, *D, seed=9)
    options = {} if kind is Projection else {"floor": EXACT}
    options |= {"iterations": 2 * SIZE} if kind is MomentMatching else {}
    model = kind(denoiser, operator, y, noise=noise, sigma_data=std, **options)
    for t in (0.02, 0.5, 1.0):
        wanted = exact(denoiser, mean, cov, matrix_of(operator), y, noise, x, t)
        close(model(x, model.process.at(t, x)).x0.flatten(1), wanted, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("noise, name", [(0.3, name) for name in OPERATORS] + [(0.0, "mask"), (0.0, "pool")])
def test_a_walk_by_moment_matching_ends_with_the_posteriors_mean_and_covariance(noise: float, name: str) -> None:
    """What is left is the error of 40 steps of the solver: of the flow without y it is as large."""
    operator = OPERATORS[name]
    denoiser, mean, cov = world(VPSDE())
    y = measured(operator, noise)
    wanted = conditioned(mean, cov, matrix_of(operator), y.flatten(), noise)
    got = flow(MomentMatching(denoiser, operator, y, noise=noise, floor=EXACT, iterations=SIZE))
    close(got[0], wanted[0], atol=0.015)
    close(got[1], wanted[1], atol=0.025)
    assert float((wanted[0] - mean).abs().max()) > 0.2 and float((wanted[1] - cov).abs().max()) > 0.1  # y says something


def test_samples_by_moment_matching_have_the_posteriors_mean_and_covariance() -> None:
    denoiser, mean, cov = world(Linear())
    operator, noise, n = OPERATORS["pool"], 0.3, 3000
    y = measured(operator, noise)
    model = MomentMatching(denoiser, operator, y, noise=noise, floor=EXACT, iterations=4)
    drawn = sample(model, n, steps=30, sampler=Multistep(), dtype=torch.float64, batch=n).flatten(1)
    wanted = conditioned(mean, cov, matrix_of(operator), y.flatten(), noise)
    assert float(((drawn.mean(0) - wanted[0]) / (wanted[1].diag() / n).sqrt()).abs().max()) < 4.5 + 2.0  # 2: the solver's error
    close(drawn.T.cov(), wanted[1], atol=0.05)


def test_a_differentiated_mixture_stays_on_its_line_and_is_drawn_to_the_likely_mode() -> None:
    """No promise is made for data of several modes; alpha x0 + sigma eps = x is kept, and y is met."""
    denoiser, known = three_bumps(Process(Linear()), (4,)), torch.tensor([True, False, False, True])
    y, x = unit(1, 4, seed=2), unit(5, 4, seed=1)
    for model in (MomentMatching(denoiser, Mask(known), y), Projection(denoiser, Mask(known), y)):
        at = model.process.at(0.4, x)
        x0, eps, _ = model(x, at)
        close(at.alpha * x0 + at.sigma * eps, x, rtol=1e-10)
        close(x0[:, known], y[:, known].expand(5, -1), rtol=1e-10)


# --- known biases -------------------------------------------------------------------------------------------------------------------------


def test_the_known_biases_of_the_denoisers() -> None:
    """The figures of docs/inverse.md (there of 1000 steps), with their signs."""
    denoiser, mask, y, mean, std = pair()
    small = Ancestral(variance="small")
    right = ended(MomentMatching(denoiser, mask, y, noise=0.2, floor=EXACT, iterations=2), small)
    close(right[0], mean, atol=5e-3)
    close(right[1], std, atol=2e-2)  # the chain's own, which 200 small steps leave a little too narrow
    pigdm = ended(PiGDM(denoiser, mask, y, noise=0.2, floor=EXACT), small)
    told = ended(PiGDM(denoiser, mask, y, noise=0.2, floor=EXACT, sigma_data=0.5), small)
    project = ended(Projection(denoiser, mask, y, noise=0.2), small)
    dps = ended(DPS(denoiser, mask, y, noise=0.2, floor=EXACT), small)
    assert bool((pigdm[0] < mean - 0.05).all()) and bool((pigdm[1] > std).all())  # sigma_data too large: y is trusted too little
    assert bool(((told[0] - mean).abs() < (pigdm[0] - mean).abs()).all())  # less so with the data's own
    assert project[0][1] < mean[1] - 0.2 and abs(project[0][0] - mean[0]) < 0.05  # what was not measured is told too little
    assert bool((dps[0] > mean + 0.1).all()) and bool((dps[1] < std - 0.02).all())  # y is trusted too much
    for got, figures in ((pigdm, PIGDM), (project, PROJECT), (dps, DIFFUSION)):
        close(torch.cat(got), torch.tensor(figures), atol=0.015)


PIGDM, PROJECT, DIFFUSION = (0.745, 0.505, 0.206, 0.359), (0.841, 0.443, 0.179, 0.387), (0.998, 0.957, 0.137, 0.287)


def test_the_gradient_of_dps_is_that_of_the_norm_for_any_callable() -> None:
    denoiser = three_bumps(Process(Linear()), (4,))
    x, y = unit(3, 4, seed=1), unit(1, 2, seed=2)

    def bent(x0: Tensor) -> Tensor:
        return torch.tanh(x0[:, :2] * x0[:, 2:])

    at = denoiser.process.at(0.4, x)
    inputs = x.clone().requires_grad_()
    prediction = denoiser(inputs, at)
    off = (y - bent(prediction.x0)).norm(dim=1)
    (slope,) = torch.autograd.grad(off.sum(), inputs)
    for options, factor in (({"scale": 2.0}, 2.0 * 2**0.5), ({"noise": 0.3}, off.detach()[:, None] / 0.09)):
        got = DPS(denoiser, bent, y, **options)(x, at)
        close(got.eps, prediction.eps.detach() + at.sigma * factor * slope, rtol=1e-8, atol=1e-10)
