"""The loss modules: (denoiser, x0, cond, draws) -> one number a sample."""

# torch leaves the functions of torch.special and torch.linalg and Tensor.tolist untyped; their results are annotated here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddpm.denoiser import Cond, Denoiser
from ddpm.objective.bound import chain_length, decoder_nll, mean_flat, reverse_mean, reverse_variance, step_instants, step_term, term_at
from ddpm.objective.settings import Denoising, Hybrid, Stepwise, VariationalBound
from ddpm.objective.times import UniformTimes
from ddpm.process import Process


class Draws(NamedTuple):
    """All the randomness of a loss, drawn outside: uniforms u (B,) for the instants, unit normals eps and z (B, *D)."""

    u: Tensor
    eps: Tensor
    z: Tensor


Observed = list[tuple[Tensor, Tensor]]  # uniforms (B,) and the losses (B,) found there, a pair for every pass


class Loss(nn.Module, ABC):
    """What training minimises; the Trainer averages it over the batch.

    What a loss learns from the losses it has seen waits until the step is known to count, and until those of all processes are together:
    `take` hands over what waits, `settle` learns from it. Most losses learn nothing.
    """

    def take(self) -> Observed:
        """What has been seen since the last call, in order; it is forgotten here."""
        return []

    def settle(self, observed: Observed) -> None:
        """Learn from what was seen."""

    def advance(self, share: float) -> None:
        """Told before every step which share of the run is done, 0 to 1, for losses that change on the way."""

    @abstractmethod
    def forward(self, denoiser: Denoiser, x0: Tensor, cond: Cond, draws: Draws) -> Tensor:
        """x0 (B, *D) in the space diffused in -> loss (B,)."""


def target_error(denoiser: Denoiser, x0: Tensor, cond: Cond, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of |F - F_hat|^2 over entries, (B,), and the determinant d (B,), at instants t (B,) float64.

    F_hat is re-read from the prediction, a x0_hat + b eps_hat, so that any denoiser, exact ones too, can be scored.
    """
    process, kind = denoiser.process, denoiser.parameterization
    at = process.at(t, like=x0)
    prediction = denoiser(process.perturb(x0, eps, at), at, cond)
    a, b = kind.target(at, process)
    gap = a * (x0 - prediction.x0) + b * (eps - prediction.eps)
    return mean_flat(gap**2), kind.determinant(process.at(t), process)


class Importance(nn.Module):
    """Piecewise constant density over t, proportional to the root mean square of the last losses in each cell; uniform until every cell has
    been seen.

    Reference: Nichol, Dhariwal, 2021, arXiv:2102.09672, eq. 18 (10 losses kept per cell).
    """

    losses: Tensor  # (cells, kept), the last ones
    seen: Tensor  # (cells,), how many ever

    def __init__(self, cells: int = 100, kept: int = 10, uniform: float = 0.001) -> None:
        super().__init__()
        self.uniform = uniform
        self.register_buffer("losses", torch.zeros(cells, kept, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(cells, dtype=torch.int64))

    def shares(self) -> Tensor:
        """Probability of each cell, (cells,)."""
        cells, kept = self.losses.shape
        flat = torch.full((cells,), 1.0 / cells, dtype=torch.float64, device=self.losses.device)
        if int(self.seen.min()) < kept:
            return flat
        size = self.losses.square().mean(1).sqrt()
        return (1 - self.uniform) * size / size.sum() + self.uniform * flat

    def warp(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Uniforms (B,) -> uniforms pushed to the costly cells, with the density of the push, (B,)."""
        shares = self.shares().cpu()
        edges = torch.cat([torch.zeros(1, dtype=torch.float64), shares.cumsum(0)])
        cell = (torch.searchsorted(edges, u, right=True) - 1).clamp(0, len(shares) - 1)
        return (cell + (u - edges[cell]) / shares[cell]) / len(shares), shares[cell] * len(shares)

    @torch.no_grad()
    def record(self, u: Tensor, losses: Tensor) -> None:
        """Keep the losses (B,) found at warped uniforms u (B,)."""
        cells, kept = self.losses.shape
        places: list[int] = (u * cells).long().clamp(0, cells - 1).tolist()
        found: list[float] = losses.detach().to(torch.float64).tolist()
        for place, loss in zip(places, found, strict=True):
            if math.isfinite(loss):
                self.losses[place, self.seen[place] % kept] = loss
                self.seen[place] += 1


class Uncertainty(nn.Module):
    """u(log_snr): a linear map of random Fourier features, 0 at the start.

    Reference: Karras et al., 2024, arXiv:2312.02696, section B.2 (appendix).
    """

    frequency: Tensor
    phase: Tensor

    def __init__(self, features: int = 128) -> None:
        super().__init__()
        place = torch.arange(features, dtype=torch.float32) + 0.5
        normal: Tensor = torch.special.ndtri(place / features)  # quantiles: no generator needed
        self.register_buffer("frequency", 2 * math.pi * normal)
        self.register_buffer("phase", 2 * math.pi * ((place * 0.6180339887498949) % 1.0))
        self.linear = nn.Linear(features, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, log_snr: Tensor) -> Tensor:
        """(B,) -> (B,)."""
        c_noise = -log_snr.to(self.linear.weight).clamp(-100.0, 100.0) / 8.0  # log(sigma)/4, finite where alpha = 0
        return self.linear(math.sqrt(2.0) * (c_noise[:, None] * self.frequency + self.phase).cos()).squeeze(1)


class DenoisingLoss(Loss):
    """See `Denoising`."""

    def __init__(self, settings: Denoising) -> None:
        super().__init__()
        self.settings = settings
        self.uncertainty = Uncertainty() if settings.uncertainty else None
        self.importance = Importance() if settings.importance else None
        self._waiting: Observed = []

    def take(self) -> Observed:
        """Uniforms and losses, where the times follow their loss."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def settle(self, observed: Observed) -> None:
        """Let the times follow them."""
        if self.importance is not None:
            for u, losses in observed:
                self.importance.record(u, losses)

    def forward(self, denoiser: Denoiser, x0: Tensor, cond: Cond, draws: Draws) -> Tensor:
        """k(t)/p(t) |F - F_hat|^2, with the learned uncertainty where asked for."""
        process = denoiser.process
        u, push = self.settings.times.spread(draws.u.to(torch.float64).cpu()), torch.ones(())
        if self.importance is not None:
            u, push = self.importance.warp(u)
        t, density = self.settings.times.place(u, process)
        error, determinant = target_error(denoiser, x0, cond, t, draws.eps)
        at = process.at(t)
        factor = self.settings.weighting.on_target(at, process, determinant).to(error)
        loss = factor * error
        if self.importance is not None and self.training:
            self._waiting.append((u, loss.detach().cpu()))
        if self.uncertainty is not None:
            level = self.uncertainty(at.log_snr.to(x0.device))
            loss = loss * (-level).exp() + level
        return loss / (density * push).to(error)


def _steps(u: Tensor, process: Process) -> Tensor:
    """Uniforms (B,) -> steps of the chain, 1..T."""
    t, _ = UniformTimes().draw(u, process)
    return (t * chain_length(process)).round()


class BoundLoss(Loss):
    """See `VariationalBound`."""

    def __init__(self, settings: VariationalBound) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, denoiser: Denoiser, x0: Tensor, cond: Cond, draws: Draws) -> Tensor:
        """T times one term."""
        steps = _steps(draws.u, denoiser.process)
        return chain_length(denoiser.process) * step_term(denoiser, x0, cond, steps, draws.eps, self.settings.variance)


class HybridLoss(Loss):
    """See `Hybrid`."""

    def __init__(self, settings: Hybrid) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, denoiser: Denoiser, x0: Tensor, cond: Cond, draws: Draws) -> Tensor:
        """L_simple + weight T L_t / log 2, from one prediction."""
        process = denoiser.process
        s, t = step_instants(process, _steps(draws.u, process), x0)
        x = process.perturb(x0, draws.eps, t)
        prediction = denoiser(x, t, cond)
        shielded = prediction._replace(x0=prediction.x0.detach(), eps=prediction.eps.detach())
        bound = chain_length(process) * term_at(denoiser, x0, s, t, x, shielded, "learned")
        return mean_flat((draws.eps - prediction.eps) ** 2) + self.settings.weight * bound / math.log(2.0)


class StepwiseLoss(Loss):
    """See `Stepwise`."""

    def __init__(self, settings: Stepwise) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, denoiser: Denoiser, x0: Tensor, cond: Cond, draws: Draws) -> Tensor:
        """T E[-log p(x_s | x_t)]; at the last step x_s is the data and p the decoder."""
        process, length = denoiser.process, chain_length(denoiser.process)
        s, t = step_instants(process, _steps(draws.u, process), x0)
        x = process.perturb(x0, draws.eps, t)
        prediction = denoiser(x, t, cond)
        mean_p = reverse_mean(process, s, t, x, prediction)
        var_p = reverse_variance(process, s, t, self.settings.variance, denoiser, None)
        c_x0, c_xt, std_q = process.posterior(s, t)
        mean_q = c_x0 * x0 + c_xt * x
        if self.settings.reduced:
            gap, spread = mean_q - mean_p, std_q**2 / (2.0 * var_p)
        else:
            gap, spread = mean_q + std_q * draws.z - mean_p, torch.zeros_like(var_p)
        nll = gap**2 / (2.0 * var_p) + spread + 0.5 * (2.0 * math.pi * var_p).log()
        decoder = decoder_nll(x0, mean_p, var_p.sqrt().expand_as(x0), denoiser)
        return length * mean_flat(torch.where(s.sigma == 0, decoder, nll))
