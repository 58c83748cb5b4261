"""Guidance distillation: what two calls say under guidance, said by one."""

from __future__ import annotations

import torch
from torch import Tensor

from ddpm.denoiser import UNASKED, Cond, Denoiser
from ddpm.distillation.methods import Guidance
from ddpm.distillation.progressive import split
from ddpm.distillation.teacher import Teacher
from ddpm.errors import ConfigError
from ddpm.guidance import ClassifierFree
from ddpm.objective.bound import mean_flat
from ddpm.objective.losses import Draws, Loss
from ddpm.objective.times import UniformTimes


class GuidanceLoss(Loss):
    """See `Guidance`."""

    def __init__(self, settings: Guidance) -> None:
        super().__init__()
        self.settings, self.teacher = settings, Teacher(settings)

    def forward(self, denoiser: Denoiser, x0: Tensor, cond: Cond, draws: Draws) -> Tensor:
        """max(SNR, 1) |x0_hat - x0_guided|^2, the scale even in [1, most]; ConfigError without a condition."""
        if not cond or not cond.keys() - UNASKED - {"null"}:
            raise ConfigError("method Guidance: these data have no condition to guide by")
        process, cells = denoiser.process, 2**24  # of the 53 bits of a uniform the first say when, the rest how much
        cell, told = split(draws.u, cells, cond, self.settings.most)
        assert told is not None
        t, _ = UniformTimes().draw((cell.double() + 0.5) / cells, process)
        at = process.at(t, like=x0)
        x = process.perturb(x0, draws.eps, at)
        scale = told["guidance"].to(x0).reshape(-1, *[1] * (x0.ndim - 1))
        with torch.no_grad():
            asked, rest = ClassifierFree(self.teacher.plain(x0), 2.0).parts(x, at, cond)
        prediction = denoiser(x, at, told)
        gaps = (other + scale * (one - other) - own for one, other, own in zip(asked[:2], rest[:2], prediction[:2], strict=True))
        x0_gap, eps_gap = gaps
        return mean_flat(torch.maximum(x0_gap**2, eps_gap**2))
