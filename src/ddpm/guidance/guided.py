"""What all guidance shares: rest + scale (asked - rest), where scale 1 is the model that was asked and 0 the one it is compared with."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from ddpm.denoiser import Cond, Denoiser, Prediction
from ddpm.denoiser.student import refusal
from ddpm.errors import ConfigError
from ddpm.process import At


class Guided(Denoiser):
    """rest + s (asked - rest) for x0 and eps alike, so alpha x0 + sigma eps = x still holds; s = scale, or 1 outside the interval.

    scale: 1 asked, 0 rest, more: beyond asked, away from rest. interval: (low, high], the noise over signal sigma/alpha within which scale
    applies. rescale: share phi, 0 to 1, by which x0 is brought back to the standard deviation asked has over the entries of a sample.

    Deviation: Lin et al. rescale what their network happens to predict (v, which is -x0 at alpha = 0, where they saw the fault); this
    rescales x0, whatever the network predicts. Raises ConfigError for a scale that is not finite, a rescale outside [0, 1], an interval
    that is empty or meets none of the model's noise levels.

    Reference: interval: Kynkaanniemi et al., 2024, arXiv:2404.07724, eq. 6; rescale: Lin et al., 2023, arXiv:2305.08891, eqs. 14-16.
    """

    def __init__(self, denoiser: Denoiser, scale: float, *, interval: tuple[float, float] | None = None, rescale: float = 0.0) -> None:
        super().__init__()
        problems = [] if math.isfinite(scale) else [f"guidance: got {scale}, must be a finite number (1 as asked, 0 the rest)"]
        problems += [] if 0.0 <= rescale <= 1.0 else [f"rescale: got {rescale}, must lie in [0, 1]"]
        problems += [] if interval is None else interval_problems(interval, denoiser)
        problems += [] if denoiser.meaning == "mean" else [f"guidance: {refusal(denoiser.meaning)}"]
        if problems:
            raise ConfigError.of(problems)
        self.denoiser, self.scale, self.interval, self.rescale = denoiser, scale, interval, rescale
        self.take_after(denoiser)

    @abstractmethod
    def plain(self) -> Denoiser:
        """The denoiser that scale 1 amounts to."""

    @abstractmethod
    def rest(self, x: Tensor, at: At, cond: Cond) -> Prediction:
        """What scale 0 amounts to."""

    @abstractmethod
    def parts(self, x: Tensor, at: At, cond: Cond) -> tuple[Prediction, Prediction]:
        """(asked, rest)."""

    def forward(self, x: Tensor, at: At, cond: Cond = None) -> Prediction:
        """The guided prediction, with the variance output of asked; no branch depends on data."""
        if self.scale == 1.0 and self.plain() is not self:
            return self.plain()(x, at, cond)
        if self.scale == 0.0 and self.interval is None and self.rescale == 0.0:
            return self.rest(x, at, cond)
        asked, rest = self.parts(x, at, cond)
        beyond: Tensor | float = self.scale - 1.0  # w of Ho and Salimans; written so that 0 leaves asked as it is, to the last bit
        if self.interval is not None:
            low, high = self.interval
            beyond = torch.where((at.ratio > low) & (at.ratio <= high), beyond, 0.0).to(x.dtype)
        x0, eps = (one + beyond * (one - other) for one, other in zip(asked[:2], rest[:2], strict=True))
        if self.rescale:
            change = (self.rescale * (_ratio(_std(asked.x0), _std(x0)) - 1.0)) * x0
            x0, eps = x0 + change, eps + self.process.noise(torch.zeros_like(x), change, at)  # noise is linear in x and x0
        return Prediction(x0, eps, asked.variance)

    def within(self, ratios: tuple[float, float]) -> Denoiser:
        """The plain denoiser for noise levels that are all outside the interval: it costs one call instead of two."""
        if self.scale == 1.0:
            return self.plain()
        if self.interval is None:
            return self
        (least, most), (low, high) = ratios, self.interval
        return self.plain() if most <= low or least > high else self

    def residual(self, at: At) -> Tensor:
        """The wrapped denoiser's moment, which guidance leaves as the best guess."""
        return self.denoiser.residual(at)


def interval_problems(interval: tuple[float, float], denoiser: Denoiser) -> list[str]:
    """What is wrong with an interval of sigma/alpha for a denoiser."""
    low, high = interval
    if not 0.0 <= low < high:
        return [f"interval: got {low:g},{high:g}; must be 0 <= low < high, in noise over signal (sigma/alpha)"]
    process = denoiser.process
    least, most = (process.at(t).ratio.item() for t in (process.schedule.first, 1.0))
    if high <= least or low >= most:
        return [f"interval: got {low:g},{high:g}, but this model goes from noise over signal {least:.3g} to {most:.3g}; it would never act"]
    return []


def _std(x: Tensor) -> Tensor:
    """Standard deviation over a sample's entries, (B, 1, ..., 1)."""
    return x.std(dim=tuple(range(1, x.ndim)), keepdim=True, correction=0)


def _ratio(one: Tensor, other: Tensor) -> Tensor:
    """one / other; 1 where other is 0, as for samples of one entry."""
    return torch.where(other > 0, one / torch.where(other > 0, other, 1.0), 1.0)
