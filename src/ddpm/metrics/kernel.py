"""The kernel distance (KID): a squared maximum mean discrepancy, without bias at any number of samples.

Reference: Binkowski et al. 2018, arXiv 1801.01401, section 4 and equation 4; Gretton et al. 2012, JMLR 13, equation 3 (the estimate).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ddpm.errors import DataError
from ddpm.metrics.estimate import LEVEL, Estimate
from ddpm.metrics.moments import checked, same_length

ROWS = 2048  # of the kernel matrix at once
Kernel = Callable[[Tensor, Tensor], Tensor]  # of every pair (N, D), (M, D) -> (N, M)


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x . y / D + 1)^3 of every pair (N, D), (M, D) -> (N, M)."""
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def kernel_distance(first: Tensor, second: Tensor) -> Estimate:
    """MMD^2 with `kernel` between vectors (N, D) and (M, D): see `discrepancy`. DataError for fewer than two vectors on a side."""
    return discrepancy(kernel, first, second, "a kernel distance")


def discrepancy(kernel: Kernel, first: Tensor, second: Tensor, called: str) -> Estimate:
    """E k(x, x') + E k(y, y') - 2 E k(x, y) over pairs of different samples of (N, D) and (M, D), with the interval of a jackknife that
    leaves out one sample at a time.

    Without bias it may come out below 0, where the two are alike. DataError for fewer than two vectors on a side.
    """
    from scipy.special import ndtri

    x, y = checked(first), checked(second)
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise DataError(f"samples: got {n} and {m}; {called} needs at least 2 of each")
    same_length(x, y)
    xx, yy = _row_sums(kernel, x), _row_sums(kernel, y)
    xy, yx = torch.empty(0, dtype=x.dtype), torch.zeros(m, dtype=x.dtype)
    for part in x.split(ROWS):
        table = kernel(part, y)
        xy, yx = torch.cat([xy, table.sum(1)]), yx + table.sum(0)
    value = xx.sum() / (n * (n - 1)) + yy.sum() / (m * (m - 1)) - 2.0 * xy.sum() / (n * m)
    without_x = (xx.sum() - 2 * xx) / max(1, (n - 1) * (n - 2)) + yy.sum() / (m * (m - 1)) - 2.0 * (xy.sum() - xy) / ((n - 1) * m)
    without_y = xx.sum() / (n * (n - 1)) + (yy.sum() - 2 * yy) / max(1, (m - 1) * (m - 2)) - 2.0 * (xy.sum() - yx) / (n * (m - 1))
    variance = sum(float((len(part) - 1) / len(part) * (part - part.mean()).square().sum()) for part in (without_x, without_y))
    reach = float(ndtri(0.5 + LEVEL / 2)) * math.sqrt(variance)
    return Estimate(float(value), float(value) - reach, float(value) + reach, float(value), n)


def _row_sums(kernel: Kernel, x: Tensor) -> Tensor:
    """Sum of each row of the kernel matrix of x with itself, its diagonal left out."""
    sums: list[Tensor] = []
    for first in range(0, len(x), ROWS):
        table = kernel(x[first : first + ROWS], x)
        sums.append(table.sum(1) - table.diagonal(first))
    return torch.cat(sums)
