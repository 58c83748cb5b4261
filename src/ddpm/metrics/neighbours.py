"""What nearest neighbours tell: whether samples are like data, whether all data are covered, and whether samples are copies.

Reference: Kynkaanniemi et al. 2019, arXiv 1904.06991, equations 1 and 2 (precision, recall); Naeem et al. 2020, arXiv 2002.09797, equations
5 and 6 (density, coverage).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.errors import DataError
from ddpm.metrics.moments import checked, same_length

ROWS = 4096  # of the table of distances at once
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
    """Euclidean distance of every pair (N, D), (M, D) -> (N, M), by one matrix product: to 1e-7 of the vectors' length in float64."""
    return torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist")


def radii(x: Tensor, k: int) -> Tensor:
    """Distance of every vector to its k-th nearest other one, (N,)."""
    return torch.cat([distances(part, x).topk(k + 1, dim=1, largest=False).values[:, k] for part in x.split(ROWS)])


def nearest(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of every x (N, D) to the nearest y, (N,), and which that is, (N,)."""
    found = [distances(part, y).min(dim=1) for part in x.split(ROWS)]
    return torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])


def manifold(samples: Tensor, data: Tensor, k: int = 5) -> Manifold:
    """Precision, recall, density and coverage of vectors (N, D) against data (M, D), with k neighbours (Kynkaanniemi et al.: 3).

    Balls are closed. All four depend on N and M: compare at equal numbers. DataError where there are not more than k of either.
    """
    samples, data = checked(samples), checked(data)
    same_length(samples, data)
    if min(len(samples), len(data)) <= k:
        raise DataError(f"samples: got {len(samples)} and {len(data)} data; {k} neighbours need at least {k + 1} of each")
    of_data, of_samples = radii(data, k), radii(samples, k)
    inside, recalled, covered = [], torch.zeros(len(data), dtype=torch.bool), torch.zeros(len(data), dtype=torch.bool)
    for part, own in zip(samples.split(ROWS), of_samples.split(ROWS), strict=True):
        table = distances(part, data)
        balls = table <= of_data
        inside.append(balls.sum(1))
        covered |= balls.any(0)
        recalled |= (table <= own[:, None]).any(0)
    counts = torch.cat(inside)
    shares = (counts > 0).double().mean(), recalled.double().mean(), counts.double().mean() / k, covered.double().mean()
    return Manifold(*map(float, shares))
