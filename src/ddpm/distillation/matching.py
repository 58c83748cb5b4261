"""Distribution matching: samples whose density is the teacher's, learned from two scores."""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor

from ddpm.denoiser import Cond, Denoiser, NetworkDenoiser
from ddpm.distillation.methods import Matching
from ddpm.distillation.teacher import Teacher
from ddpm.objective.bound import mean_flat
from ddpm.objective.losses import Draws, Loss


class MatchingLoss(Loss):
    """See `Matching`. `fake`, which learns what the generator makes, is trained along and saved with the run; it drops nothing: its answer
    moves the generator, and what it learns from has no end.
    """

    def __init__(self, settings: Matching) -> None:
        super().__init__()
        self.settings, self.teacher = settings, Teacher(settings)
        self.fake: Denoiser | None = None

    def use(self, teacher: Denoiser, fake: NetworkDenoiser) -> None:
        """Take this teacher, and this denoiser as the start of `fake`."""
        self.teacher.use(teacher)
        aside = {id(part): None for part in (fake.autoencoder, fake.base_denoiser) if part is not None}  # not stored once more
        self.fake = copy.deepcopy(fake, aside).requires_grad_(True).eval()  # pyright: ignore[reportArgumentType]

    def train(self, mode: bool = True) -> Self:
        """As any module, but for `fake`."""
        super().train(mode)
        if self.fake is not None:
            self.fake.eval()
        return self

    def forward(self, denoiser: Denoiser, x0: Tensor, cond: Cond, draws: Draws) -> Tensor:
        """The generator's loss plus that of `fake` on its samples; neither sends a gradient into the other."""
        assert self.fake is not None
        process, times = denoiser.process, torch.tensor(denoiser.times, dtype=torch.float64)
        place = draws.u.to(torch.float64).cpu() * len(times)
        which = place.long().clamp(max=len(times) - 1)
        at = process.at(times[which], like=x0)
        opening = (which == 0).to(x0.device).reshape(-1, *[1] * (x0.ndim - 1))
        begun = torch.where(opening, process.prior(draws.eps, at), process.perturb(x0, draws.eps, at))
        made = denoiser(begun, at, cond).x0
        low, high = self.settings.low, self.settings.high
        where = process.at((low + (high - low) * (place - which)).clamp(low, high), like=x0)
        with torch.no_grad():
            x = process.perturb(made, draws.z, where)
            real = self.teacher(x, where, cond).x0
        said = self.fake(x, where, cond)
        with torch.no_grad():
            size = mean_flat((made - real).abs()).clamp(min=1e-6).reshape(-1, *[1] * (x0.ndim - 1))
            wanted = made - (said.x0 - real) / size
        kind = self.fake.parameterization
        a, b = kind.target(where, process)
        fit = mean_flat((a * (made.detach() - said.x0) + b * (draws.z - said.eps)) ** 2)
        return 0.5 * mean_flat((made - wanted) ** 2) + fit
