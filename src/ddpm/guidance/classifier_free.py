"""Classifier-free guidance, with one convention: scale 1 is the conditional model, 0 the unconditional, more than 1 pushes beyond the
condition.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddpm.denoiser import Cond, Denoiser, Prediction
from ddpm.errors import ConfigError
from ddpm.process import At


class ClassifierFree(Denoiser):
    """eps = eps(null) + scale (eps(cond) - eps(null)), and likewise x0; both halves in one network call.

    scale = 1 + w of the paper. Raises ConfigError for a scale that is not finite.

    Reference: Ho, Salimans, 2022, arXiv:2207.12598, eq. 6.
    """

    def __init__(self, denoiser: Denoiser, scale: float) -> None:
        super().__init__()
        if not math.isfinite(scale):
            raise ConfigError(f"guidance: got {scale}, must be a finite number (1 conditional, 0 unconditional)")
        self.denoiser, self.scale = denoiser, scale
        self.process, self.parameterization, self.log_snr_range = denoiser.process, denoiser.parameterization, denoiser.log_snr_range
        self.shape, self.codec, self.meaning, self.classes = denoiser.shape, denoiser.codec, denoiser.meaning, denoiser.classes

    def forward(self, x: Tensor, at: At, cond: Cond = None) -> Prediction:
        """The guided prediction; ConfigError where there is no condition to guide by."""
        if not cond:
            raise ConfigError(f"guidance {self.scale}: there is no condition to guide by; name classes, or leave guidance out")
        if self.scale == 1.0:
            return self.denoiser(x, at, cond)
        if self.scale == 0.0:
            return self.denoiser(x, at, self.null(cond))
        asked = {"null": torch.zeros(len(x), dtype=torch.bool, device=x.device), **cond}
        empty = self.null(cond)
        assert empty is not None  # cond is not
        both = {key: torch.cat([value, empty[key]]) for key, value in asked.items()}
        twice = At(*(torch.cat([level, level]) if level.ndim else level for level in at))
        prediction = self.denoiser(torch.cat([x, x]), twice, both)
        (x0, x0_null), (eps, eps_null) = prediction.x0.chunk(2), prediction.eps.chunk(2)
        variance = prediction.variance.chunk(2)[0] if prediction.variance is not None else None
        return Prediction(x0_null + self.scale * (x0 - x0_null), eps_null + self.scale * (eps - eps_null), variance)

    def residual(self, at: At) -> Tensor:
        """The guided model's own: the conditional denoiser's moment, which guidance leaves as the best guess."""
        return self.denoiser.residual(at)
