"""Laws of the process: transitions compose, posterior times evidence is the joint, the implicit family keeps the marginals."""

from __future__ import annotations

import pytest
import torch
from members import named, schedules, shapes
from worlds import close, covariance, unit

from ddpm.process import At, Linear, Process, Schedule, Straight

every = pytest.mark.parametrize("schedule", named(schedules))
TRIPLES = torch.tensor(
    [(0.05, 0.3, 0.7), (0.3, 0.7, 1.0), (0.1, 0.1001, 0.9), (0.0, 0.1, 0.2), (0.0, 0.5, 1.0), (0.998, 0.999, 1.0)], dtype=torch.float64
)


def three(schedule: Schedule) -> tuple[Process, At, At, At]:
    process = Process(schedule)
    r, s, t = (process.at(column) for column in TRIPLES.T)
    return process, r, s, t


@every
def test_transitions_compose(schedule: Schedule) -> None:
    process, r, s, t = three(schedule)
    (scale_s, std_s), (scale_t, std_t), (scale, std) = process.transition(r, s), process.transition(s, t), process.transition(r, t)
    close(scale_t * scale_s, scale, rtol=1e-11)
    close(scale_t**2 * std_s**2 + std_t**2, std**2, rtol=1e-9)


@every
def test_the_transition_from_clean_is_the_marginal(schedule: Schedule) -> None:
    process = Process(schedule)
    at = process.at(torch.linspace(0.01, 1, 50, dtype=torch.float64))
    scale, std = process.transition(process.clean, at)
    close(scale, at.alpha, rtol=1e-12)
    close(std, at.sigma, rtol=1e-12)
    close(process.transition(process.at(0.0), at)[1], at.sigma, rtol=1e-12)


@every
def test_posterior_times_evidence_is_the_joint(schedule: Schedule) -> None:
    """(x_s, x_t) given x0 is Gaussian: built once as q(x_s | x0) q(x_t | x_s), with matrices, and once as q(x_t | x0) q(x_s | x_t, x0)."""
    process, _, s, t = three(schedule)
    k, step = process.transition(s, t)
    x0 = 1.7
    for i in range(len(TRIPLES)):
        forward = torch.tensor(
            [[s.sigma[i], 0.0], [k[i] * s.sigma[i], step[i]]], dtype=torch.float64
        )  # (x_s, x_t) = mean + forward @ normals
        joint = forward @ forward.T
        c_x0, c_xt, std = (c[i] for c in process.posterior(s, t))
        backward = torch.tensor([[c_xt * t.sigma[i], std], [t.sigma[i], 0.0]], dtype=torch.float64)
        close(backward @ backward.T, joint, rtol=1e-9, atol=1e-13)
        close(c_x0 * x0 + c_xt * t.alpha[i] * x0, s.alpha[i] * x0, rtol=1e-10)
        close(t.alpha[i] * x0, k[i] * s.alpha[i] * x0, rtol=1e-12)


@every
def test_the_posterior_is_the_conditional_of_the_definition(schedule: Schedule) -> None:
    """Conditioning the joint built from alpha and sigma alone, cov(x_s, x_t) = alpha_t/alpha_s sigma_s^2, well away from cancellation."""
    process = Process(schedule)
    s, t = process.at(torch.tensor([0.2, 0.05, 0.4], dtype=torch.float64)), process.at(torch.tensor([0.6, 0.5, 1.0], dtype=torch.float64))
    cross = t.alpha / s.alpha * s.sigma**2
    gain = cross / t.sigma**2
    c_x0, c_xt, std = process.posterior(s, t)
    close(c_xt, gain, rtol=1e-10, atol=1e-15)
    close(c_x0, s.alpha - gain * t.alpha, rtol=1e-9)
    close(std**2, s.sigma**2 - gain * cross, rtol=1e-9)


@every
def test_v_interpolates_from_the_posteriors_variance_to_the_transitions(schedule: Schedule) -> None:
    process, _, s, t = three(schedule)
    small, large = process.posterior(s, t)[2], process.transition(s, t)[1]
    assert torch.equal(process.posterior(s, t, 0.0)[2], small)
    close(process.posterior(s, t, torch.zeros(6, dtype=torch.float64))[2], small, rtol=1e-12)
    close(process.posterior(s, t, 1.0)[2], large, rtol=1e-12)
    close(process.posterior(s, t, torch.full((6,), 0.25, dtype=torch.float64))[2], small**0.75 * large**0.25, rtol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(process.posterior(s, t)[:2], process.posterior(s, t, 0.7)[:2], strict=True))


@every
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_the_implicit_family_keeps_the_marginals(schedule: Schedule, eta: float) -> None:
    process, _, s, t = three(schedule)
    c_x0, c_eps, std = process.implicit(s, t, eta)
    assert torch.equal(c_x0, s.alpha)
    close(c_eps**2 + std**2, s.sigma**2, rtol=1e-12, atol=1e-15)
    close(std, eta * process.posterior(s, t)[2], rtol=1e-12)


@every
def test_the_implicit_family_at_one_is_the_posterior(schedule: Schedule) -> None:
    process, _, s, t = three(schedule)
    x0, eps = 0.8, -1.3
    c_x0, c_xt, _ = process.posterior(s, t)
    a, b, _ = process.implicit(s, t, 1.0)
    close(a * x0 + b * eps, c_x0 * x0 + c_xt * (t.alpha * x0 + t.sigma * eps), rtol=1e-9, atol=1e-9 * float(s.sigma.max()))
    done = process.implicit(process.clean, t, 1.0)
    assert all(bool((c == wanted).all()) for c, wanted in zip(done, (1.0, 0.0, 0.0), strict=True))


@every
def test_every_walk_ends_by_returning_x0(schedule: Schedule) -> None:
    process = Process(schedule)
    t = process.at(torch.tensor([schedule.first, 0.5, 1.0], dtype=torch.float64))
    for coefficients in (process.posterior(process.clean, t), process.implicit(process.clean, t, 0.4)):
        assert all(bool((c == wanted).all()) for c, wanted in zip(coefficients, (1.0, 0.0, 0.0), strict=True))


@every
def test_residual_variance_is_the_variance_of_xs_given_xt(schedule: Schedule) -> None:
    """x0 ~ N(0, c): conditioning the joint Gaussian of (x0, x_s, x_t), with matrices."""
    process, c = Process(schedule), 0.4
    for first, second in ((0.1, 0.3), (0.4, 0.9), (0.7, 1.0)):
        s, t = process.at(first), process.at(second)
        k, step = process.transition(s, t)
        rows = [[c**0.5, 0.0, 0.0], [s.alpha * c**0.5, s.sigma, 0.0], [k * s.alpha * c**0.5, k * s.sigma, step]]
        root = torch.tensor([[float(entry) for entry in row] for row in rows], dtype=torch.float64)
        joint = root @ root.T
        given = joint[:2, :2] - joint[:2, 2:] @ joint[2:, :2] / joint[2, 2]
        close(process.residual_variance(s, t, given[0, 0]), given[1, 1], rtol=1e-8)


@every
def test_the_velocity_is_the_derivative_of_the_path(schedule: Schedule) -> None:
    process, h, x0, eps = Process(schedule), 1e-6, unit(7, 3, seed=1), unit(7, 3, seed=2)
    t = (torch.arange(120, 960, 120, dtype=torch.float64) + 0.5) / 1000
    before, at, after = (process.at(t + move, like=x0) for move in (-h, 0.0, h))
    close(
        process.velocity(x0, eps, at), (process.perturb(x0, eps, after) - process.perturb(x0, eps, before)) / (2 * h), rtol=1e-6, atol=1e-6
    )
    slope = (process.log_snr(t + h) - process.log_snr(t - h)) / (2 * h)
    close(process.wronskian(process.at(t)), -0.5 * process.at(t).alpha * process.at(t).sigma * slope, rtol=1e-6)


@pytest.mark.parametrize("steps", [600, 10, 7, 1])
def test_a_shorter_chain_walks_the_same_process(steps: int) -> None:
    """Linear(T=N) leaves alpha_bar where it was and lets beta_i = 1 - alpha_bar(i/N)/alpha_bar((i-1)/N) follow."""
    process, full = Process(Linear(T=steps)), Process(Linear())
    knots = torch.arange(steps + 1, dtype=torch.float64) / steps
    at = process.at(knots)
    assert torch.equal(at.alpha, full.at(knots).alpha)
    s, t = At(*(level[:-1] for level in at)), At(*(level[1:] for level in at))
    close(process.transition(s, t)[1] ** 2, 1 - (at.alpha[1:] / at.alpha[:-1]) ** 2, rtol=1e-9)


@pytest.mark.parametrize("shape", shapes, ids=str)
def test_an_instant_broadcasts_over_data_of_every_shape(shape: tuple[int, ...]) -> None:
    process, x0, eps = Process(Straight()), unit(3, *shape), unit(3, *shape, seed=1)
    t = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    x = process.perturb(x0, eps, process.at(t, like=x0))
    for i in range(3):
        close(x[i], (1 - t[i]) * x0[i] + t[i] * eps[i], rtol=1e-14)
        close(process.perturb(x0, eps, process.at(float(t[i]), like=x0))[i], x[i], rtol=1e-14)
    low = process.at(t, like=x0.float())
    assert low.alpha.dtype == torch.float32 and low.alpha.shape == (3, *[1] * len(shape))


def test_the_prior_has_the_spread_of_unit_data_at_the_first_instant() -> None:
    process, noise = Process(Straight()), unit(5, 4)
    at = process.at(0.6)
    close(process.prior(noise, at), (0.4**2 + 0.6**2) ** 0.5 * noise)


@pytest.mark.parametrize("t", [-1e-9, 1.0000001, float("nan")])
def test_time_outside_zero_to_one_is_refused(t: float) -> None:
    with pytest.raises(ValueError, match="time runs from 0"):
        Process(Linear()).at(torch.tensor([0.5, t], dtype=torch.float64))


def test_covariances_used_by_the_laws_are_covariances() -> None:
    assert float(torch.linalg.eigvalsh(covariance(5)).min()) > 0.05
