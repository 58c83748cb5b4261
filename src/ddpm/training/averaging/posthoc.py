"""Averages of the weights that nobody tracked: put together after training from those that were kept on the way.

The average with profile t^gamma after n steps weighs step i by what the profile (gamma+1) t^gamma / n^(gamma+1) has on [i-1, i]. A sum of
kept averages therefore has the sum of their profiles, and the coefficients that bring it nearest to the profile one wishes for give the
nearest average.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.training.averaging.ema import exponent

LIMIT = 0.1  # a profile further off than this share of its own norm is another profile
SHORTEST, LONGEST = 0.005, 0.27  # widths that a search looks at


class Profile(NamedTuple):
    """The weights of the steps in an average: its width, as a share of the run so far, after `end` steps that changed the weights."""

    end: int
    width: float


class Fit(NamedTuple):
    """The coefficient of each kept average (float64, their sum is 1), and how far off their profile is, as a share of its own norm."""

    coefficients: np.ndarray
    error: float


def inner(first: Profile, second: Profile) -> float:
    """The integral of the product of two profiles over all steps.

    (a+1)(b+1) / (a+b+1) (early/late)^g / late, where a, b are the exponents and g is that of the profile that ends later.

    Reference: Karras et al., 2024, arXiv:2312.02696, eq. 151.
    """
    return float(_products([first], [second])[0, 0])


def _products(rows: Sequence[Profile], columns: Sequence[Profile]) -> np.ndarray:
    """`inner` of every row with every column."""
    ends = np.array([profile.end for profile in rows], float)[:, None], np.array([profile.end for profile in columns], float)[None]
    a, b = np.array([exponent(row.width) for row in rows])[:, None], np.array([exponent(column.width) for column in columns])[None]
    early, late = np.minimum(*ends), np.maximum(*ends)
    return (a + 1.0) * (b + 1.0) / (a + b + 1.0) * (early / late) ** np.where(ends[0] < ends[1], b, a) / late


def fit(held: Sequence[Profile], wanted: Profile) -> Fit:
    """The combination of the profiles held (no two the same, none ending after it) that is nearest to the wanted one in the mean square.

    The sum is held at 1 as a condition of the least squares; the paper solves without it and divides by the sum afterwards, which is never
    nearer. Reference: Karras et al., 2024, arXiv:2312.02696, appendix C, algorithm 3.
    """
    coefficients, errors = _fits(held, [wanted])
    return Fit(coefficients[:, 0], float(errors[0]))


def _fits(held: Sequence[Profile], wanted: Sequence[Profile]) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (held, wanted) and errors (wanted,)."""
    count = len(held)
    gram, against = _products(held, held), _products(held, wanted)
    size = np.sqrt(gram.diagonal())[:, None]  # the system is solved for profiles of norm 1, or its numbers would differ as the steps do
    system, right = np.zeros((count + 1, count + 1)), np.vstack([against / size, np.full(len(wanted), size.min())])
    system[:count, :count] = gram / (size * size.T)
    system[count, :count] = system[:count, count] = size.min() / size[:, 0]
    # several lengths at many steps are nearly dependent: what would take coefficients of thousands of float32 weights is left out
    coefficients = np.linalg.lstsq(system, right, rcond=1e-10)[0][:count] / size
    norm = np.array([inner(one, one) for one in wanted])
    square = norm - 2.0 * (coefficients * against).sum(0) + (coefficients * (gram @ coefficients)).sum(0)
    return coefficients, np.sqrt(np.maximum(square / norm, 1e-16))  # below 1e-8 the difference is rounding


def within_reach(held: Sequence[Profile], end: int) -> tuple[float, float] | None:
    """The shortest and longest width at `end`, of three decimals, that `fit` comes within `LIMIT` of; None where there is none."""
    widths = np.unique(np.geomspace(SHORTEST, LONGEST, 60).round(3))
    errors = _fits(held, [Profile(end, float(width)) for width in widths])[1]
    good = widths[errors <= LIMIT]
    return (float(good[0]), float(good[-1])) if len(good) else None


def combine(held: Sequence[Callable[[], Mapping[str, Tensor]]], coefficients: np.ndarray) -> dict[str, Tensor]:
    """The sum of kept averages, each read when its turn comes; added in float64, returned in the precision they have."""
    total: dict[str, Tensor] = {}
    kinds: dict[str, torch.dtype] = {}
    for read, coefficient in zip(held, coefficients.tolist(), strict=True):
        for name, tensor in read().items():
            kinds.setdefault(name, tensor.dtype)
            total.setdefault(name, torch.zeros_like(tensor, dtype=torch.float64)).add_(tensor.double(), alpha=coefficient)
    return {name: tensor.to(kinds[name]) for name, tensor in total.items()}


def search(score: Callable[[float], float], low: float, high: float, *, points: int = 9, rounds: int = 3) -> float:
    """The width in [low, high] with the least score: `points` even in the logarithm, then the gaps beside the best halved, `rounds` times.

    Widths are looked at to three decimals, as names have them. score must be the same at every call, which fixed samples and noise see to;
    it is called points + 2 rounds times at most.
    """
    found = {width: score(width) for width in dict.fromkeys(round(float(width), 3) for width in np.geomspace(low, high, points))}
    for _ in range(rounds):
        known = sorted(found)
        best = min(known, key=lambda width: found[width])
        place = known.index(best)
        for other in known[max(0, place - 1) : place] + known[place + 1 : place + 2]:
            middle = round(float(np.sqrt(best * other)), 3)
            if middle not in found:
                found[middle] = score(middle)
    return min(found, key=lambda width: found[width])
