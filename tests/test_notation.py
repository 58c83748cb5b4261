"""The formulas of docs/notation.md, each against the process: five papers' notations are one mathematics."""

from __future__ import annotations

import pytest
import torch

from ddpm.denoiser import X0, EDMPreconditioning, Eps, Flow, Parameterization, PosteriorMean, Score, V
from ddpm.objective.weighting import Simple
from ddpm.process import EDM, VE, VPSDE, Cosine, Linear, Process, Schedule, Straight, SubVP

SCHEDULES: tuple[Schedule, ...] = (Linear(), Cosine(clip=None), VPSDE(), SubVP(), Straight(), VE(), EDM())
TIMES = torch.tensor([0.05, 0.311, 0.5, 0.803, 0.95], dtype=torch.float64)


def close(got: torch.Tensor, wanted: torch.Tensor, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda member: type(member).__name__)
def test_two_instants(schedule: Schedule) -> None:
    process = Process(schedule)
    s, t = process.at(0.9 * TIMES), process.at(TIMES)
    ratio = (t.alpha * s.sigma / (t.sigma * s.alpha)) ** 2  # SNR_t / SNR_s
    scale, std = process.transition(s, t)
    close(scale, t.alpha / s.alpha)
    close(std**2, t.sigma**2 - scale**2 * s.sigma**2)
    close(std**2, t.sigma**2 * (1 - ratio))
    c_x0, c_xt, small = process.posterior(s, t)
    close(c_x0, s.alpha * (1 - ratio))
    close(c_xt, t.alpha / s.alpha * (s.sigma / t.sigma) ** 2)
    close(small**2, std**2 * s.sigma**2 / t.sigma**2)  # Kingma's sigma_Q^2


def test_ho() -> None:
    process, step = Process(Linear()), torch.tensor([2, 10, 500, 1000], dtype=torch.float64)
    s, t = process.at((step - 1) / 1000), process.at(step / 1000)
    beta = 1 - t.alpha**2 / s.alpha**2
    close(beta, 1e-4 + (step - 1) / 999 * (0.02 - 1e-4))
    c_x0, c_xt, std = process.posterior(s, t)
    close(std**2, (1 - s.alpha**2) / (1 - t.alpha**2) * beta)
    close(process.transition(s, t)[1] ** 2, beta)
    close(c_x0, s.alpha * beta / (1 - t.alpha**2))
    close(c_xt, t.alpha / s.alpha * (1 - s.alpha**2) / (1 - t.alpha**2))
    x0, eps = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = process.perturb(x0, eps, t)
    close(c_x0 * x0 + c_xt * x, (x - beta / t.sigma * eps) / (1 - beta).sqrt())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda member: type(member).__name__)
def test_song(schedule: Schedule) -> None:
    """x(t + h) = (1 + f h) x(t) + g sqrt(h) z to first order: compared with the exact transition over a short step."""
    process, t = Process(schedule), TIMES + 2e-4  # not a knot: Linear has a kink there
    h = 1e-6
    now, later = process.at(t), process.at(t + h)
    d_alpha, d_sigma = process.rates(now)
    drift = d_alpha / now.alpha
    diffusion = 2 * now.sigma * d_sigma - 2 * now.sigma**2 * drift
    slope = (process.log_snr(t + h) - process.log_snr(t - h)) / (2 * h)
    close(diffusion, -(now.sigma**2) * slope, rtol=1e-5)
    scale, std = process.transition(now, later)
    close((scale - 1) / h, drift, rtol=1e-3)
    close(std**2 / h, diffusion, rtol=1e-3)


def test_song_kernels() -> None:
    integral = TIMES * 0.1 + TIMES**2 * (20 - 0.1) / 2
    vp, sub, ve = Process(VPSDE()).at(TIMES), Process(SubVP()).at(TIMES), Process(VE()).at(TIMES)
    close(vp.alpha, (-integral / 2).exp())
    close(vp.sigma**2, 1 - (-integral).exp())
    close(sub.sigma, 1 - (-integral).exp())
    published = VE().sigma_min * (VE().sigma_max / VE().sigma_min) ** TIMES
    close(ve.sigma**2, published**2 - VE().sigma_min ** 2)


def test_karras() -> None:
    sd, member = 0.5, EDMPreconditioning(sigma_data=0.5)
    process = Process(EDM())
    at = process.at(TIMES)
    r = (at.sigma**2 + sd**2).sqrt()
    a, b = member.target(at, process)
    c_skip, c_out = sd**2 / r**2, at.sigma * sd / r  # D = c_skip x + c_out F is x0, whatever x0 and eps are
    close(c_skip + c_out * a, torch.ones_like(r))
    close(c_skip * at.sigma + c_out * b, torch.zeros_like(r))
    close(member.scale(at), 1 / r)
    close(at.sigma / at.alpha, (-at.log_snr / 2).exp())
    chain = Process(Cosine(clip=None))
    for ours, v in zip(EDMPreconditioning(sigma_data=1.0).target(chain.at(TIMES), chain), V().target(chain.at(TIMES), chain), strict=True):
        close(ours, -v)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda member: type(member).__name__)
def test_kingma(schedule: Schedule) -> None:
    """gamma' |eps error|^2 = -SNR' |x0 error|^2, and w = 2/|d log_snr/dt| turns the bound into L_simple."""
    process = Process(schedule)
    at = process.at(TIMES + 2e-4)
    d_alpha, d_sigma = process.rates(at)
    gamma_rate = 2 * process.wronskian(at) / (at.alpha * at.sigma)
    snr_rate = 2 * at.alpha * d_alpha / at.sigma**2 - 2 * at.alpha**2 * d_sigma / at.sigma**3
    eps_error = 0.7
    x0_error = -at.sigma / at.alpha * eps_error  # the two errors cancel in x
    close(gamma_rate * eps_error**2, -snr_rate * x0_error**2)
    close(Simple()(at, process), 2 / gamma_rate)


def test_lipman() -> None:
    process = Process(Straight())
    x0, eps = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    at, theirs = process.at(TIMES), 1 - TIMES
    close(process.perturb(x0, eps, at), (1 - theirs) * eps + theirs * x0)
    close(process.velocity(x0, eps, at), -(x0 - eps))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda member: type(member).__name__)
def test_flow_on_every_schedule(schedule: Schedule) -> None:
    """dy/du = eps - x0 for y = x/(alpha + sigma), u = sigma/(alpha + sigma)."""
    process, h = Process(schedule), 1e-6
    x0, eps = torch.tensor(0.8, dtype=torch.float64), torch.tensor(-1.3, dtype=torch.float64)

    def y_u(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        at = process.at(t)
        return process.perturb(x0, eps, at) / (at.alpha + at.sigma), at.sigma / (at.alpha + at.sigma)

    (y1, u1), (y2, u2) = y_u(TIMES - h), y_u(TIMES + h)
    close((y2 - y1) / (u2 - u1), (eps - x0).expand(5), rtol=1e-5)


MEMBERS = (Eps(), X0(), V(), Flow(), Score(), PosteriorMean(), EDMPreconditioning(sigma_data=0.5))


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: type(member).__name__)
def test_table_of_predictions(member: Parameterization) -> None:
    process, step = Process(Linear()), torch.tensor([2, 10, 500, 1000], dtype=torch.float64)
    s, at = process.at((step - 1) / 1000), process.at(step / 1000)
    alpha, sigma, one = at.alpha, at.sigma, torch.ones(4, dtype=torch.float64)
    c_x0, c_xt, _ = process.posterior(s, at)
    r = (sigma**2 + alpha**2 * 0.25).sqrt()
    a, b, d = {
        "Eps": (0 * one, one, alpha),
        "X0": (one, 0 * one, -sigma),
        "V": (-sigma, alpha, alpha**2 + sigma**2),
        "Flow": (-one, one, alpha + sigma),
        "Score": (0 * one, -1 / sigma, -alpha / sigma),
        "PosteriorMean": (c_x0 + c_xt * alpha, c_xt * sigma, -c_x0 * sigma),
        "EDMPreconditioning": (sigma / (0.5 * r), -alpha * 0.5 / r, -r / 0.5),
    }[type(member).__name__]
    for got, wanted in zip((*member.target(at, process), member.determinant(at, process)), (a, b, d), strict=True):
        close(got, wanted)
    x0, eps = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = member.predict(a * x0 + b * eps, process.perturb(x0, eps, at), at, process)
    torch.testing.assert_close(found.x0, x0, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.eps, eps, rtol=0, atol=1e-9)
