"""Clocks: how a denoiser tells its network the noise level. A network's index 0..999 is a clock, not a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddpm.config import check, setting
from ddpm.process import EDM, VE, At, Schedule

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Clock(ABC):
    """at -> c_noise, shaped as at.t, in the range a sinusoidal embedding made for 0..1000 resolves."""

    def __post_init__(self) -> None:
        check(self)

    @abstractmethod
    def __call__(self, at: At) -> torch.Tensor:
        """The reading at an instant."""


@dataclass(frozen=True, kw_only=True)
class Index(Clock):
    """c = scale t - 1: the chain's index 0..999 for T = 1000, in fractions between.

    Reference: Ho et al., 2020, arXiv:2006.11239, appendix B.
    """

    scale: float = setting(1000.0, "reading at t = 1, plus 1", above=0.0)

    def __call__(self, at: At) -> torch.Tensor:
        """scale t - 1."""
        return self.scale * at.t - 1.0


@dataclass(frozen=True, kw_only=True)
class LogSNRClock(Clock):
    """c = 1000 (limit - log_snr)/(2 limit), within 0..1000: for schedules whose t bunches the noise levels up (EDM, VE).

    An affine reading of log sigma, as c_noise = log(sigma)/4 is. Reference: Karras et al., 2022, arXiv:2206.00364, table 1.
    """

    limit: float = setting(14.0, "largest |log-SNR| resolved", above=0.0)

    def __call__(self, at: At) -> torch.Tensor:
        """Affine in log-SNR, clamped."""
        return (1000.0 * (self.limit - at.log_snr) / (2.0 * self.limit)).clamp(0.0, 1000.0)


CLOCKS = (Index, LogSNRClock)


def default_clock(schedule: Schedule) -> Clock:
    """Index where t itself spreads the noise levels, LogSNRClock where alpha = 1."""
    return LogSNRClock() if isinstance(schedule, VE | EDM) else Index()
