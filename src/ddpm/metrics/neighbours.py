"""What nearest neighbours tell: whether samples are like data, whether all data are covered, and whether samples are copies.

Reference: Kynkaanniemi et al. 2019, arXiv 1904.06991, equations 1 and 2 (precision, recall); Naeem et al. 2020, arXiv 2002.09797, equations
5 and 6 (density, coverage).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.errors import DataError
from ddpm.metrics.moments import same_length, vectors

ROWS = 4096  # and columns of the table of distances at once
SHARES = ("precision", "recall", "coverage")  # of a `Manifold`, between 0 and 1


class Manifold(NamedTuple):
    """precision: share of samples within the data's manifold. recall: share of data within the samples'. density: how deep inside it the
    samples lie, 1 for samples of the data's distribution. coverage: share of data with a sample nearby.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distance of every pair (N, D), (M, D) -> (N, M), by one matrix product in float64: to 1e-7 of the vectors' length."""
    return torch.cdist(x.double(), y.double(), compute_mode="use_mm_for_euclid_dist")


def nearest_distances(x: Tensor, y: Tensor, k: int) -> Tensor:
    """Distances of every x (N, D) to its k nearest y, nearest first, (N, k); of the table of all pairs at most `ROWS`^2 at once."""
    found: list[Tensor] = []
    for part in x.split(ROWS):
        near = x.new_empty(len(part), 0, dtype=torch.float64)
        for other in y.split(ROWS):
            table = torch.cat([near, distances(part, other)], dim=1)
            near = table.topk(min(k, table.shape[1]), dim=1, largest=False).values
        found.append(near)
    return torch.cat(found)


def radii(x: Tensor, k: int) -> Tensor:
    """Distance of every vector to its k-th nearest other one, (N,)."""
    return nearest_distances(x, x, k + 1)[:, k]


def nearest(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of every x (N, D) to the nearest y, (N,), and which that is, (N,)."""
    least, which = x.new_full((len(x),), torch.inf, dtype=torch.float64), x.new_zeros(len(x), dtype=torch.int64)
    for first in range(0, len(x), ROWS):
        here = slice(first, first + ROWS)
        for start in range(0, len(y), ROWS):
            near, place = distances(x[here], y[start : start + ROWS]).min(dim=1)
            closer = near < least[here]
            least[here], which[here] = torch.where(closer, near, least[here]), torch.where(closer, start + place, which[here])
    return least, which


def manifold(samples: Tensor, data: Tensor, k: int = 5) -> Manifold:
    """Precision, recall, density and coverage of vectors (N, D) against data (M, D), with k neighbours (Kynkaanniemi et al.: 3).

    Balls are closed. All four depend on N and M: compare at equal numbers. DataError where there are not more than k of either.
    """
    samples, data = vectors(samples), vectors(data)
    same_length(samples, data)
    if min(len(samples), len(data)) <= k:
        raise DataError(f"samples: got {len(samples)} and {len(data)} data; {k} neighbours need at least {k + 1} of each")
    of_data, of_samples = radii(data, k), radii(samples, k)
    counts = torch.zeros(len(samples), dtype=torch.int64)
    recalled, covered = torch.zeros(len(data), dtype=torch.bool), torch.zeros(len(data), dtype=torch.bool)
    for first in range(0, len(samples), ROWS):
        here = slice(first, first + ROWS)
        for start in range(0, len(data), ROWS):
            there = slice(start, start + ROWS)
            table = distances(samples[here], data[there])
            balls = table <= of_data[there]
            counts[here] += balls.sum(1)
            covered[there] |= balls.any(0)
            recalled[there] |= (table <= of_samples[here, None]).any(0)
    shares = (counts > 0).double().mean(), recalled.double().mean(), counts.double().mean() / k, covered.double().mean()
    return Manifold(*map(float, shares))
