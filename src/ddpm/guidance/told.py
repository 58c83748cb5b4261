"""Guidance that a distilled network has learned: it is told the scale, and answers in one call."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddpm.denoiser import Cond, Denoiser, NetworkDenoiser, Prediction
from ddpm.errors import ConfigError
from ddpm.process import At


class Told(Denoiser):
    """A denoiser of the guided data, cond["guidance"] set to the scale for every sample. ConfigError for a network that is not told any,
    and for scales it was not trained on.

    Reference: Meng et al., 2022, arXiv:2210.03142, section 3.1.
    """

    def __init__(self, denoiser: NetworkDenoiser, scale: float) -> None:
        super().__init__()
        if not denoiser.guided:
            raise ConfigError("guidance: this network is not told a scale; distil it with the method guidance, or use ClassifierFree")
        most = denoiser.student.guidance if denoiser.student is not None else math.inf
        if not (math.isfinite(scale) and 1.0 <= scale <= most):
            raise ConfigError(f"guidance: got {scale}; this model was distilled for scales from 1 to {most:g}")
        self.denoiser, self.scale = denoiser, scale
        self.take_after(denoiser)

    def forward(self, x: Tensor, at: At, cond: Cond = None) -> Prediction:
        """What the network says of x when it is told the scale."""
        return self.denoiser(x, at, {**(cond or {}), "guidance": torch.full((len(x),), self.scale, dtype=x.dtype, device=x.device)})

    def residual(self, at: At) -> Tensor:
        """The network's."""
        return self.denoiser.residual(at)
