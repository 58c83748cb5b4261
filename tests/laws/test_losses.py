"""Laws of losses: their minimiser is the exact mean, L_simple is Ho's, weightings mean what they say and stay finite at both ends."""

from __future__ import annotations

import math

import pytest
import torch
from members import continuous_losses, legal_pairs, losses, named, weightings
from torch import Tensor
from worlds import Nudged, close, isotropic, normal_data, some_times, three_bumps, toy, uniforms, unit, z_score

from ddpm.denoiser import EDMPreconditioning, V, reaches_zero
from ddpm.objective import Bound, Denoising, Draws, EDMWeighting, Hybrid, LogNormalSigma, LossSettings, Simple, Target, VariationalBound
from ddpm.objective.weighting import LevelWeighting
from ddpm.process import EDM, VPSDE, Cosine, Linear, Process, Shifted, Straight, ZeroTerminalSNR

N = 20_000
chain = Linear(T=20)
settings_and_schedules = [(loss, chain) for loss in losses] + [
    (loss, schedule) for loss in continuous_losses for schedule in (VPSDE(), Straight())
]


def draws(n: int, size: int = 2, seed: int = 0) -> Draws:
    return Draws(uniforms(n, seed=seed), unit(n, size, seed=seed + 1), unit(n, size, seed=seed + 2))


def gradient(loss: torch.nn.Module, denoiser: Nudged, x0: Tensor, drawn: Draws) -> Tensor:
    """d loss / d delta of every sample, (B,)."""
    assert denoiser.delta.shape == (len(x0),)
    denoiser.delta.requires_grad_()
    return torch.autograd.grad(loss(denoiser, x0, None, drawn).sum(), denoiser.delta)[0]


@pytest.mark.parametrize("pair", named(settings_and_schedules))
def test_the_minimiser_of_every_loss_is_the_exact_mean(pair: tuple[LossSettings, object]) -> None:
    """At the exact denoiser the expected gradient along a shift of x0 is zero, and a shift either way costs."""
    process = Process(pair[1])  # type: ignore[arg-type]
    exact, v = normal_data(process), 0.4 if pair[0].learned_variance else None
    x0 = exact.draw(unit(N, 2, seed=5), torch.zeros(N, dtype=torch.int64))
    loss, drawn = pair[0].build().eval(), draws(N, seed=6)
    assert z_score(gradient(loss, Nudged(exact, torch.zeros(N), v), x0, drawn)) < 4.5
    with torch.no_grad():
        best = loss(Nudged(exact, 0.0, v), x0, None, drawn)
        assert best.shape == (N,)
        for delta in (0.5, -0.5):
            extra = loss(Nudged(exact, delta, v), x0, None, drawn) - best
            assert extra.mean() > 0 and z_score(extra) > 4.5


@pytest.mark.parametrize("settings", named(continuous_losses))
def test_the_minimiser_is_the_mean_of_a_mixture_too(settings: Denoising) -> None:
    exact = three_bumps(Process(VPSDE()))
    x0 = exact.draw(
        unit(N, 2, seed=5), torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), N, True, generator=torch.Generator().manual_seed(1))
    )
    assert z_score(gradient(settings.build().eval(), Nudged(exact, torch.zeros(N)), x0, draws(N, seed=9))) < 4.5


@pytest.mark.parametrize("pair", named(legal_pairs))
def test_simple_is_the_mean_square_of_the_noise(pair: tuple) -> None:
    """Ho et al. 2020, eq. 14, whatever the network predicts."""
    denoiser, x0, drawn = toy(*pair), unit(64, 2, seed=4), draws(64, seed=5)
    schedule, process = pair[0], denoiser.process
    got = Denoising().build()(denoiser, x0, None, drawn)
    if schedule.T is not None:
        t, scale = (drawn.u * schedule.T).ceil() / schedule.T, 1.0
    else:
        t, scale = schedule.t_min + drawn.u * (1 - schedule.t_min), 1 - schedule.t_min
    at = process.at(t, like=x0)
    gap = drawn.eps - denoiser(process.perturb(x0, drawn.eps, at), at).eps
    close(got, scale * gap.square().mean(1), rtol=1e-6, atol=1e-6 if reaches_zero(schedule) else 1e-12)  # there a limit


@pytest.mark.parametrize("pair", named(legal_pairs))
def test_every_weighting_is_finite_at_both_ends(pair: tuple) -> None:
    schedule, kind = pair
    process = Process(schedule)
    at = process.at(some_times(schedule))
    for weighting in weightings:
        factor = weighting.on_target(at, process, kind.determinant(at, process))
        assert bool(torch.isfinite(factor).all() and (factor >= 0).all() and (factor[:-1] > 0).all()), f"{weighting!r}: {factor.tolist()}"


@pytest.mark.parametrize("pair", named(legal_pairs))
def test_level_weightings_count_the_noise_per_unit_of_log_snr(pair: tuple) -> None:
    """w/2 |d log_snr/dt| |eps - eps_hat|^2, with |eps - eps_hat| = |alpha/d| |F - F_hat|, the slope by finite differences."""
    schedule, kind = pair
    process, h = Process(schedule), 1e-6
    t = (torch.arange(100, 900, 90, dtype=torch.float64) + 0.5) / 1000
    if schedule.T is not None:
        t = t[:0] if schedule.T < 1000 else t + 0.0005  # mu~ is defined at the knots only
        h = 0.0  # and the slope is one-sided there
    at, d = process.at(t), kind.determinant(process.at(t), process)
    slope = (process.log_snr(t + h) - process.log_snr(t - h)) / (2 * h) if h else -2 * process.wronskian(at) / (at.alpha * at.sigma)
    for weighting in (w for w in weightings if isinstance(w, LevelWeighting)):
        close(weighting.on_target(at, process, d), 0.5 * weighting(at, process) * slope.abs() * (at.alpha / d) ** 2, rtol=1e-5)


def test_weightings_are_the_published_curves() -> None:
    process = Process(EDM())
    at = process.at(torch.tensor([0.001, 0.005, 0.02, 0.1], dtype=torch.float64))
    sigma, snr = at.sigma, at.sigma**-2
    per_eps = {type(w).__name__: w.on_target(at, process, torch.ones(4, dtype=torch.float64)) for w in weightings}  # F = eps: d = alpha = 1
    close(per_eps["Simple"], 1.0)
    close(per_eps["MinSNR"], (5.0 / snr).clamp(max=1.0))
    close(weightings[4].on_target(at, process, torch.ones(4)), 1 / (1 + snr))  # P2(k=1, gamma=1)
    close(per_eps["Bound"], 1 / at.t)  # |d log_snr/dt| / 2 = 1/t
    close(per_eps["Sigmoid"], (2.0 + 2 * sigma.log()).sigmoid() / at.t)
    close(per_eps["Target"], 1.0)


def test_edm_weighting_with_edm_times_leaves_a_factor_of_one() -> None:
    """Karras et al. 2022: lambda(sigma) c_out^2 = 1, times drawn log-normal in sigma."""
    process, kind = Process(EDM()), EDMPreconditioning(sigma_data=0.5)
    t, density = LogNormalSigma().draw(uniforms(50), process)
    factor = EDMWeighting(sigma_data=0.5).on_target(process.at(t), process, kind.determinant(process.at(t), process))
    ratio = factor / density
    close(ratio / ratio.mean(), 1.0, rtol=1e-9)
    close(ratio.mean(), 1.0, rtol=2e-3)  # the log-normal's tails beyond the schedule are cut off


@pytest.mark.parametrize("steps", [10_000, 100_000])
def test_the_continuous_bound_is_the_limit_of_the_t_step_bound(steps: int) -> None:
    """The same instant and noise: T times the term L_{t-1} tends to the weighting w = 1, with an error of order 1/T."""
    x0, drawn = unit(200, 2, seed=2), draws(200, seed=3)
    chain = Process(VPSDE(T=steps))
    drawn = drawn._replace(u=0.05 + 0.95 * drawn.u)  # away from t = 0, where a step of 1/T is large
    term = VariationalBound(variance="small").build()(normal_data(chain), x0, None, drawn)
    limit = Denoising(weighting=Bound()).build()(normal_data(chain), x0, None, drawn)
    assert float((term / limit - 1).abs().max()) < 30 / steps


def test_hybrid_shields_the_mean_from_the_bound() -> None:
    """Gradients: the mean's is L_simple's alone, the variance's the bound's alone, times 0.001 and in bits."""
    process = Process(chain)
    x0, drawn = unit(300, 2, seed=2), draws(300, seed=3)
    v, delta = (
        torch.full((300, 1), 0.4, dtype=torch.float64, requires_grad=True),
        torch.full((300,), 0.1, dtype=torch.float64, requires_grad=True),
    )
    denoiser = Nudged(normal_data(process), delta, v)
    of = {}
    for name, settings in {
        "hybrid": Hybrid(),
        "simple": Denoising(weighting=Simple()),
        "bound": VariationalBound(variance="learned"),
    }.items():
        value = settings.build()(denoiser, x0, None, drawn)
        of[name] = (value.detach(), *torch.autograd.grad(value.sum(), (delta, v), allow_unused=True, materialize_grads=True))
    close(of["hybrid"][0], of["simple"][0] + 0.001 * of["bound"][0] / math.log(2))
    close(of["hybrid"][1], of["simple"][1])
    close(of["hybrid"][2], 0.001 * of["bound"][2] / math.log(2))
    assert float(of["bound"][1].abs().max()) > 0 and float(of["hybrid"][2].abs().max()) > 0


def test_learned_uncertainty_starts_neutral_and_settles_at_the_loss() -> None:
    """|.|^2 exp(-u) + u is least at u = log of the expected loss."""
    process, x0, drawn = Process(Cosine()), unit(500, 2, seed=2), draws(500, seed=3)
    denoiser = isotropic(process, 0.3)
    plain, loss = Denoising(weighting=Target()).build(), Denoising(weighting=Target(), uncertainty=True).build()
    close(loss(denoiser, x0, None, drawn), plain(denoiser, x0, None, drawn), rtol=1e-6)
    assert [tuple(p.shape) for p in loss.parameters()] == [(1, 128)]
    (slope,) = torch.autograd.grad(loss(denoiser, x0, None, drawn).sum(), list(loss.parameters()))
    assert float(slope.abs().max()) > 0
    for u in (-1.0, 0.7):
        shifted = Denoising(weighting=Target(), uncertainty=True).build()
        shifted.uncertainty.linear.forward = lambda features, u=u: torch.full((len(features), 1), u)  # type: ignore[union-attr, method-assign]
        close(shifted(denoiser, x0, None, drawn), plain(denoiser, x0, None, drawn) * math.exp(-u) + u, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("settings", named(continuous_losses))
def test_every_loss_is_finite_at_pure_noise(settings: Denoising) -> None:
    """On a chain t = 1 is drawn, where a schedule may have alpha = 0 and a log-SNR of minus infinity."""
    u, x = torch.tensor([0.999999, 1e-9], dtype=torch.float64), unit(2, 2)
    for schedule in (ZeroTerminalSNR(), Straight(T=50), Shifted(base=Cosine(clip=None), shift=0.5)):
        assert bool(torch.isfinite(settings.build()(toy(schedule, V()), x, None, Draws(u, x, x))).all())


def test_a_learned_variance_reads_the_second_half_of_the_output() -> None:
    denoiser = toy(chain, V(), learned=True)
    prediction = denoiser(unit(4, 2), denoiser.process.at(0.5))
    assert prediction.variance is not None and VariationalBound(variance="learned").learned_variance and Hybrid().learned_variance
    assert bool(torch.isfinite(Hybrid().build()(denoiser, unit(30, 2), None, draws(30))).all())
