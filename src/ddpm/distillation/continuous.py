"""Consistency in continuous time: the derivative of the prediction along the trajectory, brought to zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ddpm.denoiser import Cond, Denoiser, V
from ddpm.distillation.consistency import ConsistencyLoss
from ddpm.distillation.methods import Consistency, ContinuousConsistency, off_circle
from ddpm.distillation.pooled import pooled
from ddpm.distillation.segments import segment_end
from ddpm.distillation.teacher import Teacher, masks
from ddpm.errors import ConfigError
from ddpm.networks.blocks import reference
from ddpm.objective.losses import Draws, Loss
from ddpm.process import At


class ContinuousLoss(Loss):
    """See `ContinuousConsistency`."""

    def __init__(self, settings: ContinuousConsistency) -> None:
        super().__init__()
        self.settings, self.teacher, self.ramp = settings, Teacher(settings), 0.0
        early = Consistency(source=settings.source, times=settings.times, first=0, stages=settings.stages)
        self.early, self.finite = ConsistencyLoss(early), settings.finite > 0
        self.early.teacher = self.teacher

    def advance(self, share: float) -> None:
        """Whether steps are finite yet, and how much of the network's own derivative counts then: r, rising to 1 over the warm-up."""
        self.finite = share < self.settings.finite
        if self.finite:
            self.early.advance(share / self.settings.finite)
        self.ramp = 1.0 if self.settings.warmup == 0 else min(1.0, share / self.settings.warmup)

    def forward(self, denoiser: Denoiser, x0: Tensor, cond: Cond, draws: Draws) -> Tensor:
        """|F - F_old - g|^2 per entry, with g the normalised tangent; before, that of `Consistency`."""
        check_circle(denoiser)
        if self.finite:
            return self.early(denoiser, x0, cond, draws)
        process = denoiser.process
        time, density = self.settings.times.draw(draws.u, process)
        at, end = process.at(time, like=x0), segment_end(process, denoiser.times, time).like(x0)
        x = process.perturb(x0, draws.eps, at)
        again = masks(x.device)
        now = network_output(denoiser, x, at, cond)
        again()
        wanted = now.detach() + self.tangent(denoiser, x0, x, at, end, cond, draws.eps)
        return (now - wanted).reshape(len(x), -1).square().mean(1) / density.to(x0)

    @torch.no_grad()
    def tangent(self, denoiser: Denoiser, x0: Tensor, x: Tensor, at: At, end: At, cond: Cond, eps: Tensor) -> Tensor:
        """g = -cos^2 (F - v) - r cos sin (x + dF/dphi), divided by |g| + c, phi = arctan(sigma/alpha), v = dx/dphi; cos and sin of phi less
        that of the segment's end: g is cos times the derivative of the jump cos x - sin F to there.

        |.| is the root mean square over entries here, so that c does not depend on their number. Reference: Lu, Song, 2024, eqs. 6 and 8
        and algorithm 1, where the end is clean.
        """
        process = denoiser.process
        x0, eps = self.source(x0, x, at, cond, eps)
        rates = process.circle_rates(at)
        v = rates[1] * x0 + rates[2] * eps
        cos, sin = at.alpha * end.alpha + at.sigma * end.sigma, at.sigma * end.alpha - at.alpha * end.sigma
        old, change = along(denoiser, x, at, cond, v, rates, cos * sin)
        g = -(cos**2) * (old - v) - self.ramp * (cos * sin * x + change)
        size = g.reshape(len(g), -1).square().mean(1).sqrt().reshape(-1, *[1] * (x.ndim - 1))
        return g / (size + self.settings.soften)

    def source(self, x0: Tensor, x: Tensor, at: At, cond: Cond, eps: Tensor) -> tuple[Tensor, Tensor]:
        """(x0, eps) whose velocity the trajectory follows."""
        if self.settings.source == "data":
            return pooled(x0, eps, at, cond)
        said = self.teacher(x, at, cond)
        return said.x0, said.eps


def check_circle(denoiser: Denoiser) -> None:
    """ConfigError unless v is predicted and alpha^2 + sigma^2 = 1."""
    predicted = denoiser.parameterization
    if why := off_circle(denoiser.process, "V" if predicted == V() else repr(predicted)):
        raise ConfigError(why)


def network_output(denoiser: Denoiser, x: Tensor, at: At, cond: Cond) -> Tensor:
    """F of the denoiser, re-read from its prediction: a x0 + b eps."""
    said = denoiser(x, at, cond)
    a, b = denoiser.parameterization.target(at, denoiser.process)
    return a * said.x0 + b * said.eps


def along(denoiser: Denoiser, x: Tensor, at: At, cond: Cond, v: Tensor, rates: Sequence[Tensor], scale: Tensor) -> tuple[Tensor, Tensor]:
    """F, and `scale` dF/dphi along the trajectory, by one forward-mode pass with tangents scaled so: dt/dphi has no bound.

    v: dx/dphi; rates: d(t, alpha, sigma)/dphi.
    """
    with reference(denoiser), torch.autocast(x.device.type, enabled=False):
        output, change = torch.func.jvp(
            lambda x, t, alpha, sigma: network_output(denoiser, x, At(t, alpha, sigma), cond),
            (x, *at),
            (scale * v, *(scale * rate for rate in rates)),
        )[:2]
    return output, change
