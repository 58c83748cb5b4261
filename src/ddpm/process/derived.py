"""Schedules made from numbers or from another schedule: tables, a shift for resolution, zero terminal SNR."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float

from ddpm.config import check, setting
from ddpm.process.schedule import EDM, VE, Linear, Schedule, Straight, VariancePreserving
from ddpm.process.tables import interpolate, log_alpha_knots, smooth

if TYPE_CHECKING:
    import torch
else:
    from ddpm.lazy import torch


@dataclass(frozen=True, kw_only=True)
class Table(VariancePreserving):
    """A variance-preserving chain given by its betas, q(x_i | x_{i-1}) = N(sqrt(1 - beta_i) x_{i-1}, beta_i); log alpha interpolated
    between the knots.

    T defaults to the number of betas.
    """

    betas: tuple[float, ...] = setting((), "the chain's betas, each in (0, 1)")

    def __post_init__(self) -> None:
        bad = [f"betas: number {i + 1} is {b}, must lie in (0, 1)" for i, b in enumerate(self.betas) if not 0 < b < 1][:3]
        check(self, bad or ([] if self.betas else ["betas: empty, a table needs at least one beta in (0, 1)"]))
        if self.T is None:
            object.__setattr__(self, "T", len(self.betas))

    def log_alpha(self, t: Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """1/2 sum of log(1 - beta) up to t, linear in between."""
        return interpolate(log_alpha_knots(self.betas), t)


@dataclass(frozen=True, kw_only=True)
class Shifted(Schedule):
    """The base schedule with its log-SNR lowered by 2 log(shift) at every t: more noise for larger pictures.

    shift = side / 64 keeps the noise of a 64-pixel picture after averaging down. A variance-preserving base stays on alpha^2 + sigma^2 = 1
    and
    a straight one on alpha + sigma = 1, where this is the time shift t -> shift t / (1 + (shift - 1) t). With alpha = 1 raise sigma_max
    instead: refused.

    Reference: Hoogeboom, Heek, Salimans, 2023, arXiv:2301.11093, eq. 3; Esser et al., 2024, arXiv:2403.03206, eq. 23.
    """

    base: Schedule = setting(Linear(), "schedule that is shifted")
    shift: float = setting(1.0, "noise-to-signal factor: side / 64 for pictures", above=0.0)

    def __post_init__(self) -> None:
        check(
            self,
            ["base: VE and EDM cannot be shifted; multiply their sigma_max by the shift instead"]
            if isinstance(self.base, VE | EDM)
            else [],
        )
        object.__setattr__(self, "T", self.base.T)
        object.__setattr__(self, "t_min", self.base.t_min)

    def _norm(self, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = self.base.alpha(t), self.shift * self.base.sigma(t)
        return alpha + sigma if isinstance(self.base, Straight) else (alpha**2 + sigma**2).sqrt()

    def alpha(self, t: Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """alpha / norm of (alpha, shift sigma)."""
        return self.base.alpha(t) / self._norm(t)

    def sigma(self, t: Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """shift sigma / norm of (alpha, shift sigma)."""
        return self.shift * self.base.sigma(t) / self._norm(t)


@dataclass(frozen=True, kw_only=True)
class ZeroTerminalSNR(Schedule):
    """A variance-preserving base with alpha stretched to reach 0: alpha' = (alpha(t) - alpha(1)) / (1 - alpha(1)), sigma'^2 = 1 - alpha'^2.

    The published algorithm keeps alpha at the first step of the chain, this keeps alpha(0) = 1; they differ by a factor 1 - O(beta_1).
    eps and score prediction cannot be recovered at alpha = 0 and are refused with it.

    Reference: Lin et al., 2023, arXiv:2305.08891, algorithm 1.
    """

    base: Schedule = setting(Linear(), "variance-preserving schedule that is stretched")

    def __post_init__(self) -> None:
        vp = isinstance(self.base, VariancePreserving)
        check(
            self,
            []
            if vp
            else [
                f"base: got {type(self.base).__name__}, needs a variance-preserving schedule that does not reach 0: Linear, VPSDE or Table"
            ],
        )
        object.__setattr__(self, "T", self.base.T)
        object.__setattr__(self, "t_min", self.base.t_min)

    def _end(self, t: torch.Tensor) -> torch.Tensor:
        return self.base.alpha(t.new_ones(()))

    def alpha(self, t: Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """Linear stretch of the base's alpha to [0, 1]."""
        end = self._end(t)
        return (self.base.alpha(t) - end) / (1 - end)

    def sigma(self, t: Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """sqrt((1 - alpha')(1 + alpha')) with 1 - alpha' = (1 - alpha)/(1 - alpha(1)) and 1 - alpha = sigma^2 / (1 + alpha)."""
        gap = self.base.sigma(t) ** 2 / (1 + self.base.alpha(t)) / (1 - self._end(t))
        return (gap * (1 + self.alpha(t))).sqrt()


@dataclass(frozen=True, kw_only=True)
class LogSNRTable(VariancePreserving):
    """A variance-preserving schedule given by its log-SNR at even times from the first instant (1/T or `t_min`) to 1: what a learned
    schedule is exported as.

    Between the knots a monotone cubic; below the first instant, where no network is called, sigma falls as t does, log_snr =
    log_snr(first) - 2 log(t / first), so that sigma(0) = 0.

    Reference: learned: Kingma et al., 2021, arXiv:2107.00630, eq. 3; monotone cubics: Fritsch, Carlson, 1980, SIAM J. Numer. Anal. 17(2).
    """

    log_snr: tuple[float, ...] = setting((13.8, -13.8), "log-SNR at even times, falling strictly")

    def __post_init__(self) -> None:
        falls = len(self.log_snr) > 1 and all(a > b for a, b in zip(self.log_snr, self.log_snr[1:], strict=False))
        finite = all(math.isfinite(value) for value in self.log_snr)
        problems = [] if falls and finite else ["log_snr: must hold at least two finite numbers, each below the one before it"]
        check(self, problems if self.first < 1.0 else [*problems, "T: got 1, a table of log-SNR needs at least 2 steps"])

    def log_alpha(self, t: Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """1/2 log sigmoid(log_snr)."""
        below = t < self.first * (1.0 - 1e-9)  # i/T * T may miss i by an ulp
        place = (t - self.first) / (1.0 - self.first)
        rising = 2.0 * (t / self.first).log()
        low = torch.where(below, rising - self.log_snr[0], -smooth(self.log_snr, torch.where(below, place.detach() * 0.0, place)))
        return -0.5 * low.exp().log1p()


def betas_from_alpha_bar(alpha_bar: tuple[float, ...]) -> tuple[float, ...]:
    """beta_i = 1 - alpha_bar_i / alpha_bar_{i-1} with alpha_bar_0 = 1: the betas `Table` wants.

    Raises ValueError where alpha_bar does not fall strictly within (0, 1).
    """
    before = (1.0, *alpha_bar[:-1])
    if not all(0 < now < last for now, last in zip(alpha_bar, before, strict=True)):
        raise ValueError("alpha_bar: must fall strictly from below 1 and stay above 0")
    return tuple(-math.expm1(math.log(now) - math.log(last)) for now, last in zip(alpha_bar, before, strict=True))
