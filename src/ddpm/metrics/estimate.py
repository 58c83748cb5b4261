"""What a metric returns: a number with the interval in which the truth lies with 95 % confidence.

Reference: Politis, Romano 1994, Annals of Statistics 22 (subsampling: how a statistic scatters, from how it does on fewer samples).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from torch import Tensor

LEVEL = 0.95
BLOCKS, LEAST = 5, 100  # of which an interval is made; samples in each: smaller blocks see the edge of the data


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
    average. shares: those that are never above 1.

    The sets are dealt into blocks, sample i into block i mod 5; figures of the blocks scatter sqrt(5) times as widely as those of the
    whole, where these scatter as N^(-1/2). Such intervals held the average in 90 to 100 % of trials (laws/test_metrics.py). Fewer than
    500 samples: low and high are NaN.
    """
    from scipy.special import stdtrit

    whole = metric(first, second)
    if min(len(first), len(second)) < BLOCKS * LEAST:
        return {name: Estimate(value, math.nan, math.nan, value, len(first)) for name, value in whole.items()}
    parts = [metric(first[k::BLOCKS], second[k::BLOCKS]) for k in range(BLOCKS)]
    times = float(stdtrit(BLOCKS - 1, 0.5 + LEVEL / 2)) / math.sqrt(BLOCKS)
    found: dict[str, Estimate] = {}
    for name, value in whole.items():
        reach = times * statistics.stdev(part[name] for part in parts)
        most = 1.0 if name in shares else math.inf
        found[name] = Estimate(value, max(0.0, value - reach), min(most, value + reach), value, len(first))
    return found
