"""The held-out denoising loss: the same samples, instants and noise at every evaluation, so that two numbers can be compared."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.data.dataset import Dataset, Rows, evenly
from ddpm.denoiser import Denoiser, gaussian
from ddpm.objective import Loss
from ddpm.objective.bound import mean_flat
from ddpm.process import Process
from ddpm.random import generator
from ddpm.training.distributed.world import World
from ddpm.training.feed import Feed, conditions, encoded

BINS = (-float("inf"), -6.0, -3.0, -1.0, 1.0, 3.0, 6.0, float("inf"))  # edges in log-SNR


Values = dict[str, NDArray[Any]]
Tell = Callable[[Rows, Values], Values]


class HeldOut(NamedTuple):
    """Mean |eps - eps_hat|^2 per entry over `instants`, its mean in each log-SNR bin, and mean |x0 - x0_hat|^2 at rising log-SNRs; t: the
    instants all this was measured at; each: |eps - eps_hat|^2 of every call (n,), made at t[level] of the data's row.
    """

    loss: float
    bins: dict[str, float]
    log_snr: Tensor
    residual: Tensor
    t: Tensor
    each: Tensor
    level: Tensor
    rows: Rows

    def of(self, rows: Rows, process: Process) -> tuple[float, dict[str, float]]:
        """Loss and bins of some of the rows alone, each instant counting alike that one of them was measured at."""
        chosen = torch.from_numpy(np.isin(self.rows, rows))
        met = torch.unique(self.level[chosen])
        means = torch.stack([self.each[chosen & (self.level == k)].mean() for k in met.tolist()])
        bins = {name: means[inside].mean().item() for name, inside in binned(process.log_snr(self.t[met])).items()}
        return means.mean().item(), bins


@torch.no_grad()
def held_out_loss(
    denoiser: Denoiser,
    dataset: Dataset,
    keys: frozenset[str],
    *,
    samples: int = 256,
    levels: int = 32,
    batch: int = 256,
    autocast: torch.dtype | None = None,
    world: World | None = None,
    tell: Tell | None = None,
) -> HeldOut | None:
    """Each of up to `samples` held-out samples, taken evenly, at 4 of `levels` `instants`, more where they are few, so that
    every instant is met; None where nothing is held out.

    Of a world of many processes each takes its share, with the same result as alone; all make the same number of network calls. tell: what
    the model is told of rows instead of their own conditions.
    """
    world = world or World()
    rows = evenly(dataset.held_rows, samples)
    if not len(rows) or denoiser.codec is None:
        return None
    device = next((tensor.device for tensor in (*denoiser.parameters(), *denoiser.buffers())), torch.device("cpu"))
    process = denoiser.process
    grid = instants(process, levels)
    levels = len(grid)  # a short chain has fewer
    rows = np.repeat(rows, max(4, -(-levels // len(rows))))
    level = torch.arange(len(rows)) * 7919 % levels
    eps_error, x0_error = torch.zeros(len(rows), dtype=torch.float64), torch.zeros(len(rows), dtype=torch.float64)
    denoiser.eval()
    batches = -(-len(rows) // batch)
    for k in range(world.rank, -(-batches // world.size) * world.size, world.size):
        begin = min(k, batches - 1) * batch
        part = slice(begin, begin + batch)
        raw, values = dataset.batch(rows[part])
        x0 = encoded(denoiser.codec, raw, device, values.get("mask"))
        eps = torch.from_numpy(generator(0, "evaluate", begin).standard_normal(tuple(x0.shape), dtype=np.float32)).to(device)
        at = process.at(grid[level[part]], like=x0)
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            cond = conditions(values if tell is None else tell(rows[part], values), keys | {"null"}, device) or None
            prediction = denoiser(process.perturb(x0, eps, at), at, cond)
        if k < batches:  # else a call to keep step with the others
            share = mean_flat((torch.from_numpy(values["mask"]) != 0).double()) if "mask" in values else 1.0  # of the entries there
            eps_error[part] = mean_flat((eps - prediction.eps) ** 2).double().cpu() / share
            x0_error[part] = mean_flat((x0 - prediction.x0) ** 2).double().cpu() / share
    eps_error, x0_error = world.sum(torch.stack([eps_error, x0_error]))  # zero but where this rank looked
    log_snr = process.log_snr(grid)
    means = [torch.stack([error[level == k].mean() for k in range(levels)]) for error in (eps_error, x0_error)]
    known = log_snr.isfinite()  # at alpha = 0 there is nothing to interpolate in
    bins = {name: means[0][inside].mean().item() for name, inside in binned(log_snr).items()}
    return HeldOut(means[0].mean().item(), bins, log_snr[known].flip(0), means[1][known].flip(0), grid, eps_error, level, rows)


def instants(process: Process, levels: int) -> Tensor:
    """So many instants, rising, evenly over t; evenly over log-SNR where the first 64th of t is more than half of its range, as of EDM's t,
    the noise level itself: nearly all would lie where nothing of the data is seen. Of a chain its own, each once.
    """
    schedule = process.schedule
    place = (torch.arange(levels, dtype=torch.float64) + 0.5) / levels
    even = schedule.first + (1.0 - schedule.first) * place
    if schedule.T:
        return ((even * schedule.T).round() / schedule.T).unique()
    some = torch.tensor([schedule.first, schedule.first + (1.0 - schedule.first) / 64, 1.0], dtype=torch.float64)
    high, early, low = process.log_snr(some).clamp(-30.0, 30.0)
    return process.time_of(high + (low - high) * place) if high - early > 0.5 * (high - low) else even


@torch.no_grad()
def held_out_objective(denoiser: Denoiser, loss: Loss, feed: Feed, autocast: torch.dtype | None, samples: int = 256) -> float | None:
    """The mean of an objective over up to `samples` held-out samples, always with the same noise; None where nothing is held out."""
    rows = evenly(feed.dataset.held_rows, samples)
    if not len(rows):
        return None
    denoiser.eval()
    loss.eval()
    losses: list[Tensor] = []
    for k in range(0, len(rows), 64):
        raw, values = feed.dataset.batch(rows[k : k + 64])
        x0 = encoded(feed.codec, raw, feed.device, values.get("mask"))
        with torch.autocast(feed.device.type, autocast, enabled=autocast is not None):
            losses.append(loss(denoiser, x0, conditions(values, feed.keys, feed.device) or None, feed.draws(0, k, x0)))
    return torch.cat(losses).mean().item()


def binned(log_snr: Tensor) -> dict[str, Tensor]:
    """Which of the log-SNRs lie in each bin, by its name, "-6..-3"; bins with none of them are left out."""
    inside = {f"{low:g}..{high:g}": (log_snr > low) & (log_snr <= high) for low, high in pairwise(BINS)}
    return {name: here for name, here in inside.items() if bool(here.any())}


def gaussian_error(process: Process, variances: tuple[float, ...], t: Tensor) -> Tensor:
    """Mean |eps - eps_hat|^2 at the instants t (n,) of the exact denoiser of a Gaussian with these variances per channel: alpha^2
    v/(alpha^2 v + sigma^2), (n,).

    What a model that knows only the channels' means and variances can reach; a trained network should be below.
    """
    at = process.at(t)
    exact = gaussian(process, torch.zeros(len(variances)), torch.diag(torch.tensor(variances, dtype=torch.float64)))
    return at.log_snr.exp() * exact.residual(at)  # |eps - eps_hat|^2 = SNR |x0 - x0_hat|^2


def gaussian_floor(process: Process, variances: tuple[float, ...], levels: int = 1000) -> float:
    """The mean of `gaussian_error` over instants as a held-out loss is measured at."""
    return gaussian_error(process, variances, instants(process, levels)).mean().item()


def gaussian_floors(process: Process, variances: tuple[float, ...], t: Tensor) -> dict[str, float]:
    """The mean of `gaussian_error` over the instants t (n,) of each log-SNR bin."""
    error = gaussian_error(process, variances, t)
    return {name: error[inside].mean().item() for name, inside in binned(process.log_snr(t)).items()}
