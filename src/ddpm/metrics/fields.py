"""What is compared of pictures, signals and fields themselves, with no feature network: values of each channel, and spectra.

Reference: van der Schaaf, van Hateren 1996, Vision Research 36, section 2 (radial power spectra of pictures).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddpm.errors import DataError

LEVELS = 199  # quantile levels compared


def channel_distances(samples: Tensor, data: Tensor) -> Tensor:
    """Of each channel of (N, C, *axes) and (M, C, *axes): W1 between the values, over the data's standard deviation, of a constant
    channel over that of all channels, 1 where all are constant; (C,).
    """
    _alike(samples, data)
    usual = float(data.to(torch.float64).std()) or 1.0
    levels = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    out: list[Tensor] = []
    for a, b in zip(*(one.to(torch.float64).transpose(0, 1).flatten(1) for one in (samples, data)), strict=True):
        apart = (_quantiles(a, levels) - _quantiles(b, levels)).abs().mean()
        out.append(apart / (float(b.std()) or usual))
    return torch.stack(out)


def _quantiles(values: Tensor, levels: Tensor) -> Tensor:
    """By position in the sorted values: torch's own takes no more than 16 million."""
    ordered = values.sort().values
    return ordered[(levels * len(ordered)).long().clamp(max=len(ordered) - 1)]


def spectrum(samples: Tensor) -> Tensor:
    """Mean power of each channel of (N, C, *axes) at each radial wave number 0, 1, ..., (C, K): of the orthonormal Fourier transform.

    Wave numbers count cycles over the shortest axis of more than one entry; sums over all frequencies give the mean square (Parseval).
    """
    axes = list(range(2, samples.ndim))
    if not axes:
        raise DataError(f"samples: got shape {tuple(samples.shape)}; a spectrum needs axes beyond the channels")
    power = torch.fft.fftn(samples.to(torch.float64), dim=axes, norm="ortho").abs().square().mean(0)
    sizes = samples.shape[2:]
    shortest = min((size for size in sizes if size > 1), default=1)
    squares = [(torch.fft.fftfreq(size, dtype=torch.float64) * shortest).square() for size in sizes]
    radius = torch.zeros(sizes, dtype=torch.float64)
    for axis, square in enumerate(squares):
        radius = radius + square.view([-1 if k == axis else 1 for k in range(len(sizes))])
    ring = radius.sqrt().round().long().flatten()
    held = torch.zeros(samples.shape[1], int(ring.max()) + 1, dtype=torch.float64).index_add_(1, ring, power.flatten(1))
    return held / torch.bincount(ring)


def spectrum_distance(samples: Tensor, data: Tensor) -> Tensor:
    """Of each channel, the root mean square over wave numbers of log(power of samples / power of data), (C,)."""
    _alike(samples, data)
    floor = torch.finfo(torch.float64).eps * spectrum(data).amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    logs = [spectrum(one).maximum(floor).log() for one in (samples, data)]
    return (logs[0] - logs[1]).square().mean(1).sqrt()


def _alike(samples: Tensor, data: Tensor) -> None:
    if samples.shape[1:] != data.shape[1:]:
        raise DataError(f"samples: got shape {tuple(samples.shape[1:])} against data {tuple(data.shape[1:])}; compare like with like")
    for name, one in (("samples", samples), ("data", data)):
        if one.is_floating_point() and not bool(one.isfinite().all()):
            raise DataError(f"{name}: not all finite; nothing was scored")
