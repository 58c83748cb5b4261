"""The T-step variational bound, term by term: L_T + sum_t L_{t-1} + L_0, with Ho's discretised decoder. All in nats per entry.

Reference: Ho, Jain, Abbeel, 2020, arXiv:2006.11239, eqs. 5 and 13; learned variance: Nichol, Dhariwal, 2021, arXiv:2102.09672, section 3.1.
"""

# torch leaves the functions of torch.special and torch.linalg and Tensor.tolist untyped; their results are annotated here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ddpm.denoiser import Codec, Cond, Denoiser, Prediction
from ddpm.errors import ConfigError
from ddpm.process import At, Process

Variance = Literal["small", "large", "learned", "analytic"]


def mean_flat(x: Tensor) -> Tensor:
    """Mean over all but the first axis: (B, *D) -> (B,)."""
    return x.reshape(len(x), -1).mean(1)


def gaussian_kl(mean_q: Tensor, var_q: Tensor, mean_p: Tensor, var_p: Tensor) -> Tensor:
    """KL(N(mean_q, var_q) || N(mean_p, var_p)) entry by entry, in nats."""
    return 0.5 * (var_p.log() - var_q.log() + (var_q + (mean_q - mean_p) ** 2) / var_p - 1.0)


def _log_interval(low: Tensor, high: Tensor) -> Tensor:
    """log(Phi(high) - Phi(low)) without cancellation: taken in the tail where both are negative."""
    flip = low + high > 0
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    top: Tensor = torch.special.log_ndtr(high)
    bottom: Tensor = torch.special.log_ndtr(low)
    return top + torch.log(-torch.expm1((bottom - top).clamp(max=-1e-12)))


def level_edges(x0: Tensor, codec: Codec) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """(low, high, lowest, highest), each like x0: the edges of the bin of each encoded level, and whether it is the lowest or the highest
    one, whose bin is open; None for continuous data.

    There are 17 levels of the digits, 256 of 8-bit pictures.
    """
    width, bounds = codec.bin_width(x0), codec.bounds(x0)
    if width is None or bounds is None:
        return None
    return x0 - width / 2, x0 + width / 2, x0 < bounds[0] + width / 2, x0 > bounds[1] - width / 2


def decoder_nll(x0: Tensor, mean: Tensor, std: Tensor, denoiser: Denoiser) -> Tensor:
    """-log p(x0 | x_1): the Gaussian's mass on x0's bin, open at the lowest and highest level; its density where data are continuous.

    Reference: Ho et al., 2020, eq. 13.
    """
    edges = None if denoiser.codec is None else level_edges(x0, denoiser.codec)
    if edges is None:
        return 0.5 * ((x0 - mean) / std) ** 2 + std.log() + 0.5 * math.log(2 * math.pi)
    low, high = ((edge - mean) / std for edge in edges[:2])
    far = 40.0  # standard deviations beyond the other edge: as good as infinity, and differentiable
    low, high = torch.where(edges[2], high.clamp(max=0.0) - far, low), torch.where(edges[3], low.clamp(min=0.0) + far, high)
    return -_log_interval(low, high)


def reverse_variance(process: Process, s: At, t: At, kind: Variance, denoiser: Denoiser, v: Tensor | None) -> Tensor:
    """Variance of the model's p(x_s | x_t).

    At the last step, where the posterior's own is 0, "small" and "large" mean the posterior's of the step before it (as published), or the
    transition's on a chain of one step.
    """
    small, large = process.posterior(s, t)[2], process.posterior(s, t, torch.ones_like(t.t))[2]
    if bool((s.sigma == 0).any()):
        second = process.at((2.0 * t.t.double().cpu()).clamp(max=1.0)).like(t.t if t.t.ndim else t.alpha)
        floor = torch.where(second.t > t.t, process.posterior(t, second)[2], large)
        small = torch.where(s.sigma == 0, floor.reshape(small.shape), small)
    if kind == "learned":
        if v is None:
            raise ConfigError(
                "variance 'learned': this denoiser predicts none; train it with learned_variance, or use small, large or analytic"
            )
        return small ** (2 * (1 - v)) * large ** (2 * v)
    if kind == "analytic":
        return torch.where(s.sigma == 0, small**2, process.residual_variance(s, t, denoiser.residual(t)))
    return small**2 if kind == "small" else torch.where(s.sigma == 0, small**2, large**2)


def reverse_mean(process: Process, s: At, t: At, x: Tensor, prediction: Prediction) -> Tensor:
    """Mean of the model's p(x_s | x_t): the posterior's with x0 replaced by the prediction.

    Reference: Ho et al., 2020, eq. 7 and section 3.2.
    """
    c_x0, c_xt, _ = process.posterior(s, t)
    return c_x0 * prediction.x0 + c_xt * x


def term_at(denoiser: Denoiser, x0: Tensor, s: At, t: At, x: Tensor, prediction: Prediction, variance: Variance) -> Tensor:
    """L of the step from t to s given the prediction at x_t: a KL, or the decoder's -log p where s is clean; nats per entry, (B,)."""
    process = denoiser.process
    mean_p = reverse_mean(process, s, t, x, prediction)
    var_p = reverse_variance(process, s, t, variance, denoiser, prediction.variance)
    c_x0, c_xt, std_q = process.posterior(s, t)
    first = (s.sigma == 0).expand_as(x0)
    var_q = torch.where(s.sigma == 0, torch.ones_like(std_q), std_q**2)  # a dummy where the term is not a KL
    kl = gaussian_kl(c_x0 * x0 + c_xt * x, var_q.expand_as(x0), mean_p, var_p.expand_as(x0))
    return mean_flat(torch.where(first, decoder_nll(x0, mean_p, var_p.sqrt().expand_as(x0), denoiser), kl))


def step_instants(process: Process, step: Tensor, like: Tensor) -> tuple[At, At]:
    """(s, t) of the chain's steps `step` (B,) in 1..T: from t = step/T to s = (step - 1)/T, to broadcast over `like`."""
    length = chain_length(process)
    knot = step.to(device="cpu", dtype=torch.float64)
    return process.at((knot - 1) / length, like=like), process.at(knot / length, like=like)


def step_term(denoiser: Denoiser, x0: Tensor, cond: Cond, step: Tensor, eps: Tensor, variance: Variance) -> Tensor:
    """L_{t-1} (L_0 where step = 1) of the chain's steps `step` (B,) in 1..T, at x_t = alpha x0 + sigma eps: nats per entry, (B,)."""
    s, t = step_instants(denoiser.process, step, x0)
    x = denoiser.process.perturb(x0, eps, t)
    return term_at(denoiser, x0, s, t, x, denoiser(x, t, cond), variance)


def prior_term(process: Process, x0: Tensor) -> Tensor:
    """L_T = KL(q(x_T | x0) || p(x_T)), nats per entry, (B,)."""
    end = process.at(1.0, like=x0)
    var_p = (process.prior_std(end) ** 2).expand_as(x0)
    return mean_flat(gaussian_kl(end.alpha * x0, (end.sigma**2).expand_as(x0), torch.zeros_like(x0), var_p))


def chain_length(process: Process) -> int:
    """T, or ConfigError where time is continuous."""
    if process.schedule.T is None:
        raise ConfigError("the T-step bound needs a discrete chain; give the schedule a T")
    return process.schedule.T


def variational_bound(denoiser: Denoiser, x0: Tensor, cond: Cond, noise: Tensor, variance: Variance = "small") -> Tensor:
    """All terms of the bound, (B, T + 1) in nats per entry: columns L_0, L_1, ..., L_{T-1}, L_T; their sum bounds -log p(x0).

    noise: unit normals (T, B, *D), one draw of eps a step.
    """
    length = chain_length(denoiser.process)
    terms = [step_term(denoiser, x0, cond, torch.full((len(x0),), step), noise[step - 1], variance) for step in range(1, length + 1)]
    return torch.stack([*terms, prior_term(denoiser.process, x0)], dim=1)
