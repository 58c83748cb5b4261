"""Laws of denoisers: exact ones are exact, and every one of them, wrapped or not, obeys alpha x0 + sigma eps = x."""

from __future__ import annotations

import math

import pytest
import torch
from members import named, schedules, shapes
from torch import Tensor
from worlds import close, covariance, isotropic, normal_data, plain_codec, some_times, three_bumps, toy, unit

from ddpm.denoiser import Residuals, V, finite, gaussian
from ddpm.denoiser.denoiser import Denoiser
from ddpm.denoiser.exact import Mixture
from ddpm.errors import ConfigError
from ddpm.guidance import ClassifierFree
from ddpm.process import EDM, Linear, Process, Schedule, Straight
from ddpm.sampling import clipped

every = pytest.mark.parametrize("schedule", named(schedules))
shaped = pytest.mark.parametrize("shape", shapes, ids=str)


def where(schedule: Schedule, shape: tuple[int, ...], batch: int = 5) -> tuple[Process, Tensor, object]:
    """Points x (B, *D) at instants over the whole range, spread as x_t of unit data is."""
    process = Process(schedule)
    at = process.at(some_times(schedule)[:batch], like=unit(batch, *shape))
    return process, process.perturb(unit(batch, *shape, seed=5), unit(batch, *shape, seed=6), at), at


def obeys(denoiser: Denoiser, x: Tensor, at: object, cond: object = None) -> None:
    """alpha x0 + sigma eps = x, relative to the terms."""
    prediction = denoiser(x, at, cond)  # type: ignore[arg-type]
    terms = at.alpha * prediction.x0.abs() + at.sigma * prediction.eps.abs() + x.abs()  # type: ignore[attr-defined]
    gap = at.alpha * prediction.x0 + at.sigma * prediction.eps - x  # type: ignore[attr-defined]
    assert prediction.x0.shape == prediction.eps.shape == x.shape
    assert float((gap.abs() / terms).max()) < 1e-12


@every
@shaped
def test_every_denoiser_keeps_alpha_x0_plus_sigma_eps_equal_to_x(schedule: Schedule, shape: tuple[int, ...]) -> None:
    process, x, at = where(schedule, shape)
    network = toy(schedule, V(), shape)
    network.codec = plain_codec(shape[0])
    obeys(isotropic(process, 0.3, shape), x, at)
    obeys(finite(process, unit(4, *shape, seed=8)), x, at)
    if math.prod(shape) <= 24:
        obeys(three_bumps(process, shape), x, at)
    obeys(network, x, at)
    cond = {"class": torch.arange(5)}
    for scale in (0.0, 1.0, 3.0, -1.0):
        obeys(ClassifierFree(network, scale), x, at, cond)
    for mode in ("static", "dynamic"):
        model = clipped(network.bind(cond), network.codec, mode, x)  # type: ignore[arg-type]
        prediction = model(x, at)  # type: ignore[arg-type]
        close(process.perturb(prediction.x0, prediction.eps, at), x, rtol=1e-11, atol=1e-11)  # type: ignore[arg-type]
        assert float(prediction.x0.abs().max()) <= 1.0 + 1e-12


@pytest.mark.parametrize("schedule", named([Linear(), Straight(), EDM()]))
@pytest.mark.parametrize("shape", [(5,), (3, 8), (1, 4, 3)], ids=str)
@pytest.mark.parametrize("one_instant", [False, True])
def test_the_score_is_the_gradient_of_the_log_density(schedule: Schedule, shape: tuple[int, ...], one_instant: bool) -> None:
    process, x, _ = where(schedule, shape, batch=4)
    t = torch.tensor(0.3) if one_instant else torch.tensor([0.05, 0.1, 0.35, 0.8], dtype=torch.float64)
    at = process.at(t, like=x)
    for denoiser in (three_bumps(process, shape), isotropic(process, 0.2, shape), finite(process, unit(4, *shape, seed=8))):
        moving = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(denoiser.log_density(moving, at).sum(), moving)
        close(denoiser.score(x, at), gradient, rtol=1e-8, atol=1e-8)


def test_the_log_density_is_that_of_the_noised_mixture() -> None:
    process, x = Process(Linear()), unit(6, 3)
    denoiser = three_bumps(process, (3,))
    at = process.at(torch.tensor([0.01, 0.1, 0.3, 0.5, 0.9, 1.0], dtype=torch.float64), like=x)
    covariances = torch.stack([0.3 * covariance(3, seed=k) + 0.05 * torch.eye(3, dtype=torch.float64) for k in range(3)])
    for i in range(6):
        noised = at.alpha[i] ** 2 * covariances + at.sigma[i] ** 2 * torch.eye(3, dtype=torch.float64)
        parts = torch.distributions.MultivariateNormal(at.alpha[i] * unit(3, 3, seed=9), noised).log_prob(x[i])
        close(denoiser.log_density(x, at)[i], (parts + torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()).logsumexp(0), rtol=1e-6)


@every
def test_the_gaussian_denoiser_is_the_conjugate_formula(schedule: Schedule) -> None:
    process, x, at = where(schedule, (4,))
    mean, c = unit(4, seed=3), covariance(4, seed=4)
    denoiser = gaussian(process, mean, c)
    got, residual = denoiser(x, at).x0, denoiser.residual(process.at(some_times(schedule)))  # type: ignore[arg-type]
    for i in range(len(x)):
        alpha, sigma = at.alpha[i], at.sigma[i]  # type: ignore[attr-defined]
        precision = torch.linalg.inv(c) + (alpha / sigma) ** 2 * torch.eye(4, dtype=torch.float64)
        wanted = torch.linalg.solve(precision, torch.linalg.solve(c, mean) + alpha / sigma**2 * x[i])
        close(got[i], wanted, rtol=1e-8, atol=1e-8)
        close(residual[i], torch.linalg.inv(precision).diagonal().mean(), rtol=1e-8)


@every
def test_the_finite_denoiser_is_the_softmax_average_of_the_data(schedule: Schedule) -> None:
    process, x, at = where(schedule, (2, 3))
    data = unit(6, 2, 3, seed=7)
    distance = ((x[:, None] - at.alpha[:, None] * data) ** 2).sum((2, 3)) / (2 * at.sigma.reshape(-1, 1) ** 2)  # type: ignore[attr-defined]
    wanted = torch.einsum("bk,kij->bij", (-distance).softmax(1), data)
    close(finite(process, data)(x, at).x0, wanted, rtol=1e-8, atol=1e-9)  # type: ignore[arg-type]


def test_the_mixture_mean_is_bayes_rule_by_quadrature() -> None:
    """One dimension: E[x0 | x] = integral of x0 p(x0) N(x; alpha x0, sigma^2), on a fine grid."""
    process = Process(Linear())
    denoiser = Mixture(
        process,
        torch.tensor([[-1.0], [0.5]], dtype=torch.float64),
        torch.tensor([0.04, 0.25], dtype=torch.float64),
        torch.tensor([1.0, 3.0]),
    )
    grid = torch.linspace(-8, 8, 40001, dtype=torch.float64)
    density = sum(w / s * (-0.5 * ((grid - m) / s) ** 2).exp() for w, m, s in ((0.25, -1.0, 0.2), (0.75, 0.5, 0.5)))
    for t, x in ((0.05, -0.4), (0.3, 0.2), (0.8, 1.5)):
        at = process.at(t)
        weight = density * (-0.5 * ((x - at.alpha * grid) / at.sigma) ** 2).exp()
        close(denoiser(torch.tensor([[x]], dtype=torch.float64), at).x0.item(), (weight * grid).sum() / weight.sum(), rtol=1e-7)


def test_what_is_drawn_has_the_mixtures_moments() -> None:
    denoiser, n = normal_data(Process(Linear()), 3), 20000
    x = denoiser.draw(unit(n, 3, seed=11), torch.zeros(n, dtype=torch.int64))
    c = covariance(3, seed=4)
    assert float(((x.mean(0) - 0.5 * unit(3, seed=3)) / (c.diagonal() / n).sqrt()).abs().max()) < 4.5
    error = ((c**2 + c.diagonal()[:, None] * c.diagonal()) / n).sqrt()
    assert float(((x.T.cov() - c) / error).abs().max()) < 4.5


def test_one_gaussian_knows_its_residual_and_several_do_not() -> None:
    process = Process(Linear())
    with pytest.raises(ConfigError, match="no closed form"):
        three_bumps(process).residual(process.at(0.5))
    with pytest.raises(ConfigError, match="covariances"):
        Mixture(process, unit(2, 3), torch.ones(3))
    with pytest.raises(ConfigError, match="negative"):
        Mixture(process, unit(2, 3), torch.tensor([1.0, -0.1]))


def test_measured_residuals_are_interpolated_in_log_snr() -> None:
    denoiser = toy(Linear(), V())
    process = denoiser.process
    with pytest.raises(ConfigError, match="no residual moments"):
        denoiser.residual(process.at(0.5))
    truth = normal_data(process)
    knots = process.at(torch.linspace(1.0, 0.001, 200, dtype=torch.float64))
    denoiser.residuals = Residuals(tuple(knots.log_snr.tolist()), tuple(truth.residual(knots).tolist()))
    asked = process.at(torch.linspace(0.001, 1.0, 57, dtype=torch.float64))
    close(denoiser.residual(asked), truth.residual(asked), rtol=0.03)
    close(denoiser.residual(knots), truth.residual(knots), rtol=1e-9)


@shaped
def test_guidance_reduces_to_its_parts(shape: tuple[int, ...]) -> None:
    network, x = toy(Linear(), V(), shape), unit(4, *shape)
    at = network.process.at(torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64), like=x)
    cond = {"class": torch.arange(4)}
    asked, nothing = network(x, at, cond), network(x, at, {**cond, "null": torch.ones(4, dtype=torch.bool)})
    assert not torch.allclose(asked.x0, nothing.x0)
    for scale in (0.0, 1.0, 1e-9, 1.0 + 1e-9, 2.5, -0.5):
        guided = ClassifierFree(network, scale)(x, at, cond)
        for got, one, other in zip(guided[:2], asked[:2], nothing[:2], strict=True):
            close(got, other + scale * (one - other), rtol=1e-7, atol=1e-8)
    assert torch.equal(ClassifierFree(network, 0.0)(x, at, cond).x0, nothing.x0)
    assert torch.equal(ClassifierFree(network, 1.0)(x, at, cond).x0, asked.x0)
    assert network.null(None) is None


def test_guidance_respects_samples_that_are_unconditional_already() -> None:
    network, x = toy(Linear(), V()), unit(4, 2)
    at, null = network.process.at(0.4, like=x), torch.tensor([True, False, True, False])
    cond = {"class": torch.arange(4), "null": null}
    guided = ClassifierFree(network, 3.0)(x, at, cond).x0
    close(guided[null], network(x, at, network.null(cond)).x0[null], rtol=1e-9)


@pytest.mark.parametrize("scale", [math.inf, math.nan])
def test_guidance_needs_a_finite_scale_and_a_condition(scale: float) -> None:
    network = toy(Linear(), V())
    with pytest.raises(ConfigError, match="finite"):
        ClassifierFree(network, scale)
    with pytest.raises(ConfigError, match="no condition"):
        ClassifierFree(network, 2.0)(unit(2, 2), network.process.at(0.5))
