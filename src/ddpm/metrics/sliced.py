"""Distances for data without a feature network: along random directions, and by energies.

Reference: Bonneel et al. 2015, Journal of Mathematical Imaging and Vision 51, section 3 (sliced Wasserstein); Szekely, Rizzo 2013, Journal
of Statistical Planning and Inference 143, equation 6 (energy).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddpm.metrics.estimate import Estimate
from ddpm.metrics.kernel import discrepancy
from ddpm.metrics.moments import checked, same_length

DIRECTIONS = 512


def sliced_wasserstein(first: Tensor, second: Tensor, directions: int = DIRECTIONS, seed: int = 0) -> float:
    """(mean over directions of W2^2 between the projections)^1/2, of vectors (N, D) and (M, D).

    The directions are drawn from the seed, so figures of the same D compare. Of N samples each it is about N^(-1/2) above the truth.
    """
    x, y = checked(first), checked(second)
    same_length(x, y)
    generator = torch.Generator().manual_seed(seed)
    ways = torch.nn.functional.normalize(torch.randn(x.shape[1], directions, generator=generator, dtype=torch.float64), dim=0)
    total = 0.0
    for part in ways.split(64, dim=1):
        a, b = ((one @ part).sort(dim=0).values for one in (x, y))
        total += float(_quantile_gap(a, b).sum())
    return (total / directions) ** 0.5


def _quantile_gap(a: Tensor, b: Tensor) -> Tensor:
    """W2^2 of each column, of sorted values (N, K) and (M, K): the integral over quantile levels of (difference)^2, exactly."""
    if len(a) == len(b):
        return (a - b).square().mean(0)
    levels = torch.cat([torch.arange(1, len(one) + 1, dtype=torch.float64) / len(one) for one in (a, b)]).unique()
    width = torch.diff(levels, prepend=levels.new_zeros(1))
    middle = levels - width / 2
    at = [(middle * len(one)).long().clamp(max=len(one) - 1) for one in (a, b)]
    return ((a[at[0]] - b[at[1]]).square() * width[:, None]).sum(0)


def energy_distance(first: Tensor, second: Tensor) -> Estimate:
    """2 E|x - y| - E|x - x'| - E|y - y'| of vectors (N, D) and (M, D), over pairs of different samples: without bias, 0 for one law.

    DataError for fewer than two vectors on a side.
    """
    return discrepancy(lambda x, y: -torch.cdist(x, y), first, second, "an energy distance")
