"""What turns samples into vectors that a distance is taken between: the family's common form, and the plainest member.

Two figures compare only where data, transform and extractor are the same; `identity` says which extractor it was.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm.denoiser.card import Card
from ddpm.networks.encoders.pictures import levels_of

BATCH = 256


class Extractor(ABC):
    """Samples in the data's own units, (N, *shape), to feature vectors (N, dim)."""

    name: str
    dim: int
    identity: str  # of network, weights and transform: a hash

    @abstractmethod
    def embed(self, samples: Tensor) -> Tensor:
        """The vectors (N, dim) of a batch, float32 on the host."""

    def features(self, samples: Tensor) -> Tensor:
        """The vectors of any number of samples, a batch at a time."""
        return torch.cat([self.embed(part) for part in samples.split(BATCH)])

    def logits(self, features: Tensor) -> Tensor | None:
        """Class scores (N, classes) of features (N, dim), where the extractor is a classifier: for the Inception score."""
        return None


class Raw(Extractor):
    """The entries themselves, or where there are more than `most` of them, means over blocks of neighbours."""

    name = "raw"

    def __init__(self, card: Card, most: int = 2048) -> None:
        self.pool, self.shape = 1, tuple(card.shape)
        channels, axes = card.shape[0], len(card.shape) - 1
        while axes and channels * math.prod(self._sizes) > most and max(self._sizes) > 1:
            self.pool *= 2
        self.dim = channels * math.prod(self._sizes)
        self.identity = f"raw-{self.pool}"

    @property
    def _sizes(self) -> list[int]:
        return [-(-size // self.pool) for size in self.shape[1:]]

    def embed(self, samples: Tensor) -> Tensor:
        """Flattened, float32."""
        x = samples.to(torch.float32)
        if self.pool > 1:
            pools: tuple[Any, ...] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
            x = pools[x.ndim - 3](x, self._sizes[0] if x.ndim == 3 else self._sizes)
        return x.flatten(1).cpu()


def digest(*parts: str | bytes | Tensor) -> str:
    """Sixteen hexadecimal digits of SHA-256 over names and weights."""
    made = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if part.ndim else str(part.item()).encode()
        made.update(part.encode() if isinstance(part, str) else part)
    return made.hexdigest()[:16]


def as_levels(samples: Tensor, card: Card) -> Tensor:
    """Pictures (N, C, H, W) as three channels of 8-bit levels, which published extractors are defined on.

    Levels of another range are spread over 0..255; continuous pictures from the lowest to the highest value of the data, and rounded.
    Grey ones get three equal channels. ConfigError for what is no picture.
    """
    return levels_of(samples, *(card.bins or (min(card.low), max(card.high))))
