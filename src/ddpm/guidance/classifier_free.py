"""Classifier-free guidance: away from what the same network says with the condition hidden."""

from __future__ import annotations

import torch
from torch import Tensor

from ddpm.denoiser import Cond, Denoiser, NetworkDenoiser, Prediction, asked
from ddpm.errors import ConfigError
from ddpm.guidance.guided import Guided, interval_problems
from ddpm.process import At


class ClassifierFree(Guided):
    """eps = eps(null) + scale (eps(cond) - eps(null)), and likewise x0; both halves in one network call.

    scale 1: the conditional model, 0: the unconditional; 1 + w of the paper. interval, rescale and what is refused: see `Guided`. What
    draws the smaller samples of a cascade is guided likewise, where it knows conditions and its noise levels meet the interval.

    Reference: Ho, Salimans, 2022, arXiv:2207.12598, eq. 6.
    """

    def __init__(self, denoiser: Denoiser, scale: float, *, interval: tuple[float, float] | None = None, rescale: float = 0.0) -> None:
        super().__init__(denoiser, scale, interval=interval, rescale=rescale)
        small = None if self.base is None else self.base.denoiser
        able = isinstance(small, NetworkDenoiser) and small.conditions and small.meaning == "mean"
        if self.base is not None and small is not None and able and not (interval and interval_problems(interval, small)):
            self.base = self.base._replace(denoiser=ClassifierFree(small, scale, interval=interval, rescale=rescale))

    def plain(self) -> Denoiser:
        """The conditional model."""
        return self.denoiser

    def forward(self, x: Tensor, at: At, cond: Cond = None) -> Prediction:
        """The guided prediction; ConfigError where there is no condition to guide by."""
        if not asked(cond):
            raise ConfigError(f"guidance {self.scale}: there is no condition to guide by; name classes, or leave guidance out")
        return super().forward(x, at, cond)

    def rest(self, x: Tensor, at: At, cond: Cond) -> Prediction:
        """The condition hidden."""
        return self.denoiser(x, at, self.null(cond))

    def parts(self, x: Tensor, at: At, cond: Cond) -> tuple[Prediction, Prediction]:
        """(conditional, unconditional) by one call of twice the batch."""
        asked, empty = {"null": torch.zeros(len(x), dtype=torch.bool, device=x.device), **(cond or {})}, self.null(cond)
        assert empty is not None  # there is a condition
        both = {key: torch.cat([value, empty[key]]) for key, value in asked.items()}
        twice = At(*(torch.cat([level, level]) if level.ndim else level for level in at))
        prediction = self.denoiser(torch.cat([x, x]), twice, both)
        (x0, x0_null), (eps, eps_null) = prediction.x0.chunk(2), prediction.eps.chunk(2)
        variance = prediction.variance.chunk(2)[0] if prediction.variance is not None else None
        return Prediction(x0, eps, variance), Prediction(x0_null, eps_null)
