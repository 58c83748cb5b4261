"""The codec: data in their own units <-> the space diffused in. The only normaliser in the package, stored with every model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddpm.denoiser.card import Card

if TYPE_CHECKING:
    import numpy as np
    import torch
else:
    from ddpm.lazy import torch


@dataclass(frozen=True, kw_only=True)
class Codec:
    """x = (raw - shift) / scale for each channel, channels first; `decode` inverts it into the data's units and dtype.

    Integer data come back rounded and kept within `bins`.
    """

    shift: tuple[float, ...]
    scale: tuple[float, ...]
    dtype: str = "float32"
    bins: tuple[float, float] | None = None
    low: tuple[float, ...] | None = None  # of the data, per channel, own units
    high: tuple[float, ...] | None = None

    @classmethod
    def of(cls, card: Card) -> Codec:
        """The codec a card asks for: "range" maps the bins (or lowest and highest value) to [-1, 1]; "standard" each channel to mean 0 and
        deviation 1.
        """
        if card.normalise == "standard":
            shift, scale = card.mean, tuple(s if s > 0 else 1.0 for s in card.std)
        else:
            ends = [card.bins] * len(card.low) if card.bins else list(zip(card.low, card.high, strict=True))
            shift = tuple((low + high) / 2 for low, high in ends)
            scale = tuple((high - low) / 2 or 1.0 for low, high in ends)
        return cls(shift=shift, scale=scale, dtype=card.dtype, bins=card.bins, low=card.low, high=card.high)

    @classmethod
    def of_vector(cls, card: Card) -> Codec | None:
        """Of the vector condition: each number to mean 0 and deviation 1, so that years and pascals drown neither each other nor the noise
        level; tags stay 0 and 1. None where there is no number, or the card does not know their mean.
        """
        if not card.vector_mean or set(card.vector) <= set(card.tags):
            return None
        rows = list(zip(card.vector, card.vector_mean, card.vector_std, strict=True))
        return cls(
            shift=tuple(0.0 if name in card.tags else mean for name, mean, _ in rows),
            scale=tuple(1.0 if name in card.tags or not std else std for name, _, std in rows),
        )

    @property
    def discrete(self) -> bool:
        """Whether what is diffused are levels, such as those of 8-bit pictures: then predictions are kept within them, and x0 has a
        probability.
        """
        return self.bins is not None

    def _fit(self, values: tuple[float, ...], x: torch.Tensor) -> torch.Tensor:
        row = torch.tensor(values, dtype=torch.float64).to(x.dtype if x.is_floating_point() else torch.float32).to(x.device)
        return row.reshape(-1, *[1] * (x.ndim - 2))

    def encode(self, raw: torch.Tensor | np.ndarray) -> torch.Tensor:
        """(B, C, ...) in the data's units -> the space diffused in; float32, or float64 for float64 data."""
        raw = torch.as_tensor(raw)
        x = raw if raw.dtype == torch.float64 else raw.to(torch.float32)
        return (x - self._fit(self.shift, x)) / self._fit(self.scale, x)

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, ...) in the space diffused in -> the data's units and dtype."""
        raw = x * self._fit(self.scale, x) + self._fit(self.shift, x)
        dtype: torch.dtype = getattr(torch, self.dtype)
        if not dtype.is_floating_point:
            raw = raw.round()
        return (raw if self.bins is None else raw.clamp(*self.bins)).to(dtype)

    def bounds(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Lowest and highest encoded value of each channel, to broadcast over x: of the bins where the data have them, else of the data;
        None when unknown.
        """
        if self.bins is not None:
            lowest, highest = (tuple(end for _ in self.shift) for end in self.bins)
        elif self.low is not None and self.high is not None:
            lowest, highest = self.low, self.high
        else:
            return None
        shift, scale = self._fit(self.shift, x), self._fit(self.scale, x)
        return (self._fit(lowest, x) - shift) / scale, (self._fit(highest, x) - shift) / scale

    def bin_width(self, x: torch.Tensor) -> torch.Tensor | None:
        """Width of one level in the space diffused in, per channel (2/255 for 8-bit pictures, 2/16 for the digits); None for continuous
        data.
        """
        return None if self.bins is None else 1.0 / self._fit(self.scale, x)

    def unit(self, x: torch.Tensor) -> torch.Tensor:
        """What 1 in the space diffused in is in the data's own units, per channel, to broadcast over x: |d raw / d x|."""
        return self._fit(self.scale, x).abs()
