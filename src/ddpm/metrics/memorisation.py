"""Does a model copy its training data? Samples that are nearer to a training sample than to any unseen one, by more than chance allows.

How near a sample lies to training data says little by itself: samples of too little variety are near to everything. So the yardstick is its
distance to the nearest training sample over that to the nearest held-out one, which the model has not seen. Held-out data themselves, each
compared with the others, have the same law when nothing is copied; a sample whose ratio is below all but `RATE` of theirs is called a copy.

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
DOUBT = 1e-6  # chance of calling a model that copies nothing one that does
SURE = 5.0  # standard deviations of the rank statistic that are told
TINY = torch.finfo(torch.float64).tiny


class Memorisation(NamedTuple):
    """copies: share of samples called copies; chance: the share expected where nothing is copied, about RATE. ratio: median of the samples'
    relative distances over that of held-out vectors; far below 1 is memory. z: the rank statistic of the two, in standard deviations;
    negative: samples are nearer to the training data. found: whether the model copies. pairs: sample and training vector of the nearest
    pairs, nearest first.
    """

    copies: float
    chance: float
    ratio: float
    z: float
    found: bool
    pairs: list[tuple[int, int]]


def memorisation(samples: Tensor, train: Tensor, held_out: Tensor, shown: int = 16) -> Memorisation:
    """Of vectors (N, D) against the training vectors (M, D) and held-out ones (K, D).

    Of N samples as many as lie below the k-th smallest of K held-out values follow a beta-binomial law (N, k, K + 1 - k) where all are of
    one law. DataError for fewer held-out vectors than 50.
    """
    from scipy.stats import betabinom

    samples, train, held_out = checked(samples), checked(train), checked(held_out)
    if len(held_out) < LEAST:
        raise DataError(f"held out: got {len(held_out)} samples; to tell copies from chance at least {LEAST} are needed: --holdout")
    near, which = nearest(samples, train)
    beside = torch.cat([_others(held_out, part) for part in torch.arange(len(held_out)).split(1024)])
    mine = near / nearest(samples, held_out)[0].clamp(min=TINY)
    usual = nearest(held_out, train)[0] / beside.clamp(min=TINY)
    place, count = max(1, round(RATE * (len(usual) + 1))), len(near)
    called = int((mine < usual.sort().values[place - 1]).sum())
    ratio = float(mine.median() / usual.median().clamp(min=TINY))
    z = _rank(mine, usual)
    order = near.argsort()[:shown]
    surely = float(betabinom.sf(called - 1, count, place, len(usual) + 1 - place)) < DOUBT
    found = surely or (z < -SURE and ratio < 0.5)
    chance = place / (len(usual) + 1)
    return Memorisation(called / count, chance, ratio, z, found, [(int(i), int(which[i])) for i in order])


def _others(vectors: Tensor, rows: Tensor) -> Tensor:
    """The distance of each of these rows to the nearest of the other vectors."""
    far = torch.cdist(vectors[rows].double(), vectors.double())
    far[torch.arange(len(rows)), rows] = torch.inf
    return far.min(1).values


def _rank(a: Tensor, b: Tensor) -> float:
    """Mann and Whitney's statistic, in standard deviations from its mean where both are of one law: negative where a is smaller."""
    ordered = b.sort().values
    u = (torch.searchsorted(ordered, a) + torch.searchsorted(ordered, a, right=True)).double().sum() / 2
    n, m = len(a), len(b)
    return float((u - n * m / 2) / (n * m * (n + m + 1) / 12) ** 0.5)
