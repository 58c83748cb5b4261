"""Does a model copy its training data? Samples that are nearer to a training sample than to any unseen one, by more than chance allows.

How near a sample lies to training data says little by itself: samples of too little variety are near to everything. So the yardstick is its
distance to the nearest training sample over that to the nearest held-out one, which the model has not seen. How far that ratio scatters
depends on how many dimensions the data fill about the sample, and to the power of that number it has the same law everywhere; without it a
model that draws simple samples more often than data hold them would be accused. Held-out data themselves, each compared with the others,
have that law when nothing is copied; a sample whose ratio is below all but `RATE` of theirs is called a copy. Samples that equal a
training sample are judged by themselves: data may hold the same one often, a blank page, a small whole number. They are copies where they
come more often than real samples equal one another.

Reference: the test of Meehan, Chaudhuri, Dasgupta 2020, arXiv 2004.05675, section 3 (three samples, ranks, compared where they lie);
Carlini et al. 2023, arXiv 2301.13188, section 5 (distance relative to other neighbours); Levina, Bickel 2004, NIPS 17, equation 8 (the
dimension).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.errors import DataError
from ddpm.metrics.moments import checked, same_length, vectors
from ddpm.metrics.neighbours import nearest, nearest_distances

RATE = 0.01
LEAST = 50  # held-out vectors
DOUBT = 1e-6  # chance of calling a model that copies nothing one that does
SURE = 5.0  # standard deviations of the rank statistic that are told
SAME = 1e-5  # of the usual distance to the nearest training vector: two vectors this near are one
TINY = torch.finfo(torch.float64).tiny


class Memorisation(NamedTuple):
    """copies: share of samples called copies; chance: the share expected where nothing is copied, about RATE. ratio: median of the samples'
    relative distances (to training over to held-out data) over that of held-out vectors; far below 1 is memory. z: the rank statistic of
    the two, in standard deviations; negative: samples are nearer to the training data. found: whether the model copies. pairs: sample and
    training vector of the nearest pairs, nearest first. leaks: held-out vectors that are training vectors, which were left out. same: share
    of samples that are training vectors; left out too, unless there are more of them than the data explain.
    """

    copies: float
    chance: float
    ratio: float
    z: float
    found: bool
    pairs: list[tuple[int, int]]
    leaks: int = 0
    same: float = 0.0


def memorisation(samples: Tensor, train: Tensor, held_out: Tensor, shown: int = 16) -> Memorisation:
    """Of vectors (N, D) against the training vectors (M, D) and held-out ones (K, D).

    Of N samples as many as lie below the k-th smallest of K held-out values follow a beta-binomial law (N, k, K + 1 - k) where all are of
    one law. DataError for fewer held-out vectors than 50 that are no training vectors.
    """
    from scipy.stats import betabinom

    samples, train, held_out = checked(samples), vectors(train), checked(held_out)
    same_length(samples, train)
    same_length(samples, held_out)
    seen = nearest(held_out, train)[0]
    new = seen > SAME * seen.median()
    leaks = len(new) - int(new.sum())
    held_out, seen = held_out[new], seen[new]
    if len(held_out) < LEAST:
        known = f" that are not among the training samples ({leaks} are)" if leaks else ""
        raise DataError(f"held out: got {len(held_out)} samples{known}; to tell copies from chance at least {LEAST} are needed: --holdout")
    near, which = nearest(samples, train)
    again = near <= SAME * seen.median()
    copied = _too_many(int(again.sum()), len(samples), train, SAME * float(seen.median()), leaks, len(new))
    kept = slice(None) if copied or bool(again.all()) else ~again
    beside = nearest_distances(held_out, held_out, 2)[:, 1]  # the nearest is itself
    mine, usual = (_log(near[kept]) - _log(nearest(samples[kept], held_out)[0])), (_log(seen) - _log(beside))
    ratio = math.exp(float(mine.median() - usual.median()))
    mine, usual = mine * dimension(samples[kept], train), usual * dimension(held_out, train)
    place, count = max(1, round(RATE * (len(usual) + 1))), len(mine)
    called = int((mine < usual.sort().values[place - 1]).sum())
    z = _rank(mine, usual)
    order = near.argsort()[:shown]
    surely = float(betabinom.sf(called - 1, count, place, len(usual) + 1 - place)) < DOUBT
    found = copied or surely or (z < -SURE and ratio < 0.5)
    chance, pairs = place / (len(usual) + 1), [(int(i), int(which[i])) for i in order]
    return Memorisation(called / len(near), chance, ratio, z, found, pairs, leaks, float(again.double().mean()))


def _too_many(count: int, samples: int, train: Tensor, reach: float, leaks: int, held_out: int) -> bool:
    """Whether so many of the samples being training vectors is more than chance allows, where real ones are each other's equals as often as
    `leaks` of those held out and, of as many training vectors as there are samples, those within reach of another are.
    """
    from scipy.stats import hypergeom

    if not count:
        return False
    rows = torch.arange(min(samples, len(train))) * len(train) // min(samples, len(train))
    twins = int((nearest_distances(train[rows], train, 2)[:, 1] <= reach).sum())
    real = len(rows) + held_out
    return float(hypergeom.sf(count - 1, samples + real, count + twins + leaks, samples)) < DOUBT


def dimension(x: Tensor, data: Tensor, k: int = 10) -> Tensor:
    """How many dimensions the data (M, D) fill about each x (N, D): 1 / mean_j log(d_k / d_j) of the distances to the second to the last
    but one of k + 1 neighbours; the first is left out, which of a copy is no measure. At least 1, at most 1000, where neighbours coincide.
    """
    far = _log(nearest_distances(x, data, min(k, len(data) - 1) + 1)[:, 1:])
    return 1.0 / (far[:, -1:] - far[:, :-1]).mean(1).clamp(1e-3, 1.0)


def _log(distance: Tensor) -> Tensor:
    return distance.double().clamp(min=TINY).log()


def _rank(a: Tensor, b: Tensor) -> float:
    """Mann and Whitney's statistic, in standard deviations from its mean where both are of one law: negative where a is smaller."""
    ordered = b.sort().values
    u = (torch.searchsorted(ordered, a) + torch.searchsorted(ordered, a, right=True)).double().sum() / 2
    n, m = len(a), len(b)
    return float((u - n * m / 2) / (n * m * (n + m + 1) / 12) ** 0.5)
