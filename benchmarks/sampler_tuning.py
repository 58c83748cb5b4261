"""A grid fitted to a sampler: least squares over its log-SNRs, against exact end points, one grid for all tuning mixtures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from sampler_worlds import LINEAR, World, walk
from scipy.optimize import least_squares
from torch import Tensor

from ddpm.sampling import Sampler

LOWEST, HIGHEST = (LINEAR.log_snr(t).item() for t in (1.0, LINEAR.schedule.first))


def instants(numbers: np.ndarray) -> Tensor:
    """Times of a grid from as many free numbers as it has instants: the first log-SNR, then the logarithms of the shares of the rest."""
    first = float(np.clip(numbers[0], LOWEST, HIGHEST - 1.0))
    shares = np.exp(np.clip(np.append(numbers[1:], 0.0), -12.0, 12.0))
    log_snr = first + (HIGHEST - first) * np.append(0.0, np.cumsum(shares / shares.sum())[:-1])
    times = LINEAR.time_of(torch.from_numpy(log_snr))
    times[0] = 1.0 if first <= LOWEST else times[0]
    return times


def numbers(times: Tensor) -> np.ndarray:
    """The free numbers of a grid: `instants` read the other way."""
    log_snr = LINEAR.log_snr(times).numpy()
    shares = np.diff(np.append(log_snr, max(HIGHEST, log_snr[-1] + 0.1)))
    return np.append(log_snr[0], np.log(shares[:-1] / shares[-1]))


@dataclass(frozen=True)
class Tuned:
    """Instants and their error on the world they were fitted to."""

    times: Tensor
    error: float


def tune(world: World, sampler: Sampler, begin: Tensor, rounds: int = 12) -> Tuned:
    """Gauss-Newton from the grid `begin`, derivatives by differences: `rounds` of them."""
    weight = 1.0 / math.sqrt(world.ends.numel())

    def residuals(place: np.ndarray) -> np.ndarray:
        gap = (walk(world, sampler, instants(place)) - world.ends).numpy().ravel() * weight
        return np.where(np.isfinite(gap), gap, 1e3)

    place = numbers(begin)
    bounds = (np.append(LOWEST - 1e-9, np.full(len(place) - 1, -11.0)), np.append(HIGHEST - 1.0, np.full(len(place) - 1, 11.0)))
    place = np.clip(place, bounds[0] + 1e-6, bounds[1] - 1e-6)
    found = least_squares(residuals, place, bounds=bounds, diff_step=1e-4, max_nfev=rounds, x_scale=1.0)
    times = instants(found.x)
    return Tuned(times, world.rms(walk(world, sampler, times)))
