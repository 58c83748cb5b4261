"""Chains given by betas: their log alpha at the knots t = i/T, and the line between the knots. Computed once, kept."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
else:
    from ddpm.lazy import torch


@lru_cache(maxsize=32)
def _table(knots: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(knots, dtype=dtype, device=device)


def interpolate(knots: tuple[float, ...], t: torch.Tensor) -> torch.Tensor:
    """Piecewise linear through (i / (len - 1), knots[i]) for t in [0, 1]; exact at the knots."""
    table = _table(knots, t.dtype, t.device)
    last = len(knots) - 1
    place = t * last
    nearest = place.round()
    place = torch.where((place - nearest).abs() < 1e-9, nearest + (place - place.detach()), place)  # i/T * T may miss i by an ulp
    left = place.detach().floor().clamp(0, last - 1).long()
    return torch.lerp(table[left], table[left + 1], place - left)


def smooth(knots: tuple[float, ...], place: torch.Tensor) -> torch.Tensor:
    """Monotone cubic through (i / (len - 1), knots[i]) for place in [0, 1]; exact at the knots, fourth order where the knots are smooth."""
    values, slopes = _table(knots, place.dtype, place.device), _table(monotone_slopes(knots), place.dtype, place.device)
    last = len(knots) - 1
    left = (place.detach() * last).floor().clamp(0, last - 1).long()
    part = place * last - left
    low, rise = values[left], values[left + 1] - values[left]
    start, end = slopes[left], slopes[left + 1]
    return low + part * (start + part * ((3.0 * rise - 2.0 * start - end) + part * (start + end - 2.0 * rise)))


@lru_cache(maxsize=32)
def monotone_slopes(knots: tuple[float, ...]) -> tuple[float, ...]:
    """Slope at each knot, in units of a knot: that of the polynomial through the five nearest knots, cut to what keeps the cubics strictly
    monotone, 0.1 to 2.5 times the flatter of the two neighbouring secants.

    Reference: Fritsch, Carlson, 1980, SIAM J. Numer. Anal. 17(2), section 4 (0 to 3 times, which allows points of slope 0).
    """
    secants = [b - a for a, b in pairwise(knots)]
    width = min(5, len(knots))
    slopes: list[float] = []
    for k in range(len(knots)):
        begin = min(max(k - width // 2, 0), len(knots) - width)
        slope = sum(value * weight for value, weight in zip(knots[begin : begin + width], _stencil(width, k - begin), strict=True))
        flat = min((secants[i] for i in (k - 1, k) if 0 <= i < len(secants)), key=abs)
        slopes.append(flat * min(max(slope / flat, 0.1), 2.5))
    return tuple(slopes)


@lru_cache(maxsize=32)
def _stencil(width: int, at: int) -> tuple[float, ...]:
    """Weights of the values at 0, ..., width - 1 in the derivative at `at` of the polynomial through them."""

    def weight(j: int) -> float:
        others = [i for i in range(width) if i != j]
        if j == at:
            return sum(1.0 / (j - i) for i in others)
        return math.prod(at - i for i in others if i != at) / math.prod(j - i for i in others)

    return tuple(weight(j) for j in range(width))


@lru_cache(maxsize=32)
def log_alpha_knots(betas: tuple[float, ...]) -> tuple[float, ...]:
    """log alpha at t = i/T of the chain with q(x_i | x_{i-1}) = N(sqrt(1 - beta_i) x_{i-1}, beta_i)."""
    knots = [0.0]
    for beta in betas:
        knots.append(knots[-1] + 0.5 * math.log1p(-beta))
    return tuple(knots)


@lru_cache(maxsize=32)
def linear_betas(start: float, end: float) -> tuple[float, ...]:
    """Ho's 1000 betas, evenly from start to end."""
    return tuple(start + (end - start) * i / 999 for i in range(1000))


@lru_cache(maxsize=32)
def cosine_betas(length: int, s: float, clip: float) -> tuple[float, ...]:
    """beta_i = min(clip, 1 - f(i)/f(i-1)), f(i) = cos^2((i/length + s)/(1 + s) pi/2).

    Reference: Nichol, Dhariwal, 2021, arXiv:2102.09672, eq. 17.
    """
    bar = [math.cos((i / length + s) / (1 + s) * math.pi / 2) ** 2 for i in range(length + 1)]
    return tuple(min(1 - bar[i + 1] / bar[i], clip) for i in range(length))
