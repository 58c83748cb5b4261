"""The Frechet distance between two sets of vectors, taken as Gaussian, with an interval that holds what it promises.

With N samples the plain estimate lies above the truth by about a / N, which for 2048 features and 10,000 samples is more than the
difference between good models. Vectors go into `GROUPS` groups in turn; leaving one group out at a time says how large the bias is and how
far the estimate scatters. What half of the vectors would give says how much of the bias is not linear in 1/N: for many features of like
variance and few samples that is more than the scatter.

Reference: Dowson, Landau 1982, Journal of Multivariate Analysis 12, equation 4; Heusel et al. 2017, arXiv 1706.08500, section 3 (FID);
Chong, Forsyth 2020, arXiv 1911.07023 (its bias is linear in 1/N); Quenouille 1956, Biometrika 43 (jackknife).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce

import torch
from scipy.special import stdtrit
from torch import Tensor

from ddpm.errors import DataError
from ddpm.metrics.estimate import LEVEL, Estimate
from ddpm.metrics.moments import Moments, checked, same_length

GROUPS = 20
FEW = 3  # samples a dimension, below which half of them hardly have a covariance


def root(cov: Tensor) -> Tensor:
    """The symmetric square root of a covariance (D, D)."""
    values, vectors = torch.linalg.eigh(cov)
    return (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T


def frechet(first: Moments, second: Moments) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2), a squared distance, >= 0 up to rounding."""
    same_length(first.mean, second.mean)
    return _distance(root(first.cov), first, second)


def _distance(first_root: Tensor, first: Moments, second: Moments) -> float:
    inner = torch.linalg.eigvalsh(first_root @ second.cov @ first_root).clamp(min=0.0).sqrt().sum()
    return float((first.mean - second.mean).square().sum() + first.cov.trace() + second.cov.trace() - 2.0 * inner)


class Frechet:
    """Feature vectors of samples, seen in pieces; `result` compares them with a reference.

    The vector of sample i belongs to group i mod `groups`, whatever pieces it came in, so that ranks and shards can be merged.
    """

    def __init__(self, dim: int, groups: int = GROUPS) -> None:
        self.groups = [Moments.none(dim) for _ in range(groups)]

    def update(self, features: Tensor, first: int = 0) -> None:
        """Take the vectors (N, D) of samples first, first + 1, ...; DataError for what is not finite or of another size."""
        features = checked(features)
        for number in range(min(len(self.groups), len(features))):
            place = (first + number) % len(self.groups)
            self.groups[place] += Moments.of(features[number :: len(self.groups)])

    def merge(self, other: Frechet) -> None:
        """Take what another one has seen: of other samples, with as many groups."""
        if len(other.groups) != len(self.groups):
            raise DataError(f"groups: got {len(other.groups)} to merge into {len(self.groups)}; use the same number")
        self.groups = [mine + theirs for mine, theirs in zip(self.groups, other.groups, strict=True)]

    @property
    def moments(self) -> Moments:
        """Of all vectors seen."""
        return total(self.groups)

    def result(self, reference: Moments | Frechet) -> Estimate:
        """The distance to a reference: to `Moments` that count as exact, as in FID; or to samples, whose own scatter then enters too.

        With fewer than `FEW` samples a dimension there is no telling the bias: the value is the uncorrected one, the interval NaN.

        DataError for fewer than two groups with samples, or fewer samples than two.
        """
        fixed = reference if isinstance(reference, Moments) else reference.moments
        mine = self._filled()
        whole = total(mine)
        fixed_root = root(fixed.cov)
        raw = _distance(fixed_root, fixed, whole)
        fewest = min(whole.count, reference.moments.count) if isinstance(reference, Frechet) else whole.count
        if fewest < FEW * len(whole.mean):
            return Estimate(raw, math.nan, math.nan, raw, whole.count)
        bias, variance, bent = _jackknife(raw, mine, lambda moments: _distance(fixed_root, fixed, moments))
        degrees = len(mine) - 1
        if isinstance(reference, Frechet):
            theirs = [group for group in reference.groups if group.count]
            own_root = root(whole.cov)
            more = _jackknife(raw, theirs, lambda moments: _distance(own_root, whole, moments))
            bias, variance, bent = bias + more[0], variance + more[1], bent + more[2]
            degrees += len(theirs) - 1
        reach = float(stdtrit(degrees, 0.5 + LEVEL / 2)) * math.sqrt(variance)
        value, reach = raw - bias, max(reach, bent)
        return Estimate(value, value - reach, value + reach, raw, whole.count)

    def uncorrected(self, reference: Moments) -> Estimate:
        """The plain distance, and the interval for what so many samples give on average: to be compared with one of as many only.

        DataError as of `result`.
        """
        mine, fixed_root = self._filled(), root(reference.cov)
        whole = total(mine)
        raw = _distance(fixed_root, reference, whole)
        variance = _jackknife(raw, mine, lambda moments: _distance(fixed_root, reference, moments))[1]
        reach = float(stdtrit(len(mine) - 1, 0.5 + LEVEL / 2)) * math.sqrt(variance)
        return Estimate(raw, max(0.0, raw - reach), raw + reach, raw, whole.count)

    def _filled(self) -> list[Moments]:
        """The groups that have seen samples; DataError where they are too few."""
        mine = [group for group in self.groups if group.count]
        count = sum(group.count for group in mine)
        if len(mine) < 2 or count < 2 * len(mine):
            raise DataError(f"samples: got {count}; a Frechet distance with an interval needs at least {2 * len(self.groups)}")
        return mine


def total(groups: Sequence[Moments]) -> Moments:
    """Of all groups together."""
    return reduce(Moments.__add__, groups)


def left_out(groups: Sequence[Moments]) -> list[Moments]:
    """Of all groups but one, for each one."""
    return [total([*groups[:k], *groups[k + 1 :]]) for k in range(len(groups))]


def _jackknife(whole: float, groups: Sequence[Moments], distance: Callable[[Moments], float]) -> tuple[float, float, float]:
    """(bias, variance, |b|/N^2) of an estimate whose bias is a/N + b/N^2: a from those without one group each, b from those of halves.

    (g-1) (mean - whole) = a/N + b/N^2 (2g-1)/(g-1), and halves - whole = a/N + 3 b/N^2.
    """
    parts, count = [distance(left) for left in left_out(groups)], len(groups)
    mean = sum(parts) / count
    bias, variance = (count - 1) * (mean - whole), (count - 1) / count * sum((part - mean) ** 2 for part in parts)
    halves = sum(distance(total(groups[k::2])) for k in (0, 1)) / 2
    bent = (halves - whole - bias) * (count - 1) / (count - 2) if count > 2 else 0.0  # b/N^2
    return bias - bent * count / (count - 1), variance, abs(bent)
