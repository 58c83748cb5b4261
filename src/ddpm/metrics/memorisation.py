"""Does a model copy its training data? Samples that are nearer to a training sample than data of the same law come by chance.

The yardstick is how near held-out data, which the model has not seen, come to the training data: a sample nearer than all but `RATE` of
them is called a copy. As many as that come by chance.

Reference: the test of Meehan, Chaudhuri, Dasgupta 2020, arXiv 2004.05675, section 3 (three samples, ranks); Carlini et al. 2023,
arXiv 2301.13188, section 5 (distance relative to other neighbours).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.errors import DataError
from ddpm.metrics.moments import checked
from ddpm.metrics.neighbours import nearest

RATE = 0.01
LEAST = 50  # held-out vectors
SURE = 5.0  # standard deviations of the rank statistic that are told


class Memorisation(NamedTuple):
    """copies: share of samples called copies, RATE by chance. ratio: median distance to the nearest training vector over that of held-out
    vectors; far below 1 is memory. z: the rank statistic of samples against held-out vectors, in standard deviations; negative: samples
    are nearer to the training data. found: whether the model copies. pairs: sample and training vector of the nearest pairs, nearest first.
    """

    copies: float
    ratio: float
    z: float
    found: bool
    pairs: list[tuple[int, int]]


def memorisation(samples: Tensor, train: Tensor, held_out: Tensor, shown: int = 16) -> Memorisation:
    """Of vectors (N, D) against the training vectors (M, D) and held-out ones (K, D).

    DataError for fewer held-out vectors than 50.
    """
    samples, train, held_out = checked(samples), checked(train), checked(held_out)
    if len(held_out) < LEAST:
        raise DataError(f"held out: got {len(held_out)} samples; to tell copies from chance at least {LEAST} are needed: --holdout")
    near, which = nearest(samples, train)
    usual = nearest(held_out, train)[0]
    bound = usual.quantile(RATE)
    copies = float((near < bound).double().mean())
    ratio = float(near.median() / usual.median().clamp(min=torch.finfo(torch.float64).tiny))
    z = _rank(near, usual)
    order = near.argsort()[:shown]
    chance = RATE + SURE * (RATE * (1 - RATE) * (1 / len(near) + 1 / len(usual))) ** 0.5
    found = copies > chance or (z < -SURE and ratio < 0.5)
    return Memorisation(copies, ratio, z, found, [(int(i), int(which[i])) for i in order])


def _rank(a: Tensor, b: Tensor) -> float:
    """Mann and Whitney's statistic, in standard deviations from its mean where both are of one law: negative where a is smaller."""
    ordered = b.sort().values
    u = (torch.searchsorted(ordered, a) + torch.searchsorted(ordered, a, right=True)).double().sum() / 2
    n, m = len(a), len(b)
    return float((u - n * m / 2) / (n * m * (n + m + 1) / 12) ** 0.5)
