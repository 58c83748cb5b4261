"""How good ensembles are: each a few fields drawn for one that came true. Sums over cases, so that shards add up to the whole.

Reference: CRPS: Ferro, 2014, Q. J. R. Meteorol. Soc. 140 (fair); Zamo, Naveau, 2018, Math. Geosci. 50, section 2.2; spread and skill:
Fortin et al., 2014, J. Hydrometeorol. 15, eq. 15; ranks: Hamill, 2001, Mon. Weather Rev. 129.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.errors import DataError


class Scores(NamedTuple):
    """In the data's units: crps, mean absolute and root mean square error of the ensemble's mean, spread (root of the mean variance);
    ratio: sqrt((M + 1)/M) spread / rmse, 1 where members and truth are alike; ranks (M + 1,): how often the truth has each rank among the
    members, as shares; members: M. Of one member there is no spread: crps is then the mean absolute error, ratio 0.
    """

    crps: float
    mae: float
    rmse: float
    spread: float
    ratio: float
    ranks: tuple[float, ...]
    members: int


class Ensemble(NamedTuple):
    """Weighted sums over the entries of ensembles of M members seen so far."""

    weight: float
    crps: float
    absolute: float
    square: float
    variance: float
    ranks: Tensor  # (M + 1,) float64

    @classmethod
    def none(cls, members: int) -> Ensemble:
        """Of ensembles of so many members, none seen yet."""
        return cls(0.0, 0.0, 0.0, 0.0, 0.0, torch.zeros(members + 1, dtype=torch.float64))

    @classmethod
    def of(cls, members: Tensor, truth: Tensor, weights: Tensor | None = None) -> Ensemble:
        """members (B, M, *D), truth (B, *D); weights, to broadcast against truth: 0 leaves an entry out, which may then be NaN.

        The CRPS of an entry is mean |X - y| - sum_ij |X_i - X_j| / (2 M (M - 1)), whose expectation does not depend on M. Where the truth
        equals some members it counts for all ranks it could have in equal parts: what breaking ties at random gives on average.
        Raises: DataError for shapes that do not belong together, and numbers that are not finite where they count.
        """
        if members.ndim < 2 or members.shape[:1] + members.shape[2:] != truth.shape:
            raise DataError(f"members: got shape {tuple(members.shape)} for truths {tuple(truth.shape)}; it takes (B, M, *D) and (B, *D)")
        count = members.shape[1]
        w = torch.ones(truth.shape, dtype=torch.float64) if weights is None else weights.double().expand(truth.shape)
        counts = w > 0
        x, y, w = members.double().movedim(1, -1)[counts], truth.double()[counts], w[counts]  # (n, M), (n,), (n,)
        if not bool(x.isfinite().all()) or not bool(y.isfinite().all()):
            raise DataError("members: not all finite where they count; give such entries the weight 0")
        x = x.sort(dim=1).values
        order = 2.0 * torch.arange(1, count + 1, dtype=torch.float64) - count - 1.0
        apart = 2.0 * (x @ order) / (count * (count - 1)) if count > 1 else torch.zeros_like(y)
        error, mean = (x - y[:, None]).abs().mean(1), x.mean(1)
        variance = x.var(dim=1) if count > 1 else torch.zeros_like(y)
        sums = [float((w * part).sum()) for part in (error - 0.5 * apart, (mean - y).abs(), (mean - y).square(), variance)]
        return cls(float(w.sum()), sums[0], sums[1], sums[2], sums[3], _ranks(x, y, w))

    def __add__(self, other: object) -> Ensemble:
        """Of what either has seen; DataError for ensembles of different sizes."""
        if not isinstance(other, Ensemble):
            return NotImplemented
        if len(self.ranks) != len(other.ranks):
            raise DataError(f"members: {len(self.ranks) - 1} and {len(other.ranks) - 1}; only ensembles of one size add up")
        sums = [mine + its for mine, its in zip(self[:5], other[:5], strict=True)]
        return Ensemble(sums[0], sums[1], sums[2], sums[3], sums[4], self.ranks + other.ranks)

    def result(self) -> Scores:
        """The scores of all that was seen; DataError where that is nothing."""
        if not self.weight:
            raise DataError("ensemble: nothing was scored; no entry had a weight")
        members = len(self.ranks) - 1
        crps, mae, square, variance = (part / self.weight for part in self[1:5])
        rmse, spread = math.sqrt(square), math.sqrt(variance)
        ratio = math.sqrt((members + 1) / members) * spread / rmse if rmse else (math.inf if spread else 1.0)
        return Scores(crps, mae, rmse, spread, ratio, tuple((self.ranks / self.weight).tolist()), members)


def _ranks(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """Weight of each rank (M + 1,): of y (n,) among the sorted x (n, M)."""
    low = torch.searchsorted(x, y[:, None]).squeeze(1)
    high = torch.searchsorted(x, y[:, None], right=True).squeeze(1)
    share, edges = w / (high - low + 1), torch.zeros(x.shape[1] + 2, dtype=torch.float64)
    edges.index_add_(0, low, share).index_add_(0, high + 1, -share)
    return edges.cumsum(0)[:-1]


def latitude_weights(latitudes: Tensor) -> Tensor:
    """The share of the sphere that each row of a grid of even latitudes (H,) in degrees stands for, as (H, 1): cos(latitude), mean 1."""
    weights = torch.cos(torch.deg2rad(latitudes.double())).clamp(min=0.0)
    return (weights / weights.mean())[:, None]
