"""What several laws stand on: small data sets with exact denoisers, wrappers that make a denoiser wrong on purpose, a z-score."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ddpm.denoiser import Codec, Denoiser, Index, Mixture, NetworkDenoiser, Parameterization, Prediction, gaussian
from ddpm.process import At, Process, Schedule


def unit(*shape: int, seed: int = 0) -> Tensor:
    """Unit normals, float64, the same in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniforms(count: int, seed: int = 0) -> Tensor:
    """Uniforms (count,), float64, the same in every run."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(size: int, seed: int = 0) -> Tensor:
    """A well-conditioned covariance (size, size), far from a multiple of the identity."""
    a = unit(size, size, seed=seed)
    return a @ a.T / size * 0.5 + 0.1 * torch.eye(size, dtype=torch.float64)


def normal_data(process: Process, size: int = 2) -> Mixture:
    """The exact denoiser of a correlated Gaussian (size,)."""
    return gaussian(process, 0.5 * unit(size, seed=3), covariance(size, seed=4))


def isotropic(process: Process, variance: float, shape: tuple[int, ...] = (2,)) -> Mixture:
    """The exact denoiser of N(0, variance I)."""
    return gaussian(process, torch.zeros(shape, dtype=torch.float64), torch.tensor(variance, dtype=torch.float64))


def three_bumps(process: Process, shape: tuple[int, ...] = (2,)) -> Mixture:
    """The exact denoiser of a mixture of three unlike Gaussians."""
    size = math.prod(shape)
    covariances = torch.stack([0.3 * covariance(size, seed=k) + 0.05 * torch.eye(size, dtype=torch.float64) for k in range(3)])
    return Mixture(process, unit(3, *shape, seed=9), covariances, torch.tensor([0.5, 0.3, 0.2]))


class Nudged(Denoiser):
    """A denoiser whose x0 is off by delta, () or (B,), still obeying alpha x0 + sigma eps = x; its variance output is v."""

    def __init__(self, inner: Denoiser, delta: Tensor | float = 0.0, v: Tensor | float | None = None) -> None:
        super().__init__()
        self.inner, self.delta, self.v = inner, torch.as_tensor(delta, dtype=torch.float64), v
        self.process, self.shape, self.codec, self.parameterization = inner.process, inner.shape, inner.codec, inner.parameterization

    def forward(self, x: Tensor, at: At, cond: Any = None) -> Prediction:
        """The inner prediction, nudged."""
        x0, eps, _ = self.inner(x, at, cond)
        delta = self.delta.reshape(-1, *[1] * (x.ndim - 1)) if self.delta.ndim else self.delta
        v = None if self.v is None else torch.as_tensor(self.v, dtype=x.dtype).expand_as(x)
        return Prediction(x0 + delta, eps - at.alpha / at.sigma * delta, v)

    def residual(self, at: At) -> Tensor:
        """The inner denoiser's."""
        return self.inner.residual(at)


class Toy(nn.Module):
    """A network without parameters that reads x, the clock and the condition, and keeps what it was last given."""

    def __init__(self, doubled: bool = False) -> None:
        super().__init__()
        self.doubled, self.seen = doubled, []

    def forward(self, x: Tensor, c_noise: Tensor, cond: Any) -> Tensor:
        """tanh(x) plus something of the clock and of the class, where there is one."""
        self.seen.append((x, c_noise, cond))
        shift = torch.cos(c_noise).to(x.dtype)
        if cond:
            shift = (
                shift + torch.where(cond["null"], 0.0, 1.0 + cond["class"].to(x.dtype)) if "null" in cond else shift + 1.0 + cond["class"]
            )
        out = torch.tanh(x) + shift.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        return torch.cat([out, torch.sin(3 * x)], 1) if self.doubled else out


def plain_codec(channels: int) -> Codec:
    """A codec that changes nothing; the data range is [-1, 1]."""
    return Codec(shift=(0.0,) * channels, scale=(1.0,) * channels, dtype="float64", low=(-1.0,) * channels, high=(1.0,) * channels)


def toy(schedule: Schedule, parameterization: Parameterization, shape: tuple[int, ...] = (2,), *, learned: bool = False) -> NetworkDenoiser:
    """A NetworkDenoiser round a Toy."""
    return NetworkDenoiser(
        Toy(learned), Process(schedule), parameterization, Index(), plain_codec(shape[0]), shape, learned_variance=learned
    )


def some_times(schedule: Schedule) -> Tensor:
    """A few instants a network may be called at, both ends included, (5,)."""
    spread = torch.tensor([schedule.first, 0.1, 0.35, 0.8, 1.0], dtype=torch.float64)
    return spread if schedule.T is None else (spread * schedule.T).round() / schedule.T


def z_score(values: Tensor, expected: float | Tensor = 0.0) -> float:
    """How many standard errors the mean of independent values (n,) is from what it should be."""
    error = values.std() / math.sqrt(len(values))
    return float((values.mean() - expected).abs() / error) if error > 0 else float((values.mean() - expected).abs() > 1e-12) * math.inf


def close(got: Tensor | float, wanted: Tensor | float, rtol: float = 1e-10, atol: float = 0.0) -> None:
    """Equality to a tolerance, in float64, with both sides in the message."""
    one, other = torch.as_tensor(got, dtype=torch.float64), torch.as_tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(one, other.expand_as(one), rtol=rtol, atol=atol)


def printed(got: Tensor | float, figure: str, units: float = 0.5001) -> None:
    """Agreement with a figure as printed in decimal: to half a unit of its last digit."""
    digits, _, power = figure.lower().partition("e")
    unit_in_last = 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))
    assert abs(float(got) - float(figure)) <= units * unit_in_last, f"{float(got)!r} is not {figure}"


def all_below(values: Iterable[float], limit: float) -> None:
    """Every value below the limit."""
    worst = max(values)
    assert worst < limit, f"{worst} is not below {limit}"
