"""What a metric returns: a number with the interval in which the truth lies with 95 % confidence."""

from __future__ import annotations

import math
from typing import NamedTuple

LEVEL = 0.95


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
