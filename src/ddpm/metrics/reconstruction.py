"""How near copies are to their originals, sample by sample: PSNR and SSIM."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm.errors import DataError

WINDOW, SIGMA = 11, 1.5  # of Wang et al., section III.C
K1, K2 = 0.01, 0.03
CONVOLVE = (F.conv1d, F.conv2d, F.conv3d)


def _checked(copies: Tensor, originals: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    if copies.shape != originals.shape or copies.ndim < 2:
        raise DataError(f"copies: got shape {tuple(copies.shape)} for originals of {tuple(originals.shape)}; they must be alike, (B, ...)")
    if not reach > 0.0:
        raise DataError(f"reach: got {reach}, must be above 0: the highest possible value less the lowest")
    pair = copies.double(), originals.double()
    if not all(bool(one.isfinite().all()) for one in pair):
        raise DataError("copies: not all numbers are finite")
    return pair


def psnr(copies: Tensor, originals: Tensor, reach: float) -> Tensor:
    """10 log10(reach^2 / mean squared error) of each sample, in decibels, (B,); infinite for an exact copy.

    copies, originals: (B, ...) in one unit; reach: the highest possible value less the lowest (255 for 8-bit pictures).
    """
    copies, originals = _checked(copies, originals, reach)
    return 10.0 * torch.log10(reach**2 / (copies - originals).square().flatten(1).mean(1))


def ssim(copies: Tensor, originals: Tensor, reach: float) -> Tensor:
    """The structural similarity of each sample, (B,), at most 1, which only an exact copy has.

    The mean over channels and positions of (2 m m' + c1)(2 cov + c2) / ((m^2 + m'^2 + c1)(v + v' + c2)), c1 = (0.01 reach)^2,
    c2 = (0.03 reach)^2, with moments under a Gaussian window of 11 entries an axis, standard deviation 1.5, that lies wholly within the
    sample. samples: (B, C, *axes). Deviation: along an axis shorter than 11 the window is cut to the largest odd number that fits.

    Reference: Wang, Bovik, Sheikh, Simoncelli, 2004, IEEE Transactions on Image Processing 13, eq. 13.
    """
    copies, originals = _checked(copies, originals, reach)
    if copies.ndim < 3:
        raise DataError(f"copies: got shape {tuple(copies.shape)}; SSIM compares signals, pictures and volumes, (B, C, *axes)")
    axes = copies.ndim - 2
    window = torch.ones((1,) * axes, dtype=torch.float64, device=copies.device)
    for axis, size in enumerate(copies.shape[2:]):
        taps = min(WINDOW, size - 1 + size % 2)
        place = torch.arange(taps, dtype=torch.float64, device=copies.device) - taps // 2
        line = (-0.5 * (place / SIGMA) ** 2).exp()
        window = window * (line / line.sum()).view([-1 if axis == other else 1 for other in range(axes)])

    def local(values: Tensor) -> Tensor:
        return CONVOLVE[axes - 1](values.flatten(0, 1)[:, None], window[None, None]).view(len(values), -1)

    first, second = local(copies), local(originals)
    spread, other = local(copies**2) - first**2, local(originals**2) - second**2
    both = local(copies * originals) - first * second
    c1, c2 = (K1 * reach) ** 2, (K2 * reach) ** 2
    return ((2 * first * second + c1) * (2 * both + c2) / ((first**2 + second**2 + c1) * (spread + other + c2))).mean(1)


def mean_psnr(values: Tensor) -> float:
    """The mean over samples (B,), in decibels; exact copies, which are infinitely good, count as 100 dB."""
    return float(values.clamp(max=100.0).mean()) if len(values) else math.nan
