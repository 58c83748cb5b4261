"""What a metric returns: a number with the interval in which the truth lies with 95 % confidence.

Reference: Politis, Romano 1994, Annals of Statistics 22 (subsampling: how a statistic scatters, from how it does on fewer samples).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

LEVEL = 0.95
BLOCKS, LEAST = 5, 100  # of which an interval is made; samples in each: smaller blocks see the edge of the data
GROUPS, FEWEST = 10, 40  # left out one at a time where there are fewer samples; samples below which there is no interval


class Estimate(NamedTuple):
    """value: the estimate, corrected for the bias of few samples; low, high: its 95 % interval; raw: without correction, as published
    figures are; samples: how many it is of. Where there are too few to tell the bias, value is raw, and low and high are NaN.
    """

    value: float
    low: float
    high: float
    raw: float
    samples: int

    def __str__(self) -> str:
        return f"{self.value:.4g} (uncorrected)" if math.isnan(self.low) else f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def scattered(
    metric: Callable[[Tensor, Tensor], Mapping[str, float]], first: Tensor, second: Tensor, shares: Collection[str] = ()
) -> dict[str, Estimate]:
    """Figures, none below 0, of two sets of samples (N, ...), (M, ...), not corrected, with intervals for what sets of this size give on
    average. shares: those that are parts of N or M, whose intervals are no narrower than Wilson's.

    The sets are dealt into parts, sample i into part i mod B. From 500 samples on, five parts: their figures scatter sqrt(5) times as
    widely as those of the whole, where these scatter as N^(-1/2). Of fewer, ten, left out one at a time (a jackknife), which for what
    counts neighbours is wider than it need be. docs/log.md says how often such intervals held the average. Fewer than 40 samples: low and
    high are NaN.
    """
    from scipy.special import stdtrit

    whole, few = metric(first, second), min(len(first), len(second))
    if few < FEWEST:
        return {name: Estimate(value, math.nan, math.nan, value, len(first)) for name, value in whole.items()}
    if few >= BLOCKS * LEAST:
        parts = [metric(first[k::BLOCKS], second[k::BLOCKS]) for k in range(BLOCKS)]
        scale = 1.0 / math.sqrt(BLOCKS)
    else:
        left = [[one[torch.arange(len(one)) % GROUPS != k] for one in (first, second)] for k in range(GROUPS)]
        parts = [metric(*pair) for pair in left]
        scale = (GROUPS - 1) / math.sqrt(GROUPS)
    times = float(stdtrit(len(parts) - 1, 0.5 + LEVEL / 2)) * scale
    found: dict[str, Estimate] = {}
    for name, value in whole.items():
        reach = times * statistics.stdev(part[name] for part in parts)
        low, high = max(0.0, value - reach), value + reach
        if name in shares:
            least, most = wilson(value, few)
            low, high = min(low, least), min(1.0, max(high, most))
        found[name] = Estimate(value, low, high, value, len(first))
    return found


def wilson(share: float, count: int) -> tuple[float, float]:
    """The interval of a share among so many independent samples.

    Reference: Wilson 1927, Journal of the American Statistical Association 22.
    """
    from scipy.special import ndtri

    z = float(ndtri(0.5 + LEVEL / 2))
    centre, scale = (share + z**2 / (2 * count)), 1.0 + z**2 / count
    reach = z * math.sqrt(share * (1.0 - share) / count + z**2 / (4 * count**2))
    return (centre - reach) / scale, (centre + reach) / scale
