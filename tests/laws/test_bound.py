"""Laws of the T-step bound: terms are the divergences they are named after, the decoder is a distribution, the sum nears the truth."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from members import named
from torch.distributions import Normal, kl_divergence
from worlds import Nudged, close, isotropic, normal_data, uniforms, unit, z_score

from ddpm.denoiser import Codec, Denoiser, finite
from ddpm.errors import ConfigError
from ddpm.objective import Draws, Stepwise, VariationalBound, decoder_nll, gaussian_kl, prior_term, step_term, variational_bound
from ddpm.process import VPSDE, Cosine, Linear, Process, Schedule, Straight

variances = pytest.mark.parametrize("variance", ["small", "large", "learned", "analytic"])
chains = pytest.mark.parametrize("schedule", named([Linear(T=20), Linear(), Cosine(T=50), Straight(T=10)]))
LEVELS = 17
codec = Codec(shift=(8.0,), scale=(8.0,), dtype="uint8", bins=(0.0, 16.0))  # the digits': 0..16 to [-1, 1]
levels = torch.arange(LEVELS, dtype=torch.float64) / 8 - 1


def binned(denoiser: Denoiser) -> Denoiser:
    denoiser.codec = codec
    return denoiser


@chains
@variances
def test_every_term_is_the_divergence_of_two_normals(schedule: Schedule, variance: str) -> None:
    """KL(q(x_s | x_t, x0) || p(x_s | x_t)) with both distributions written out from alpha and sigma."""
    process, length = Process(schedule), schedule.T
    assert length is not None
    x0, eps, v = unit(8, 1, seed=1), unit(8, 1, seed=2), 0.3
    steps = torch.tensor([2, 3, 4, length // 2, length // 2 + 1, length - 2, length - 1, length])
    gauss = isotropic(process, 0.3, (1,))
    got = step_term(Nudged(gauss, 0.2, v), x0, None, steps, eps, variance)  # type: ignore[arg-type]
    for i, step in enumerate(steps.tolist()):
        s, t = process.at((step - 1) / length), process.at(step / length)
        ratio = t.alpha / s.alpha
        beta = t.sigma**2 - ratio**2 * s.sigma**2
        small = beta * s.sigma**2 / t.sigma**2
        x = t.alpha * x0[i] + t.sigma * eps[i]
        mean = lambda data, s=s, t=t, beta=beta, ratio=ratio, x=x: (s.alpha * beta * data + ratio * s.sigma**2 * x) / t.sigma**2  # noqa: E731
        residual = 0.3 * t.sigma**2 / (0.3 * t.alpha**2 + t.sigma**2)
        wide = {
            "small": small,
            "large": beta,
            "learned": small ** (1 - v) * beta**v,
            "analytic": small + (s.alpha * beta / t.sigma**2) ** 2 * residual,
        }
        guess = gauss(x[None], t).x0[0] + 0.2
        wanted = kl_divergence(Normal(mean(x0[i]), small.sqrt()), Normal(mean(guess), wide[variance].sqrt()))
        close(got[i], wanted.mean(), rtol=1e-7, atol=1e-12)


@chains
def test_terms_with_the_posteriors_variance_are_the_fall_in_snr(schedule: Schedule) -> None:
    """L_{t-1} = 1/2 (SNR(s) - SNR(t)) |x0 - x0_hat|^2. Kingma et al., 2021, arXiv:2107.00630, eq. 13."""
    process, length = Process(schedule), schedule.T
    assert length is not None
    x0, eps, steps = unit(9, 3, seed=1), unit(9, 3, seed=2), torch.linspace(2, length, 9, dtype=torch.float64).round()
    denoiser = isotropic(process, 0.3, (3,))
    s, t = process.at((steps - 1) / length, like=x0), process.at(steps / length, like=x0)
    miss = (x0 - denoiser(process.perturb(x0, eps, t), t).x0).square().mean(1)
    snr = [(at.alpha / at.sigma).squeeze(1) ** 2 for at in (s, t)]
    close(step_term(denoiser, x0, None, steps, eps, "small"), 0.5 * (snr[0] - snr[1]) * miss, rtol=1e-8)


def test_a_divergence_is_torchs() -> None:
    m, n, v, w = unit(5), unit(5, seed=1), uniforms(5) + 0.1, uniforms(5, seed=1) + 0.1
    close(gaussian_kl(m, v, n, w), kl_divergence(Normal(m, v.sqrt()), Normal(n, w.sqrt())))


@pytest.mark.parametrize("schedule", named([Linear(), Cosine(), Straight(T=10), VPSDE()]))
def test_the_prior_term_is_a_divergence_too(schedule: Schedule) -> None:
    process, x0 = Process(schedule), unit(4, 3)
    end = process.at(1.0)
    p = Normal(torch.zeros(4, 3, dtype=torch.float64), torch.hypot(end.alpha, end.sigma))
    close(prior_term(process, x0), kl_divergence(Normal(end.alpha * x0, end.sigma), p).mean(1), rtol=1e-8, atol=1e-15)


@pytest.mark.parametrize("std", [1e-4, 0.01, 0.06, 0.5, 10.0])
@pytest.mark.parametrize("mean", [-3.0, -1.0, -0.93, 0.0625, 0.3, 1.0, 1.7])
def test_the_decoder_is_a_distribution_over_the_levels(mean: float, std: float) -> None:
    denoiser, x0 = binned(isotropic(Process(Linear()), 0.3, (1,))), levels[:, None]
    nll = decoder_nll(x0, torch.full_like(x0, mean), torch.full_like(x0, std), denoiser)
    assert bool((nll > -1e-12).all()) and bool(torch.isfinite(nll).all())
    close((-nll).exp().sum(), 1.0, rtol=1e-9)


@pytest.mark.parametrize("std", [0.05, 0.3, 2.0])
def test_the_decoder_is_a_difference_of_distribution_functions(std: float) -> None:
    denoiser, x0, mean = binned(isotropic(Process(Linear()), 0.3, (1,))), levels[:, None], 0.15
    p = Normal(torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64))
    above, below = p.cdf(levels + 1 / 16), p.cdf(levels - 1 / 16)
    above[-1], below[0] = 1.0, 0.0
    got = (-decoder_nll(x0, torch.full_like(x0, mean), torch.full_like(x0, std), denoiser)).exp()[:, 0]
    close(got, above - below, rtol=1e-9, atol=1e-13)


def test_the_decoder_keeps_its_digits_far_in_the_tail() -> None:
    """log(Phi(b) - Phi(a)) at 30 deviations, where the plain difference is 0: Phi(-z) ~ phi(z)/z (1 - 1/z^2)."""
    denoiser, x0 = binned(isotropic(Process(Linear()), 0.3, (1,))), torch.tensor([[0.5], [-0.5]], dtype=torch.float64)
    std = 0.01
    got = decoder_nll(x0, torch.tensor([[0.1], [-0.1]], dtype=torch.float64), torch.full_like(x0, std), denoiser)
    z = (0.4 - 1 / 16) / std
    near = 0.5 * z**2 + math.log(z) + 0.5 * math.log(2 * math.pi) - math.log1p(-1 / z**2 + 3 / z**4)
    close(got, near, rtol=1e-7)


def test_continuous_data_are_decoded_by_their_density() -> None:
    x0, mean, std = unit(4, 2), unit(4, 2, seed=1), uniforms(8).reshape(4, 2) + 0.1
    close(decoder_nll(x0, mean, std, normal_data(Process(Linear()))), -Normal(mean, std).log_prob(x0))


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_the_first_term_decodes_with_the_variance_of_the_step_above_where_its_own_is_zero(variance: str) -> None:
    process = Process(Linear(T=20))
    x0, eps, v = levels[[3, 9]][:, None], unit(2, 1), 0.25
    denoiser = Nudged(binned(isotropic(process, 0.3, (1,))), 0.0, v)
    one, two = process.at(0.05), process.at(0.1)
    beta = process.transition(process.clean, one)[1] ** 2
    floor = process.posterior(one, two)[2] ** 2
    width = {"small": floor, "large": floor, "learned": floor ** (1 - v) * beta**v}[variance]  # "large" as in Ho's code
    x = process.perturb(x0, eps, one)
    wanted = decoder_nll(x0, denoiser(x, one).x0, width.sqrt().expand_as(x0), denoiser).mean(1)
    close(step_term(denoiser, x0, None, torch.tensor([1, 1]), eps, variance), wanted)  # type: ignore[arg-type]


def test_the_loss_is_one_term_times_t_and_the_bound_is_their_sum() -> None:
    process = Process(Linear(T=6))
    denoiser, x0, noise = normal_data(process), unit(5, 2), unit(6, 5, 2, seed=4)
    terms = variational_bound(denoiser, x0, None, noise)
    assert terms.shape == (5, 7)
    close(terms[:, -1], prior_term(process, x0))
    for step in range(1, 7):
        u = torch.full((5,), (step - 0.5) / 6, dtype=torch.float64)
        close(VariationalBound(variance="small").build()(denoiser, x0, None, Draws(u, noise[step - 1], noise[0])), 6 * terms[:, step - 1])


def test_learned_variance_runs_from_small_to_large_and_must_be_there() -> None:
    process = Process(Linear(T=20))
    inner, x0, eps, steps = normal_data(process), unit(6, 2), unit(6, 2, seed=1), torch.tensor([1, 2, 5, 10, 19, 20])
    for v, kind, same in ((0.0, "small", slice(0, None)), (1.0, "large", slice(1, None))):  # step 1 is above
        got = step_term(Nudged(inner, 0.1, v), x0, None, steps, eps, "learned")
        close(got[same], step_term(Nudged(inner, 0.1), x0, None, steps, eps, kind)[same])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="learned"):
        step_term(inner, x0, None, steps, eps, "learned")


def test_the_bound_falls_with_t_to_the_entropy_of_the_data() -> None:
    """Three points on the grid of levels, known exactly: the best any model can do is log 3 nats a sample."""
    data = levels[torch.tensor([[2, 13], [8, 4], [14, 10]])]
    n, totals = 600, []
    x0 = data[torch.arange(n) % 3]
    for T in (4, 16, 64, 256):
        denoiser = binned(finite(Process(Linear(T=T)), data))
        terms = variational_bound(denoiser, x0, None, unit(T, n, 2, seed=T)).sum(1) * 2
        totals.append((float(terms.mean()), float(terms.std()) / math.sqrt(n)))
    for (worse, _), (better, error) in itertools.pairwise(totals):
        assert better < worse - 4.5 * error
    assert totals[-1][0] > math.log(3) - 4.5 * totals[-1][1]
    assert totals[-1][0] - math.log(3) < 0.2 < totals[0][0] - math.log(3)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_reduced_stepwise_objective_has_the_same_gradient_and_less_variance(variance: str) -> None:
    process, n = Process(Linear(T=20)), 20_000
    exact = normal_data(process)
    x0 = exact.draw(unit(n, 2, seed=5), torch.zeros(n, dtype=torch.int64))
    drawn, gradients = Draws(uniforms(n, seed=6), unit(n, 2, seed=7), unit(n, 2, seed=8)), {}
    for reduced in (False, True):
        denoiser = Nudged(exact, torch.full((n,), 0.3).double().requires_grad_())
        value = Stepwise(reduced=reduced, variance=variance).build()(denoiser, x0, None, drawn)  # type: ignore[arg-type]
        gradients[reduced] = (torch.autograd.grad(value.sum(), denoiser.delta)[0], value.detach())
    for plain, reduced in zip(gradients[False], gradients[True], strict=True):
        assert z_score(plain - reduced) < 4.5
        assert reduced.var() < plain.var()
    assert gradients[True][0].mean() > 10 * gradients[True][0].std() / math.sqrt(n)  # the gradient is there


@pytest.mark.parametrize("variance", ["small", "large"])
def test_reducing_is_integrating_the_next_state_out(variance: str) -> None:
    """The plain objective is quadratic in z, so its mean over z is its mean over z = -1 and +1."""
    process = Process(Linear(T=20))
    exact, x0, eps, u = normal_data(process), unit(200, 2), unit(200, 2, seed=1), uniforms(200)
    one = torch.ones_like(x0)
    plain, reduced = (Stepwise(reduced=flag, variance=variance).build() for flag in (False, True))  # type: ignore[arg-type]
    pair = [plain(exact, x0, None, Draws(u, eps, z)) for z in (one, -one)]
    close(reduced(exact, x0, None, Draws(u, eps, one)), (pair[0] + pair[1]) / 2)


def test_the_stepwise_objective_is_the_bound_plus_the_posteriors_entropy() -> None:
    process, T = Process(Linear(T=20)), 20
    exact, x0, eps = normal_data(process), unit(19, 2), unit(19, 2, seed=1)
    steps = torch.arange(2, 21, dtype=torch.float64)
    drawn = Draws((steps - 0.5) / T, eps, eps)
    small = process.posterior(process.at((steps - 1) / T), process.at(steps / T))[2]
    entropy = 0.5 * (2 * math.pi * math.e * small**2).log()
    gap = Stepwise(reduced=True).build()(exact, x0, None, drawn) - VariationalBound(variance="small").build()(exact, x0, None, drawn)
    close(gap, T * entropy, rtol=1e-8)


@pytest.mark.parametrize("settings", named([Stepwise(), VariationalBound(variance="small")]))
def test_a_chain_is_needed(settings: Stepwise) -> None:
    with pytest.raises(ConfigError, match="discrete chain"):
        settings.build()(normal_data(Process(VPSDE())), unit(4, 2), None, Draws(uniforms(4), unit(4, 2), unit(4, 2)))
