"""The Inception score: whether a classifier is sure of each sample, and all its classes occur.

Reference: Salimans et al. 2016, arXiv 1606.03498, section 4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddpm.errors import DataError
from ddpm.metrics.estimate import LEVEL, Estimate
from ddpm.metrics.moments import checked

SPLITS = 10


def inception_score(logits: Tensor, splits: int = SPLITS) -> Estimate:
    """exp of the mean KL(p(y | x) || p(y)) for logits (N, classes); between 1 and the number of classes.

    raw: the mean over `splits` parts in order, as published. value, low, high: of all at once, whose bias the parts, each of them smaller,
    make larger; interval from the parts left out one at a time. DataError for fewer samples than two a part.
    """
    from scipy.special import stdtrit

    logits = checked(logits)
    if len(logits) < 2 * splits:
        raise DataError(f"samples: got {len(logits)}; an Inception score of {splits} parts needs at least {2 * splits}")
    log_p = torch.log_softmax(logits, dim=1)
    parts = log_p[: len(log_p) // splits * splits].chunk(splits)  # the rest, fewer than a part has, is left out, as published
    whole = _score(torch.cat(parts))
    left = [_score(torch.cat([*parts[:k], *parts[k + 1 :]])) for k in range(len(parts))]
    mean = sum(left) / len(left)
    value = whole - (len(left) - 1) * (mean - whole)
    error = math.sqrt((len(left) - 1) / len(left) * sum((one - mean) ** 2 for one in left))
    reach = float(stdtrit(len(left) - 1, 0.5 + LEVEL / 2)) * error
    value, low, high = (min(max(one, 1.0), float(logits.shape[1])) for one in (value, value - reach, value + reach))
    return Estimate(value, low, high, sum(map(_score, parts)) / len(parts), len(logits))


def _score(log_p: Tensor) -> float:
    marginal = log_p.logsumexp(0) - math.log(len(log_p))
    return float((log_p.exp() * (log_p - marginal)).sum(1).mean().exp())
