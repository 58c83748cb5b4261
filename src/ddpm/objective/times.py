"""Which instants a loss is evaluated at.

A change of sampler changes the variance of the loss, never its expectation: each draw carries its density.
"""

# torch leaves the functions of torch.special and torch.linalg and Tensor.tolist untyped; their results are annotated here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddpm.config import check, setting
from ddpm.process import Process

if TYPE_CHECKING:
    import torch
else:
    from ddpm.lazy import torch


@dataclass(frozen=True, kw_only=True)
class Times(ABC):
    """A density over t in (0, 1], given by its distribution function; drawn from uniforms, so that randomness stays outside.

    On a chain t falls on i/T with the probability of ((i-1)/T, i/T]; in continuous time the density is cut to [t_min, 1].
    """

    def __post_init__(self) -> None:
        check(self)

    @abstractmethod
    def cdf(self, t: torch.Tensor, process: Process) -> torch.Tensor:
        """F(t), float64, for t in [0, 1]."""

    @abstractmethod
    def quantile(self, p: torch.Tensor, process: Process) -> torch.Tensor:
        """The t with F(t) = p."""

    @abstractmethod
    def density(self, t: torch.Tensor, process: Process) -> torch.Tensor:
        """dF/dt."""

    def spread(self, u: torch.Tensor) -> torch.Tensor:
        """The uniforms as used: (B,) -> (B,)."""
        return u

    def draw(self, u: torch.Tensor, process: Process) -> tuple[torch.Tensor, torch.Tensor]:
        """Uniforms (B,) -> instants t (B,) and their density p(t) (on a chain T times the probability), float64 on the host."""
        return self.place(self.spread(u.to(torch.float64).cpu()), process)

    def place(self, u: torch.Tensor, process: Process) -> tuple[torch.Tensor, torch.Tensor]:
        """As `draw`, from uniforms (B,) that are spread already, float64 on the host."""
        length = process.schedule.T
        first = 0.0 if length else process.schedule.t_min
        low, high = self.cdf(torch.tensor([first, 1.0], dtype=torch.float64), process)
        t = self.quantile(low + u * (high - low), process).clamp(first, 1.0)
        if length is None:
            return t, self.density(t, process) / (high - low)
        knot = (t * length).ceil().clamp(1, length)
        share = self.cdf(knot / length, process) - self.cdf((knot - 1) / length, process)
        return knot / length, length * share / (high - low)


@dataclass(frozen=True, kw_only=True)
class UniformTimes(Times):
    """Every t alike. Reference: Ho, Jain, Abbeel, 2020, arXiv:2006.11239, algorithm 1."""

    def cdf(self, t: torch.Tensor, process: Process) -> torch.Tensor:
        """t."""
        return t

    def quantile(self, p: torch.Tensor, process: Process) -> torch.Tensor:
        """p."""
        return p

    def density(self, t: torch.Tensor, process: Process) -> torch.Tensor:
        """1."""
        return torch.ones_like(t)


@dataclass(frozen=True, kw_only=True)
class Stratified(Times):
    """Another sampler's draws spread evenly over the batch: u_i = (u_0 + i/B) mod 1, each still uniform.

    Reference: Kingma et al., 2021, arXiv:2107.00630, appendix I.1.
    """

    base: Times = setting(UniformTimes(), "sampler that is spread")

    def spread(self, u: torch.Tensor) -> torch.Tensor:
        """(u_0 + i/B) mod 1."""
        return (u[0] + torch.arange(len(u), dtype=u.dtype) / len(u)) % 1.0

    def cdf(self, t: torch.Tensor, process: Process) -> torch.Tensor:
        """The base's."""
        return self.base.cdf(t, process)

    def quantile(self, p: torch.Tensor, process: Process) -> torch.Tensor:
        """The base's."""
        return self.base.quantile(p, process)

    def density(self, t: torch.Tensor, process: Process) -> torch.Tensor:
        """The base's."""
        return self.base.density(t, process)


def _normal_cdf(z: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = torch.special.ndtr(z)
    return result


def _normal_quantile(p: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = torch.special.ndtri(p)
    return result


def _normal_density(z: torch.Tensor) -> torch.Tensor:
    return (-0.5 * z**2).exp() / math.sqrt(2.0 * math.pi)


@dataclass(frozen=True, kw_only=True)
class LogitNormal(Times):
    """log(t/(1-t)) ~ N(mean, std^2): the middle more often. Reference: Esser et al., 2024, arXiv:2403.03206, eq. 19."""

    mean: float = setting(0.0, "mean of logit(t)")
    std: float = setting(1.0, "standard deviation of logit(t)", above=0.0)

    def cdf(self, t: torch.Tensor, process: Process) -> torch.Tensor:
        """Phi((logit t - mean)/std)."""
        return _normal_cdf((t.logit() - self.mean) / self.std)

    def quantile(self, p: torch.Tensor, process: Process) -> torch.Tensor:
        """sigmoid(mean + std Phi^-1(p))."""
        return (self.mean + self.std * _normal_quantile(p)).sigmoid()

    def density(self, t: torch.Tensor, process: Process) -> torch.Tensor:
        """phi(z)/(std t (1 - t))."""
        return _normal_density((t.logit() - self.mean) / self.std) / (self.std * t * (1.0 - t))


@dataclass(frozen=True, kw_only=True)
class LogNormalSigma(Times):
    """log(sigma/alpha) ~ N(mean, std^2), cut to the schedule's range. Reference: Karras et al., 2022, arXiv:2206.00364, table 1."""

    mean: float = setting(-1.2, "mean of log sigma")
    std: float = setting(1.2, "standard deviation of log sigma", above=0.0)

    def _z(self, t: torch.Tensor, process: Process) -> torch.Tensor:
        return (-0.5 * process.log_snr(t) - self.mean) / self.std

    def cdf(self, t: torch.Tensor, process: Process) -> torch.Tensor:
        """Phi((log sigma/alpha - mean)/std)."""
        return _normal_cdf(self._z(t, process))

    def quantile(self, p: torch.Tensor, process: Process) -> torch.Tensor:
        """time_of(-2 (mean + std Phi^-1(p)))."""
        return process.time_of(-2.0 * (self.mean + self.std * _normal_quantile(p)))

    def density(self, t: torch.Tensor, process: Process) -> torch.Tensor:
        """phi(z)/std |d log sigma/dt| with |d log sigma/dt| = W/(alpha sigma)."""
        at = process.at(t)
        return _normal_density(self._z(t, process)) / self.std * process.wronskian(at) / (at.alpha * at.sigma)


TIMES = (UniformTimes, Stratified, LogitNormal, LogNormalSigma)
