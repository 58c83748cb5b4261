"""Where a point of a trajectory came from, in the mean over the batch: what students from data follow."""

from __future__ import annotations

import torch
from torch import Tensor

from ddpm.denoiser import UNASKED, Cond
from ddpm.process import At

MOST = 1024  # rows that are compared with one another; of more, so many at a time


def pooled(x0: Tensor, eps: Tensor, at: At, cond: Cond) -> tuple[Tensor, Tensor]:
    """(x0, eps) of x_t = alpha x0 + sigma eps, each (B, *D), in the mean over which row of the batch x_t was made of, among those that the
    network is told the same of: x0 becomes sum_j w_ij x0_j with w_ij ~ exp(-|x_i - alpha_i x0_j|^2/(2 sigma_i^2)), eps
    (x_t - alpha x0)/sigma.

    Rows are drawn alike, so given x_t the mean over batches is what it was, E[x0 | x_t], for a batch of any size; only chance is less.
    Reference: Xu, Tong, Jaakkola, 2023, arXiv:2302.00670 (stable target field); in consistency training: Wang et al., 2024,
    arXiv:2410.18958 (variance-reduced target).
    """
    if len(x0) > MOST:
        parts = [pooled(x0[rows], eps[rows], at.take(rows), some(cond, rows)) for rows in blocks(len(x0))]
        return torch.cat([mean for mean, _ in parts]), torch.cat([rest for _, rest in parts])
    with torch.autocast(x0.device.type, enabled=False):
        ratio, flat, noise = (at.alpha / at.sigma).reshape(-1, 1), x0.flatten(1), eps.flatten(1)
        apart = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
        towards = (noise * flat).sum(1, keepdim=True) - noise @ flat.T  # eps_i . (x0_i - x0_j)
        logits = -0.5 * (ratio * apart).square() - ratio * towards  # of w_ij / w_ii, without differences of large squares
        logits = logits.masked_fill(differ(cond, len(x0)).to(x0.device), -torch.inf)
        mean = (logits.softmax(1) @ flat).reshape(x0.shape)
    return mean, eps + ratio.reshape(-1, *[1] * (x0.ndim - 1)) * (x0 - mean)


def differ(cond: Cond, count: int) -> Tensor:
    """Which rows the network is told different things of, (B, B); what is hidden from both does not count."""
    found = torch.zeros(count, count, dtype=torch.bool)
    for key, value in (cond or {}).items():
        _, kind = torch.unique(value.cpu().reshape(count, -1), dim=0, return_inverse=True)
        unlike = kind[:, None] != kind
        if cond and "null" in cond and key not in UNASKED | {"null"}:
            hidden = cond["null"].cpu()
            unlike &= ~(hidden[:, None] & hidden)
        found |= unlike
    return found


def blocks(count: int) -> list[slice]:
    """Consecutive rows, at most so many as are compared at a time."""
    return [slice(first, min(first + MOST, count)) for first in range(0, count, MOST)]


def some(cond: Cond, rows: slice) -> Cond:
    """Those rows of a condition."""
    return {key: value[rows] for key, value in cond.items()} if cond else cond
