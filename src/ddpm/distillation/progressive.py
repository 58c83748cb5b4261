"""Progressive distillation: one step where the teacher takes two."""

from __future__ import annotations

import torch
from torch import Tensor

from ddpm.denoiser import Cond, Denoiser
from ddpm.distillation.methods import Progressive
from ddpm.distillation.segments import jump, knots
from ddpm.distillation.teacher import Teacher
from ddpm.objective.bound import mean_flat
from ddpm.objective.losses import Draws, Loss
from ddpm.process import At, Process


class ProgressiveLoss(Loss):
    """See `Progressive`."""

    def __init__(self, settings: Progressive) -> None:
        super().__init__()
        self.settings, self.teacher = settings, Teacher(settings)

    def forward(self, denoiser: Denoiser, x0: Tensor, cond: Cond, draws: Draws) -> Tensor:
        """max(SNR, 1) |x0_hat - x0~|^2 at one of the student's instants, x0~ from `landed`."""
        process = denoiser.process
        pair, cond = split(draws.u, len(self.settings.fine) // 2, cond, self.settings.told)
        t, middle, s = (at.like(x0) for at in triple(process, self.settings.fine, pair))
        x = process.perturb(x0, draws.eps, t)
        wanted = self.landed(process, x, t, middle, s, cond)
        prediction = denoiser(x, t, cond)
        error = torch.maximum((wanted - prediction.x0) ** 2, (process.noise(x, wanted, t) - prediction.eps) ** 2)
        return mean_flat(error)

    @torch.no_grad()
    def landed(self, process: Process, x: Tensor, t: At, middle: At, s: At, cond: Cond) -> Tensor:
        """The x0 from which one step takes x_t where the teacher's two steps end."""
        here = x
        for now, then in ((t, middle), (middle, s)):
            here = jump(process, self.teacher(here, now, cond), now, then)
        return process.landing(s, t, here, x)


def split(u: Tensor, count: int, cond: Cond, most: float) -> tuple[Tensor, Cond]:
    """Uniforms (B,) -> which of `count` (B,), and the condition, with a guidance scale even in [1, most] from what is left of the uniforms
    where most > 1: the network is told one.
    """
    place = u.to(torch.float64) * count
    which = place.floor().clamp(max=count - 1)
    if most == 1.0:
        return which.long().cpu(), cond
    rest = (place - which).to(torch.float32)
    device = next(iter(cond.values())).device if cond else u.device
    return which.long().cpu(), {**(cond or {}), "guidance": (1.0 + (most - 1.0) * rest).to(device)}


def triple(process: Process, fine: tuple[float, ...], pair: Tensor) -> tuple[At, At, At]:
    """(t, middle, s) of the pairs numbered (B,): the teacher's instants 2k, 2k + 1, 2k + 2, the last pair ending at `clean`."""
    levels = knots(process, fine)
    t, middle, s = (levels.take(2 * pair + step) for step in range(3))
    return t, middle, s
