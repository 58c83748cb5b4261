"""Chains given by betas: their log alpha at the knots t = i/T, and the line between the knots. Computed once, kept."""

from __future__ import annotations

import math
from functools import lru_cache
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
