"""Count, mean and covariance of vectors seen in pieces, and their sum over shards."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.errors import DataError

ROWS = 8192  # vectors that are brought to float64 at once


def vectors(features: Tensor) -> Tensor:
    """Feature vectors (N, D), as they came; DataError for another shape or for numbers that are not finite."""
    if features.ndim != 2:
        raise DataError(f"features: got shape {tuple(features.shape)}, a metric takes vectors (N, D); flatten the samples first")
    bad = torch.cat([(~part.isfinite()).any(1) for part in features.split(ROWS)]).nonzero()
    if len(bad):
        many = f"{len(bad)} of {len(features)} samples are not finite, first number {int(bad[0])}"
        raise DataError(f"features: {many}; nothing was scored")
    return features


def checked(features: Tensor) -> Tensor:
    """Feature vectors (N, D) in float64; DataError as `vectors`."""
    return vectors(features).to(torch.float64)


def same_length(x: Tensor, y: Tensor) -> None:
    """DataError for vectors (N, D) and (M, E) of different lengths, or single ones (D,) and (E,)."""
    if x.shape[-1] != y.shape[-1]:
        raise DataError(f"features: got vectors of {x.shape[-1]} and of {y.shape[-1]} numbers; use one extractor for both")


class Moments(NamedTuple):
    """Of n vectors of D numbers: their count, mean (D,) and scatter sum (x - mean)(x - mean)^T (D, D), float64.

    Reference: Chan, Golub, LeVeque 1979, Stanford STAN-CS-79-773, equation 2.1 (the sum of two).
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def none(cls, dim: int) -> Moments:
        """Of no vectors yet."""
        return cls(0, torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64))

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Of vectors (N, D), N >= 1. DataError for other shapes and numbers that are not finite."""
        whole = cls.none(vectors(features).shape[1])
        for part in features.split(ROWS):
            part = part.to(torch.float64)
            mean = part.mean(0)
            apart = part - mean
            whole += cls(len(part), mean, apart.T @ apart)
        return whole

    @classmethod
    def given(cls, mean: Tensor, cov: Tensor, count: int = 0) -> Moments:
        """With this mean and covariance; count 0: they are exact, or nobody knows of how many."""
        return cls(count, mean.to(torch.float64), cov.to(torch.float64) * max(1, count - 1))

    def __add__(self, other: object) -> Moments:
        """Of both sets together. DataError where the vectors are of different lengths."""
        if not isinstance(other, Moments):
            return NotImplemented
        same_length(self.mean, other.mean)
        if not self.count or not other.count:
            empty, full = (self, other) if not self.count else (other, self)
            if empty.scatter.any() or empty.mean.any():
                raise DataError("moments: known without the number of vectors they are of; they add up with no others")
            return full
        count = self.count + other.count
        apart = other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(apart, apart) * (self.count * other.count / count)
        return Moments(count, self.mean + apart * (other.count / count), scatter)

    @property
    def cov(self) -> Tensor:
        """The unbiased covariance (D, D)."""
        return self.scatter / max(1, self.count - 1)
