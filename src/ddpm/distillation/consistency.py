"""Consistency distillation and training: every point of a trajectory is mapped to where the trajectory ends."""

from __future__ import annotations

import torch
from torch import Tensor

from ddpm.denoiser import Cond, Denoiser
from ddpm.distillation.methods import Consistency
from ddpm.distillation.pooled import pooled
from ddpm.distillation.segments import jump, segment_end
from ddpm.distillation.teacher import Teacher, masks
from ddpm.objective.losses import Draws, Loss
from ddpm.process import At, Process


class ConsistencyLoss(Loss):
    """See `Consistency`."""

    def __init__(self, settings: Consistency) -> None:
        super().__init__()
        self.settings, self.teacher = settings, Teacher(settings)
        self.gap = 2.0**-settings.first

    def advance(self, share: float) -> None:
        """The gap of the stage the run is in."""
        stages = self.settings.stages
        self.gap = 2.0 ** -(self.settings.first + min(int(share * stages), stages - 1))

    def forward(self, denoiser: Denoiser, x0: Tensor, cond: Cond, draws: Draws) -> Tensor:
        """(sqrt(|f(x_t) - f(x_s)|^2 + c^2) - c)/(u_t - u_s), f(x_s) without a gradient and under the same dropout; f(x) is where x comes to
        at the end of its segment, which for a map is `clean`.

        f is computed in float32: in bfloat16 the difference of two near points is rounding, and is divided by a small step.
        """
        process = denoiser.process
        time, density = self.settings.times.draw(draws.u, process)
        t, end = process.at(time), segment_end(process, denoiser.times, time)
        s = below(process, t, end, self.gap)
        step = (t.level - s.level).to(x0)
        t, s, end = t.like(x0), s.like(x0), end.like(x0)
        x = process.perturb(x0, draws.eps, t)
        again = masks(x.device)
        ahead = jumped(denoiser, x, t, end, cond)
        again()
        with torch.no_grad():
            wanted = self.target(denoiser, x0, x, t, s, end, cond, draws.eps)
        metric = distance(ahead - wanted, self.settings.huber)
        return metric / (step * density.to(x0))

    def target(self, denoiser: Denoiser, x0: Tensor, x: Tensor, t: At, s: At, end: At, cond: Cond, eps: Tensor) -> Tensor:
        """f(x_s), which is x_s itself where s is the end."""
        process = denoiser.process
        if self.settings.source == "data":
            nearby = process.perturb(*pooled(x0, eps, t, cond), s)
        else:
            nearby = heun(self.teacher, process, x, t, s, cond)
        clean, arrived = s.sigma == 0, s.t == end.t
        ended = jumped(denoiser, torch.where(clean, x, nearby), askable(s, t), end, cond)
        return torch.where(arrived, nearby, ended)


def jumped(denoiser: Denoiser, x: Tensor, at: At, end: At, cond: Cond) -> Tensor:
    """Where the denoiser jumps to, in the network's own precision whatever autocast says."""
    with torch.autocast(x.device.type, enabled=False):
        return jump(denoiser.process, denoiser(x, at, cond), at, end)


def askable(s: At, t: At) -> At:
    """s, or t where s is `clean`, which no denoiser is asked at; what is said there is not used."""
    return At(*(torch.where(s.sigma == 0, other, level) for other, level in zip(t, s, strict=True)))


def below(process: Process, t: At, end: At, gap: float) -> At:
    """The instants whose level has come (1 - gap) of the way from that of `end` to that of t (B,); `end` itself where it is nearer than the
    least level a denoiser is trained on.
    """
    first = process.at(process.schedule.first).level
    level = end.level + (t.level - end.level) * (1.0 - gap)
    arrived = level - end.level < first
    at = process.at_level(torch.where(arrived, first, level))
    return At(*(torch.where(arrived, last, value) for last, value in zip(end, at, strict=True)))


def heun(teacher: Teacher, process: Process, x: Tensor, t: At, s: At, cond: Cond) -> Tensor:
    """Where the teacher's flow dy/du = eps - x0 (`Process.straightened`) leads from x_t, by Heun's step; by Euler's to `clean`.

    Reference: Karras et al., 2022, arXiv:2206.00364, algorithm 1.
    """
    (scale_t, u_t), (scale_s, u_s) = process.straightened(t), process.straightened(s)
    begin = teacher(x, t, cond)
    slope = begin.eps - begin.x0
    y = x / scale_t
    euler = y + (u_s - u_t) * slope
    clean = s.sigma == 0
    end = teacher(torch.where(clean, x, scale_s * euler), askable(s, t), cond)
    return scale_s * torch.where(clean, euler, y + (u_s - u_t) * 0.5 * (slope + end.eps - end.x0))


def distance(gap: Tensor, huber: float) -> Tensor:
    """sqrt(|gap|^2 + c^2) - c over sqrt(D), (B,), with c = huber sqrt(D): 1/sqrt(D) makes it a number an entry."""
    flat = gap.reshape(len(gap), -1)
    return (flat.square().mean(1) + huber**2).sqrt() - huber
