"""What every route to a likelihood returns: -log p of each sample, in the data's own units, with its error bar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.denoiser import Codec, Denoiser
from ddpm.errors import ConfigError
from ddpm.process import At, Process
from ddpm.random import normals

SMALLEST = 20.0  # log-SNR at which an exact denoiser's data count as clean: noise of 5e-5 of the signal


class Scores(NamedTuple):
    """-log p(x) of whole samples in nats, (B,): a probability where the data are discrete levels, else a density in the data's own units.

    error: standard error over the draws of noise, (B,); NaN from a single draw, 0 where nothing was drawn. calls: network calls a sample.
    """

    nats: Tensor
    error: Tensor
    calls: Tensor

    def bits_per_dim(self, entries: int) -> Scores:
        """The same in bits per entry, for samples of so many entries: meaningful for discrete levels only."""
        unit = entries * math.log(2.0)
        return Scores(self.nats / unit, self.error / unit, self.calls)

    def mean(self) -> tuple[float, float, float]:
        """(mean, standard error over the samples drawn from the data, standard error from the noise of these samples alone)."""
        count = len(self.nats)
        spread = float(self.nats.std() / math.sqrt(count)) if count > 1 else math.nan
        return float(self.nats.mean()), spread, float((self.error**2).sum().sqrt() / count)


def averaged(draws: Sequence[Tensor], calls: Tensor) -> Scores:
    """Scores from independent draws of -log p, each (B,)."""
    values = torch.stack([value.to(dtype=torch.float64, device="cpu") for value in draws])
    error = values.std(0) / math.sqrt(len(values)) if len(values) > 1 else torch.full_like(values[0], math.nan)
    return Scores(values.mean(0), error, calls)


def in_own_units(nats: Tensor, x0: Tensor, codec: Codec | None) -> Tensor:
    """-log p of the encoded sample (B,) to that of the sample in its own units: plus the sum of log |d raw / d x| over its entries.

    Discrete levels have a probability, which has no units: unchanged. Latents of levels have a density.
    """
    if codec is None or codec.discrete:
        return nats
    return nats + codec.unit(x0).log().expand_as(x0).reshape(len(x0), -1).sum(1)


def least_instant(denoiser: Denoiser) -> At:
    """The least noisy instant the denoiser can be asked at: a network's first trained one, log-SNR 20 of a denoiser exact everywhere."""
    process = denoiser.process
    return process.at(process.schedule.first if math.isfinite(denoiser.log_snr_range[1]) else process.time_of(SMALLEST))


def entry_instant(denoiser: Denoiser, x0: Tensor, entry: float | None = None) -> At:
    """The instant at which noised data meet the model, from where a decoder leads on to the data: t = `entry`, else a rule.

    The rule: the least noisy instant, or, for discrete levels, where the noise sigma/alpha is half a (smallest) bin if that is later: the
    decoder still tells the levels apart, and no bits are spent on where in its bin a level lies. Every choice gives a bound. Raises
    ConfigError for an entry below the least noisy instant.
    """
    process, least = denoiser.process, least_instant(denoiser)
    if entry is not None:
        if not float(least.t) <= entry < 1.0:
            raise ConfigError(f"entry: got {entry}, allowed from {float(least.t):g}, the least noisy instant of this model, to below 1")
        return process.at(entry)
    width = None if denoiser.codec is None else denoiser.codec.bin_width(x0)
    if width is None:
        return least
    return process.at(torch.maximum(least.t, process.time_of(-2.0 * math.log(float(width.min()) / 2.0))))


def noise_of(seed: int, first: int, like: Tensor, step: int) -> Tensor:
    """Unit normals like `like` (B, *D), row i a function of (seed, first + i, step) alone."""
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    return normals(seed, range(first, first + len(like)), like.shape[1:], "noise", step, wide).to(like)


def spread_of(process: Process, at: At) -> Tensor:
    """Standard deviation of x0 around x/alpha that the noise at an instant leaves: the decoder's, sigma/alpha."""
    scale, std = process.transition(At(*(end.to(level) for end, level in zip(process.clean, at, strict=True))), at)
    return std / scale


def check_data(denoiser: Denoiser, x0: Tensor, draws: int) -> None:
    """ConfigError unless x0 (B, *D) is encoded data, floating, finite, at least one sample, of the denoiser's shape, and draws >= 1."""
    problems: list[str] = []
    if tuple(x0.shape[1:]) != tuple(denoiser.shape) or not len(x0):
        problems.append(f"x0: got shape {tuple(x0.shape)}, must be (B, {', '.join(map(str, denoiser.shape))}) with B at least 1")
    if not x0.is_floating_point():
        problems.append(f"x0: got {x0.dtype}, must be floating: encode raw data first, denoiser.codec.encode(raw)")
    elif not bool(x0.isfinite().all()):
        bad = (~x0.reshape(len(x0), -1).isfinite().all(1)).nonzero().flatten()
        problems.append(f"x0: sample {int(bad[0])} is not finite ({len(bad)} of {len(x0)} are not); remove it")
    if draws < 1:
        problems.append(f"draws: got {draws}, must be at least 1")
    if problems:
        raise ConfigError.of(problems)
