"""Clipping of the predicted x0 to the data's range: a stated option, in data space, per channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ddpm.denoiser import Codec, Model, Prediction
from ddpm.errors import ConfigError
from ddpm.process import At, Process

Clip = Literal["auto", "off", "static", "dynamic"]
QUANTILE = 0.995


@dataclass(frozen=True)
class Clipped:
    """A model whose x0 is clipped to [low, high] of each channel; eps is re-read from x, so alpha x0 + sigma eps = x still holds.

    "static": to the range. "dynamic": to the `quantile` of |x0| about the middle of the range where that is larger, then scaled back into
    it.

    Reference: static: Ho et al., 2020, arXiv:2006.11239, published code; dynamic: Saharia et al., 2022, arXiv:2205.11487, section 2.3.
    """

    model: Model
    low: Tensor
    high: Tensor
    mode: Literal["static", "dynamic"]
    quantile: float = QUANTILE

    @property
    def meaning(self) -> str:
        """The wrapped model's."""
        return self.model.meaning

    @property
    def process(self) -> Process:
        """The wrapped model's."""
        return self.model.process

    def residual(self, at: At) -> Tensor:
        """The wrapped model's."""
        return self.model.residual(at)

    def __call__(self, x: Tensor, at: At) -> Prediction:
        """The wrapped prediction, clipped."""
        prediction = self.model(x, at)
        x0 = prediction.x0
        if self.mode == "dynamic":
            middle, half = (self.high + self.low) / 2, (self.high - self.low) / 2
            size = ((x0 - middle) / half).abs().reshape(len(x0), -1).float()
            reach = size.quantile(self.quantile, dim=1).clamp(min=1.0).to(x0).reshape(-1, *[1] * (x0.ndim - 1))
            x0 = middle + ((x0 - middle) / half).clamp(-reach, reach) / reach * half
        else:
            x0 = torch.minimum(torch.maximum(x0, self.low), self.high)
        return Prediction(x0, self.process.noise(x, x0, at), prediction.variance)


def clipped(model: Model, codec: Codec | None, clip: Clip, like: Tensor, quantile: float = QUANTILE) -> Model:
    """The model under a clipping option. "auto" is static where the data are discrete levels (pictures, digits), off where they are
    continuous. quantile: of the dynamic one.

    Raises ConfigError where clipping is asked for and the range is not known, and for a quantile outside (0, 1].
    """
    if not 0.0 < quantile <= 1.0:
        raise ConfigError(f"clip_quantile: got {quantile}, must lie in (0, 1]")
    if clip not in get_args(Clip):
        raise ConfigError(f"clip: got {clip!r}, allowed: {', '.join(get_args(Clip))}")
    if clip == "off" or (clip == "auto" and (codec is None or not codec.discrete)):
        return model
    bounds = codec.bounds(like) if codec is not None else None
    if bounds is None:
        raise ConfigError(f"clip: got {clip!r}, but the range of these data is not known; use off")
    return Clipped(model, *bounds, mode="dynamic" if clip == "dynamic" else "static", quantile=quantile)
