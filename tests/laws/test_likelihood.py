"""Laws of the likelihoods: the flow's density is the density, the bounds bound it and meet it, and each keeps the data's units."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from members import named
from test_adaptive import Watched
from torch import Tensor
from worlds import Nudged, close, isotropic, normal_data, three_bumps, uniforms, unit, z_score

from ddpm.denoiser import Codec, Denoiser, finite
from ddpm.errors import ConfigError
from ddpm.likelihood import continuous, discrete, flow, log_density, transport
from ddpm.likelihood.bound import strata
from ddpm.likelihood.flow import divergence, probes_for
from ddpm.process import EDM, VE, VPSDE, At, Cosine, Linear, Process, Schedule, Sigmoid, Straight, SubVP
from ddpm.sampling import Adaptive

TIGHT = Adaptive(rtol=1e-6, atol=1e-6)
wide = Codec(shift=(1.0,), scale=(3.0,), dtype="float64")  # x = (raw - 1)/3


def truth(denoiser: Denoiser, x0: Tensor) -> Tensor:
    """-log p of the data themselves, (B,)."""
    return -denoiser.log_density(x0, denoiser.process.clean)  # type: ignore[attr-defined]


def some(denoiser: Denoiser, n: int, seed: int = 5) -> Tensor:
    """n data of an exact denoiser, (n, *D)."""
    counts = (uniforms(n, seed) * len(denoiser.means)).long()  # type: ignore[attr-defined]
    return denoiser.draw(unit(n, *denoiser.shape, seed=seed), counts)  # type: ignore[attr-defined]


# --- the flow -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", named([Linear(), Cosine(clip=None), VPSDE(), SubVP(), Straight(), VE(), EDM()]))
def test_the_change_along_the_flow_is_that_of_the_exact_density(schedule: Schedule) -> None:
    """log p_s(x_s) - log p_t(x_t), from data to noise, where p_t of a mixture is known at both ends."""
    process = Process(schedule)
    denoiser, x = three_bumps(process), unit(3, 2, seed=1)
    start, stop = process.at(0.02), process.at(1.0)
    x = process.perturb(x, torch.zeros_like(x), start)
    ended = transport(denoiser, x, start, stop, solver=TIGHT)
    wanted = denoiser.log_density(x, start) - denoiser.log_density(ended.x, stop)
    close(ended.change[:, 0], wanted, rtol=2e-5, atol=2e-5)
    back = transport(denoiser, ended.x, stop, start, solver=TIGHT)
    close(back.x, x, rtol=1e-3, atol=1e-3)
    close(back.change, -ended.change, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("schedule", named([Cosine(clip=None), Straight(), Sigmoid()]))
def test_the_flow_has_the_density_of_a_gaussian_and_of_a_mixture(schedule: Schedule) -> None:
    """From the data to alpha = 0, where the prior is exact."""
    for denoiser in (normal_data(Process(schedule), 3), three_bumps(Process(schedule))):
        x0 = some(denoiser, 4)
        scores = flow(denoiser, x0, solver=TIGHT)
        close(scores.nats, truth(denoiser, x0), rtol=1e-5, atol=1e-5)
        assert bool((scores.error == 0).all())


def test_a_datum_enters_as_its_mean_and_its_density_is_that_of_x_over_alpha() -> None:
    process = Process(Straight())
    denoiser, x0, at = three_bumps(process), unit(3, 2), process.at(0.3)
    scores = flow(denoiser, x0, entry=0.3, solver=TIGHT)
    close(scores.nats, -denoiser.log_density(at.alpha * x0, at) - 2 * at.alpha.log(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", named([Linear(), Straight(), EDM()]))
def test_instants_are_found_by_level_and_by_information(schedule: Schedule) -> None:
    process = Process(schedule)
    at = process.at(torch.tensor([0.01, 0.2, 0.7, 1.0], dtype=torch.float64))
    close(process.at_level(process.straightened(at)[1]).t, at.t, rtol=1e-9)
    inner = At(*(level[:-1] for level in at))
    close(process.at_information(process.information(inner)).t, inner.t, rtol=1e-9)
    close(process.information(inner).exp(), 1 + inner.log_snr.exp())


def test_a_prior_that_is_not_reached_is_part_of_the_model() -> None:
    """With alpha(1) > 0 the flow's density differs from the data's by what N(0, 1) and q(x_1) differ by."""
    process = Process(Linear())
    denoiser, x = three_bumps(process), unit(3, 2)
    got, _ = log_density(denoiser, x, process.at(0.05), solver=TIGHT)
    ended = transport(denoiser, x, process.at(0.05), process.at(1.0), solver=TIGHT).x
    prior = torch.distributions.Normal(0.0, process.prior_std(process.at(1.0))).log_prob(ended).sum(1)
    close(got[:, 0] - denoiser.log_density(x, process.at(0.05)), prior - denoiser.log_density(ended, process.at(1.0)), atol=2e-5)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_hutchinsons_trace_is_unbiased(kind: str) -> None:
    y = unit(2, 4, seed=3).requires_grad_()
    mix = unit(4, 4, seed=4)
    value = torch.tanh(y @ mix) * y.sum(1, keepdim=True)
    exact = divergence(value, y, [])
    assert exact.shape == (2, 1)
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda one: torch.tanh(one @ mix) * one.sum(), y[i].detach())
        close(exact[i, 0], jacobian.trace())  # type: ignore[attr-defined]
    columns = divergence(value, y, probes_for(y.detach(), 400, 0, 0, 0, kind))  # type: ignore[arg-type]
    assert columns.shape == (2, 400)
    for i in range(2):
        assert z_score(columns[i], exact[i, 0]) < 4.5 and columns[i].std() > 0.01
    diagonal = divergence(torch.sin(y), y, probes_for(y.detach(), 3, 0, 0, 0, "rademacher"))
    close(diagonal, y.detach().cos().sum(1, keepdim=True).expand(2, 3))  # signs square to 1: exact for a diagonal


def test_probes_come_with_an_error_bar_that_covers_the_exact_trace() -> None:
    denoiser = normal_data(Process(Straight()), 3)
    x0 = some(denoiser, 4)
    rough = flow(denoiser, x0, probes=30)
    exact = flow(denoiser, x0, probes=0)
    assert bool((rough.error > 1e-3).all()) and float(((rough.nats - exact.nats) / rough.error).abs().max()) < 4.5


def test_noise_makes_a_bound_that_closes_as_the_entry_nears_the_data() -> None:
    denoiser = normal_data(Process(Straight()), 2)
    x0 = some(denoiser, 3)
    gaps = []
    for entry in (0.5, 0.01):
        scores = flow(denoiser, x0, dequantise="noise", entry=entry, draws=10)
        gaps.append(float((scores.nats - truth(denoiser, x0)).mean()))
        assert bool((scores.nats - truth(denoiser, x0) > -4.5 * scores.error).all())
    assert gaps[0] > 0.1 > 0.02 > abs(gaps[1])


# --- the bounds ---------------------------------------------------------------------------------------------------------------------------


def expected_bound(T: int) -> float:
    """Of correlated Gaussian data on the straight chain, in nats, with the analytic variance v_p = v_q + c^2 r, r that of x0 - x0_hat.

    A term is D/2 log(v_p/v_q), because E|mu_q - mu_p|^2 = D c^2 r; the decoder's is D/2 log(2 pi e r). Written out for alpha = 1 - t.
    """
    denoiser, total = normal_data(Process(Straight(T=T))), 0.0
    r = [denoiser.residual(denoiser.process.at(i / T)).item() for i in range(T + 1)]
    for i in range(2, T + 1):
        s, t = (i - 1) / T, i / T
        fall = 1.0 - ((1 - t) * s / (t * (1 - s))) ** 2  # 1 - SNR_t / SNR_s
        total += math.log1p((1 - s) ** 2 * fall * r[i] / s**2)
    return total + math.log(2 * math.pi * math.e * r[1])


def test_the_chains_bound_falls_with_its_length_to_the_continuous_one_and_that_is_the_entropy() -> None:
    exact = normal_data(Process(Straight()))
    x0, spread = some(exact, 500), exact.variances[0]
    entropy = float(0.5 * (2 * math.pi * math.e * spread).log().sum())
    expected = {T: expected_bound(T) for T in (5, 10, 20, 40, 80, 2000)}
    assert all(fewer > more > entropy for fewer, more in itertools.pairwise(expected.values())), expected
    assert expected[2000] - entropy < 2e-3 < 0.05 < expected[5] - entropy
    for T in (5, 20):
        terms = discrete(normal_data(Process(Straight(T=T))), x0, variance="analytic", draws=1)
        assert z_score(terms.scores.nats, expected[T]) < 4.5
        assert terms.nats.shape == (500, T) and float(terms.weight.sum()) == T
    scores = continuous(exact, x0, draws=16)
    gap = scores.nats - truth(exact, x0)  # sample by sample, an exact denoiser's bound is tight
    assert z_score(gap) < 4.5 and float(gap.std() / math.sqrt(500)) < 0.3


def test_strata_leave_the_bound_unbiased_and_each_step_in_one() -> None:
    for length, terms in ((1000, 64), (1000, None), (10, 4), (1, None), (2, 2), (7, 30)):
        groups = strata(length, terms)
        assert [step for group in groups for step in group] == list(range(1, length + 1))
        assert len(groups) == min(terms or length, length) and len(groups[0]) == 1
    denoiser = normal_data(Process(Straight(T=40)))
    x0 = some(denoiser, 300)
    few, every = (discrete(denoiser, x0, terms=terms, draws=1, seed=3).scores.nats for terms in (8, None))
    assert z_score(few - every) < 4.5 and not torch.equal(few, every)


def test_rate_and_distortion_are_the_bound_in_two_parts() -> None:
    process = Process(Straight(T=20))
    denoiser = isotropic(process, 0.3)
    denoiser.codec = wide
    x0 = some(denoiser, 400)
    terms = discrete(denoiser, x0, draws=1)
    step, rate, distortion = terms.curve()
    assert step.tolist() == list(range(1, 21)) and bool((rate.diff() < 0).all())
    close(terms.rate + terms.decoding, terms.scores.nats.mean() - 2 * math.log(3.0))
    close(rate[0], terms.rate)
    residual = denoiser.residual(process.at(step / 20))
    assert bool((terms.distortion.shape == (400, 20)) and (distortion / (9 * residual).sqrt() - 1).abs().max() < 0.15)
    assert bool(z_score(terms.distortion[:, 9], 9 * residual[9]) < 4.5)


@pytest.mark.parametrize("route", ["discrete", "continuous", "flow"])
def test_a_density_is_in_the_units_of_the_data(route: str) -> None:
    """p_raw(raw) = p(x) / 3 per entry; probabilities of levels have no unit."""
    denoiser = normal_data(Process(Straight(T=10)))
    x0 = some(denoiser, 3)

    def nats() -> Tensor:
        if route == "discrete":
            return discrete(denoiser, x0).scores.nats
        return continuous(denoiser, x0, draws=4).nats if route == "continuous" else flow(denoiser, x0).nats

    plain = nats()
    denoiser.codec = wide
    close(nats() - plain, 2 * math.log(3.0), rtol=1e-9)


def test_scores_depend_on_seed_and_number_alone() -> None:
    denoiser = three_bumps(Process(Straight(T=10)))
    x0 = some(denoiser, 5)
    for score in (
        lambda x, first, seed: discrete(denoiser, x, terms=4, seed=seed, first=first).scores.nats,
        lambda x, first, seed: continuous(denoiser, x, draws=4, seed=seed, first=first).nats,
        lambda x, first, seed: flow(denoiser, x, dequantise="noise", probes=1, seed=seed, first=first).nats,
    ):
        every = score(x0, 0, 3)
        close(score(x0[2:4], 2, 3), every[2:4], rtol=1e-7)
        assert not torch.isclose(score(x0, 0, 4), every).any()


def test_point_masses_on_the_levels_cost_their_entropy() -> None:
    """Three points, known exactly: log 3 nats, by the continuous bound and by the flow with noise, both with the decoder over the bins."""
    levels = torch.arange(17, dtype=torch.float64) / 8 - 1
    data = levels[torch.tensor([[2, 13], [8, 4], [14, 10]])]
    denoiser = finite(Process(Straight()), data)
    denoiser.codec = Codec(shift=(8.0,), scale=(8.0,), dtype="uint8", bins=(0.0, 16.0))
    entry = float(denoiser.process.time_of(-2 * math.log(1 / 64)))  # noise of an eighth of a level: the decoder does not err
    scores = continuous(denoiser, data.repeat(30, 1), entry=entry, draws=8)
    assert z_score(scores.nats, math.log(3)) < 4.5 and float(scores.nats.std()) < 3
    usual = continuous(denoiser, data.repeat(30, 1), draws=8)  # half a level: a decoder as wide leaves the bin with two deviations' mass
    assert z_score(usual.nats, math.log(3) - 2 * math.log(math.erf(math.sqrt(0.5)))) < 4.5
    close(scores.bits_per_dim(2).nats, scores.nats / math.log(4.0))
    through = flow(denoiser, data, draws=8)
    lost = -2 * math.log(math.erf(math.sqrt(0.5)))
    assert bool(((through.nats - math.log(3) - lost).abs() < 4.5 * through.error + 0.02).all())


# --- scores and losses --------------------------------------------------------------------------------------------------------------------


def test_denoising_score_matching_is_the_noise_loss_under_its_weight() -> None:
    """sigma^2 |s(x_t) - grad log q(x_t | x0)|^2 = |eps_hat - eps|^2; and it differs from matching grad log p_t by no model's doing.

    Reference: Vincent, 2011, Neural Computation 23(7), eq. 11.
    """
    process, n = Process(Linear()), 4000
    exact = three_bumps(process)
    x0 = some(exact, n)
    at = process.at(0.1 + 0.8 * uniforms(n, 2), like=x0)
    eps = unit(n, 2, seed=8)
    x = process.perturb(x0, eps, at).requires_grad_()
    (target,) = torch.autograd.grad(process.log_evidence(x, x0, at).sum(), x)
    (score_t,) = torch.autograd.grad(exact.log_density(x, at).sum(), x)
    x = x.detach()
    weighted = []
    for delta in (0.1, -0.3):
        model = Nudged(exact, delta)
        denoising = at.sigma**2 * (model.score(x, at) - target) ** 2
        close(denoising, (model(x, at).eps - eps) ** 2, rtol=1e-7, atol=1e-9)
        explicit = at.sigma**2 * (model.score(x, at) - score_t) ** 2
        weighted.append((denoising - explicit).sum(1))
    assert z_score(weighted[0] - weighted[1]) < 4.5
    assert float((weighted[0].mean() / weighted[0].std()).abs()) > 0.3  # the constant itself is there


# --- refusals -----------------------------------------------------------------------------------------------------------------------------


def test_what_is_refused() -> None:
    process = Process(Straight())
    denoiser, x0 = normal_data(process), unit(2, 2)
    with pytest.raises(ConfigError, match="discrete chain"):
        discrete(denoiser, x0)
    with pytest.raises(ConfigError, match="terms: got 1"):
        discrete(normal_data(Process(Straight(T=5))), x0, terms=1)
    with pytest.raises(ConfigError, match="draws: got 1"):
        continuous(denoiser, x0, draws=1)
    with pytest.raises(ConfigError, match="entry: got 1e-09, allowed from"):
        continuous(denoiser, x0, entry=1e-9)
    with pytest.raises(ConfigError, match="continuous and have no bins"):
        flow(denoiser, x0, dequantise="uniform")
    with pytest.raises(ConfigError, match="draws: got 0"):
        flow(denoiser, x0, draws=0)
    with pytest.raises(ConfigError, match="where a trajectory ends, not a mean"):
        flow(Watched(denoiser, "map"), x0)
    denoiser.codec = Codec(shift=(8.0,), scale=(8.0,), dtype="uint8", bins=(0.0, 16.0))
    with pytest.raises(ConfigError, match="have no density"):
        flow(denoiser, x0, dequantise="none")
