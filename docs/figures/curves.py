"""The numbers behind docs/six_steps.md: exact studies of one mixture in one dimension, by quadrature and without sampling unless said."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ddpm.denoiser import Parameterization, Prediction
from ddpm.denoiser.denoiser import Cond, Denoiser
from ddpm.denoiser.exact import Mixture
from ddpm.objective import Draws, Stepwise, step_term
from ddpm.process import At, Process, default_grid
from ddpm.sampling import Ancestral

Variance = Literal["small", "large", "analytic"]
DATA_EDGES = (-1.2 - 8 * 0.2, 0.8 + 8 * 0.2)  # the data lie between these but for 1e-15 of them


def mixture(process: Process) -> Mixture:
    """The data of every figure: 0.4 N(-1.2, 0.2^2) + 0.6 N(0.8, 0.2^2), of mean 0 and variance 1."""
    means = torch.tensor([[-1.2], [0.8]], dtype=torch.float64)
    return Mixture(process, means, torch.full((2,), 0.04, dtype=torch.float64), torch.tensor([0.4, 0.6], dtype=torch.float64))


def generator(seed: int = 0) -> torch.Generator:
    """A seeded generator on the host."""
    return torch.Generator().manual_seed(seed)


def draw(process: Process, count: int, seed: int = 0) -> Tensor:
    """`count` data, (count, 1) float64."""
    rng = generator(seed)
    choice = (torch.rand(count, dtype=torch.float64, generator=rng) > 0.4).long()
    return mixture(process).draw(torch.randn(count, 1, dtype=torch.float64, generator=rng), choice)


def nodes(at: At, spacing: float | None = None) -> tuple[Tensor, float]:
    """Evenly spaced x (N, 1) that hold the mass of p_t, and their distance; by default an eighth of the narrowest peak's deviation."""
    alpha, sigma = at.alpha.item(), at.sigma.item()
    low, high = alpha * DATA_EDGES[0] - 7 * sigma, alpha * DATA_EDGES[1] + 7 * sigma
    spacing = spacing or math.sqrt(0.04 * alpha**2 + sigma**2) / 8
    count = math.ceil((high - low) / spacing)
    return torch.linspace(low, high, count, dtype=torch.float64)[:, None], (high - low) / (count - 1)


def expected(values: Tensor, world: Mixture, x: Tensor, at: At, spacing: float) -> float:
    """E[values] over p_t: the trapezoid sum, exact to rounding for smooth functions that die at both ends."""
    return (world.log_density(x, at).exp() * values[:, 0]).sum().item() * spacing


def residual(world: Mixture, at: At) -> float:
    """E Var(x0 | x_t) = E[x0^2] - E[x0_hat^2] = (sigma/alpha)^2 (1 - E[eps_hat^2]), in the form that does not cancel."""
    x, spacing = nodes(at)
    found = world(x, at)
    if at.alpha < at.sigma:
        return 1.0 - expected(found.x0**2, world, x, at, spacing)
    return (at.sigma / at.alpha).item() ** 2 * (1.0 - expected(found.eps**2, world, x, at, spacing))


class Measured(Denoiser):
    """The mixture's exact denoiser with its residual from quadrature, and `shift` added to eps_hat: 0 is the best denoiser there is."""

    def __init__(self, process: Process, shift: Tensor | float = 0.0) -> None:
        super().__init__()
        self.world, self.process, self.shape, self.shift = mixture(process), process, (1,), shift

    def forward(self, x: Tensor, at: At, cond: Cond = None) -> Prediction:
        """alpha x0 + sigma eps = x holds whatever the shift."""
        found = self.world(x, at)
        return Prediction(found.x0 - at.sigma / at.alpha * self.shift, found.eps + self.shift)

    def residual(self, at: At) -> Tensor:
        """E Var(x0 | x_t) at each instant."""
        rows = zip(*(level.reshape(-1) for level in at), strict=True)
        return torch.tensor([residual(self.world, At(*row)) for row in rows], dtype=torch.float64).reshape(at.t.shape)


# --- step 1: the augmentation ---------------------------------------------------------------------------------------------------


def walk(process: Process, x0: Tensor, seed: int = 1) -> Tensor:
    """Paths of the chain, (T + 1, B, 1), one transition after the other."""
    length, rng, path = process.schedule.T or 1000, generator(seed), [x0]
    for step in range(1, length + 1):
        scale, std = process.transition(process.at((step - 1) / length), process.at(step / length))
        path.append(scale * path[-1] + std * torch.randn(x0.shape, dtype=x0.dtype, generator=rng))
    return torch.stack(path)


def composed(process: Process) -> tuple[float, float]:
    """Largest gaps between all transitions up to t composed and (alpha_t, sigma_t), over the knots."""
    length, scale, variance, gaps = process.schedule.T or 1000, 1.0, 0.0, [(0.0, 0.0)]
    for step in range(1, length + 1):
        now = process.at(step / length)
        factor, std = (value.item() for value in process.transition(process.at((step - 1) / length), now))
        scale, variance = factor * scale, factor**2 * variance + std**2
        gaps.append((abs(scale - now.alpha.item()), abs(math.sqrt(variance) - now.sigma.item())))
    first, second = zip(*gaps, strict=True)
    return max(first), max(second)


def distance_from_normal(process: Process) -> float:
    """Total variation between p_1, all signal destroyed but alpha(1), and N(0, 1)."""
    end = process.at(1.0)
    x, spacing = nodes(end)
    normal = (-0.5 * x[:, 0] ** 2).exp() / math.sqrt(2 * math.pi)
    return 0.5 * (mixture(process).log_density(x, end).exp() - normal).abs().sum().item() * spacing


# --- step 2: regression ---------------------------------------------------------------------------------------------------------


def unexplained(process: Process, s: float, t: float) -> float:
    """E Var(x_s | x_t) / Var(x_s): what the best regression of x_s on x_t leaves over (the mixture has unit variance)."""
    now, then = process.at(t), process.at(s)
    world = mixture(process)
    left = process.residual_variance(then, now, torch.tensor(residual(world, now), dtype=torch.float64))
    return (left / process.prior_std(then) ** 2).item()


def bound_minus_regression(process: Process, step: int, shift: float) -> float:
    """Largest gap over 512 pairs between a step's bound term + the entropy of q(x_s | x_t, x0), and E[-log p(x_s | x_t)]: 0 to rounding.

    For a denoiser whose eps_hat is wrong by `shift`.
    """
    length, denoiser = process.schedule.T or 1000, Measured(process, shift)
    x0, eps = draw(process, 512), torch.randn(512, 1, dtype=torch.float64, generator=generator(2))
    u = torch.full((512,), (step - 0.5) / length, dtype=torch.float64)
    regression = Stepwise(reduced=True).build()(denoiser, x0, None, Draws(u, eps, eps)) / length
    bound = step_term(denoiser, x0, None, torch.full((512,), step), eps, "small")
    std = process.posterior(process.at((step - 1) / length), process.at(step / length))[2]
    return (bound + 0.5 * (2 * math.pi * math.e * std**2).log() - regression).abs().max().item()


# --- step 3: sharing ------------------------------------------------------------------------------------------------------------


def change_between(process: Process, s: float, t: float) -> float:
    """Root mean square over p_t of eps_hat(x, t) - eps_hat(x, s)."""
    world, now = mixture(process), process.at(t)
    x, spacing = nodes(now)
    gap = world(x, now).eps - world(x, process.at(s)).eps
    return math.sqrt(expected(gap**2, world, x, now, spacing))


# --- step 4: the Gaussian denoiser ----------------------------------------------------------------------------------------------


def gradient_variance(process: Process, step: int) -> tuple[float, float]:
    """Variance of d loss/d(shift of eps_hat) at the optimum, (sampled x_s, x_s replaced by its mean given x_t and x0), variance small.

    The gradient is k (x_s - E[x_s|x_t])/std^2 with k = c_x0 sigma_t/alpha_t, so they are k^2 (c_x0^2 R + std^2)/std^4 and
    k^2 c_x0^2 R/std^4, R = E Var(x0 | x_t).
    """
    length = process.schedule.T or 1000
    s, t = process.at((step - 1) / length), process.at(step / length)
    c_x0, _, std = (value.item() for value in process.posterior(s, t))
    known = c_x0**2 * residual(mixture(process), t)
    factor = (c_x0 * (t.sigma / t.alpha).item()) ** 2 / std**4
    return factor * (known + std**2), factor * known


def measured_gradient_variance(process: Process, step: int, count: int = 4000) -> tuple[float, float]:
    """The same from `Stepwise` itself by automatic differentiation over `count` draws."""
    length, x0 = process.schedule.T or 1000, draw(process, count, seed=3)
    rng = generator(4)
    eps, z = (torch.randn(count, 1, dtype=torch.float64, generator=rng) for _ in range(2))
    u = torch.full((count,), (step - 0.5) / length, dtype=torch.float64)
    found: list[float] = []
    for reduced in (False, True):
        shift = torch.zeros(count, 1, dtype=torch.float64, requires_grad=True)
        loss = Stepwise(reduced=reduced).build()(Measured(process, shift), x0, None, Draws(u, eps, z)) / length
        found.append(torch.autograd.grad(loss.sum(), shift)[0].var().item())
    return found[0], found[1]


def reverse_densities(process: Process, s: float, t: float, x: float) -> tuple[Tensor, Tensor, Tensor]:
    """x_s, the exact density q(x_s | x_t = x), and the Gaussian of the same mean and variance."""
    world, now, then = mixture(process), process.at(t), process.at(s)
    y, spacing = nodes(then, spacing=2e-3)
    scale, std = process.transition(then, now)
    exact = (world.log_density(y, then) - 0.5 * ((x - scale * y[:, 0]) / std) ** 2).exp()
    exact = exact / (exact.sum() * spacing)
    mean = (exact * y[:, 0]).sum() * spacing
    variance = (exact * (y[:, 0] - mean) ** 2).sum() * spacing
    return y[:, 0], exact, (-0.5 * (y[:, 0] - mean) ** 2 / variance).exp() / (2 * math.pi * variance).sqrt()


def chain_error(
    process: Process, steps: int, variance: Variance, *, noisy_end: bool = False, times: Tensor | None = None, fineness: float = 2.5
) -> float:
    """Total variation between the data and the ancestral sampler's output with the exact denoiser, in [0, 1].

    The sampler's own plan is walked with densities in place of samples: p(x_s) = sum_i N(x_s; mean(x_i), std^2) p(x_i) h on a grid of
    distance h <= std / fineness. The sampler's last step adds no noise; `noisy_end` gives it the best variance, E Var(x0 | x_t).
    times: instants to walk instead of the usual grid.
    """
    model = Measured(process)
    plan = Ancestral(variance=variance).plan(model.bind(), default_grid(process, steps).times(process, steps) if times is None else times)
    c_x0, c_xt, std = plan.coefficients[:, :3].unbind(1)
    ats = [At(*(level[k] for level in plan.instants)) for k in range(steps + 1)]
    if noisy_end:
        std[-1] = process.residual_variance(ats[-1], ats[-2], model.residual(ats[-2])).sqrt()
    spacings = [std[k].item() / fineness if std[k] > 0 else 1e-3 for k in range(steps)] + [2e-3]
    x, h = nodes(ats[0], spacings[0])
    density = (-0.5 * (x[:, 0] / process.prior_std(ats[0])) ** 2).exp() / math.sqrt(2 * math.pi) / process.prior_std(ats[0])
    for k in range(steps):
        x0 = model.world(x, ats[k]).x0
        if std[k] == 0:  # y = x0_hat(x), which rises: p(y) dy = p(x) dx, compared at x
            step = 1e-5
            slope = (model.world(x + step, ats[k]).x0 - model.world(x - step, ats[k]).x0)[:, 0] / (2 * step)
            return 0.5 * (density - slope * model.world.log_density(x0, ats[-1]).exp()).abs().sum().item() * h
        mean = c_x0[k] * x0 + c_xt[k] * x
        y, h_next = nodes(ats[k + 1], spacings[k + 1])
        kernel = (-0.5 * ((y - mean.T) / std[k]) ** 2).exp() / (math.sqrt(2 * math.pi) * std[k])
        x, density, h = y, kernel @ density * h, h_next
    return 0.5 * (density - model.world.log_density(x, ats[-1]).exp()).abs().sum().item() * h


# --- step 5: the parameterization -----------------------------------------------------------------------------------------------


def bound_weight(process: Process, kind: Parameterization, step: int) -> float:
    """What one step's bound multiplies |F - F_hat|^2 by: (c_x0 sigma/d)^2 / (2 std^2), std the transition's."""
    length = process.schedule.T or 1000
    s, t = process.at((step - 1) / length), process.at(step / length)
    c_x0, _, large = process.posterior(s, t, 1.0)
    return ((c_x0 * t.sigma / kind.determinant(t, process)) ** 2 / (2 * large**2)).item()


def best_error(process: Process, kind: Parameterization, at: At) -> tuple[float, float]:
    """Var F and E|F - F_hat|^2 of the best prediction; F - F_hat = -d/sigma (x0 - x0_hat)."""
    a, b = kind.target(at, process)
    d = kind.determinant(at, process)
    return (a**2 + b**2).item(), (d / at.sigma).item() ** 2 * residual(mixture(process), at)


def score_gap(process: Process, t: float) -> float:
    """Largest |-eps_hat/sigma - d log p_t/dx| over x, the derivative by automatic differentiation."""
    world, at = mixture(process), process.at(t)
    x = torch.linspace(-3, 3, 101, dtype=torch.float64)[:, None].requires_grad_()
    gradient = torch.autograd.grad(world.log_density(x, at).sum(), x)[0]
    return (world.score(x, at) - gradient).abs().max().item()


def score_matching_offset(process: Process, t: float, shift: float) -> tuple[float, float]:
    """For a score wrong by `shift`: E|s + eps/sigma|^2 less its value at shift 0, and E|s - grad log p_t|^2. They are equal."""
    at = process.at(t)
    x, spacing = nodes(at)
    world = mixture(process)
    gap = at.sigma.item() * shift  # of eps_hat; E|eps - eps_hat - gap|^2 = E|eps - eps_hat|^2 + gap^2 since E[eps - eps_hat | x] = 0
    wrong = Measured(process, -gap)
    eps, x0 = torch.randn(200_000, 1, dtype=torch.float64, generator=generator(5)), draw(process, 200_000, seed=6)
    noisy = process.perturb(x0, eps, at)
    right = (world.score(noisy, at) + eps / at.sigma) ** 2
    denoising = ((wrong.score(noisy, at) + eps / at.sigma) ** 2 - right).mean().item()
    return denoising, expected((wrong.score(x, at) - world.score(x, at)) ** 2, world, x, at, spacing)


def with_steps(process: Process, length: int) -> Process:
    """The same process walked in `length` steps."""
    return Process(replace(process.schedule, T=length))
