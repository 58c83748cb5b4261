"""Schedules: how much signal, alpha(t), and how much noise, sigma(t), an instant t holds. x_t = alpha(t) x0 + sigma(t) eps.

t = 0 is data (alpha = 1, sigma = 0), t = 1 is noise. A new schedule writes `alpha` and `sigma`, nothing else; every further formula is in
`Process`.
Formulas are arranged so that sigma keeps its digits near t = 0 and alpha near t = 1, where the textbook forms cancel.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float

from ddpm.config import check, setting
from ddpm.process.tables import cosine_betas, interpolate, linear_betas, log_alpha_knots

if TYPE_CHECKING:
    import torch
else:
    from ddpm.lazy import torch


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """The noise schedule: alpha decreasing from alpha(0) = 1 (alpha(1) = 0 is legal), sigma increasing from sigma(0) = 0.

    With T set, training draws its times from the chain t = 1/T, 2/T, ..., 1 and the full grid walks it; with T None time is continuous
    and training draws t from [t_min, 1].
    """

    T: int | None = setting(None, "steps of the chain; none: continuous time", low=1, high=1_000_000)
    t_min: float = setting(1e-3, "least noisy instant trained on when time is continuous", above=0.0, below=1.0)

    def __post_init__(self) -> None:
        check(self)

    @abstractmethod
    def alpha(self, t: Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """Signal level at t in [0, 1]."""

    @abstractmethod
    def sigma(self, t: Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """Noise level at t in [0, 1]."""

    @property
    def first(self) -> float:
        """The least noisy instant a network is trained at: 1/T on a chain, else `t_min`."""
        return 1.0 / self.T if self.T else self.t_min


@dataclass(frozen=True, kw_only=True)
class VariancePreserving(Schedule):
    """Schedules with alpha^2 + sigma^2 = 1, given by log alpha alone."""

    @abstractmethod
    def log_alpha(self, t: Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """log alpha(t) = 1/2 log alpha_bar(t)."""

    def alpha(self, t: Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """alpha = exp(log alpha)."""
        return self.log_alpha(t).exp()

    def sigma(self, t: Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """sigma = sqrt(1 - alpha^2), by expm1 so that it is exact near t = 0."""
        return (2.0 * self.log_alpha(t)).expm1().abs().sqrt()


@dataclass(frozen=True, kw_only=True)
class Linear(VariancePreserving):
    """Ho's chain: beta_i from `beta_start` to `beta_end` in 1000 equal steps, log alpha(i/1000) = 1/2 sum_j<=i log(1 - beta_j).

    Between the knots log alpha is interpolated linearly. T = N < 1000 walks the same process in N steps
    (beta_i = 1 - alpha_bar(i/N) / alpha_bar((i-1)/N)); it does not enlarge beta.

    Reference: Ho, Jain, Abbeel, 2020, arXiv:2006.11239, section 4 and eq. 4.
    """

    T: int | None = setting(1000, "steps of the chain; none: continuous time", low=1, high=1_000_000)
    beta_start: float = setting(1e-4, "variance added by the first of 1000 steps", above=0.0, below=1.0)
    beta_end: float = setting(0.02, "variance added by the last of 1000 steps", above=0.0, below=1.0)

    def __post_init__(self) -> None:
        problems = (
            []
            if self.beta_end > self.beta_start
            else [f"beta_end: got {self.beta_end}, must be larger than beta_start = {self.beta_start}"]
        )
        check(self, problems)

    def log_alpha(self, t: Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """Interpolated log alpha of the 1000-step chain."""
        return interpolate(log_alpha_knots(linear_betas(self.beta_start, self.beta_end)), t)


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """alpha(t) = cos(theta(t)) / cos(theta(0)), theta(t) = pi/2 (t + s)/(1 + s), sigma^2 = 1 - alpha^2.

    With `clip` it is the published table of `knots` betas, none above `clip`, interpolated in log alpha; without it (none) the curve
    itself,
    which reaches alpha(1) = 0 exactly.

    Reference: Nichol, Dhariwal, 2021, arXiv:2102.09672, eq. 17 and section 3.2.
    """

    T: int | None = setting(1000, "steps of the chain; none: continuous time", low=1, high=1_000_000)
    s: float = setting(0.008, "offset that keeps the first steps from being too small", low=0.0, below=1.0)
    clip: float | None = setting(0.999, "largest beta of the table; none: the unclipped curve, alpha(1) = 0", above=0.0, below=1.0)
    knots: int = setting(1000, "length of the clipped table", low=2, high=1_000_000)

    def _log_alpha(self, t: torch.Tensor, clip: float) -> torch.Tensor:
        return interpolate(log_alpha_knots(cosine_betas(self.knots, self.s, clip)), t)

    def _angles(self, t: torch.Tensor) -> tuple[torch.Tensor, float]:
        start = math.pi / 2 * self.s / (1 + self.s)
        return math.pi / 2 * t / (1 + self.s), start

    def alpha(self, t: Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """Written with sin(pi/2 - theta), so that alpha(1) is 0 and not 6e-17."""
        if self.clip is not None:
            return self._log_alpha(t, self.clip).exp()
        _, start = self._angles(t)
        return (math.pi / 2 * (1 - t) / (1 + self.s)).sin() / math.cos(start)

    def sigma(self, t: Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """cos^2 a - cos^2 b = sin(b - a) sin(b + a) keeps the digits near t = 0."""
        if self.clip is not None:
            return (2.0 * self._log_alpha(t, self.clip)).expm1().abs().sqrt()
        turn, start = self._angles(t)
        return (turn.sin() * (turn + 2 * start).sin()).sqrt() / math.cos(start)


@dataclass(frozen=True, kw_only=True)
class Sigmoid(Schedule):
    """alpha^2(t) = (S(end) - S(u)) / (S(end) - S(start)), S(u) = 1/(1 + exp(-u/tau)), u = start + t (end - start); sigma^2 = 1 - alpha^2.

    The published code clips alpha^2 at 1e-9; here alpha(1) = 0 exactly.

    Reference: Jabri, Fleet, Chen, 2022, arXiv:2212.11972, algorithm 1 of the appendix.
    """

    start: float = setting(-3.0, "sigmoid argument at t = 0")
    end: float = setting(3.0, "sigmoid argument at t = 1")
    tau: float = setting(1.0, "temperature", above=0.0)

    def __post_init__(self) -> None:
        check(self, [] if self.end > self.start else [f"end: got {self.end}, must be larger than start = {self.start}"])

    def _gap(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """S(high) - S(low) = sinh((high - low)/2) / (2 cosh(low/2) cosh(high/2)), without cancellation."""
        low, high = low / self.tau, high / self.tau
        return ((high - low) / 2).sinh() / (2 * (low / 2).cosh() * (high / 2).cosh())

    def _parts(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ends = torch.tensor([self.start, self.end], dtype=t.dtype, device=t.device)
        return self.start + t * (self.end - self.start), ends[0], ends[1]

    def alpha(self, t: Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """Square root of the share of the sigmoid still ahead."""
        u, start, end = self._parts(t)
        return (self._gap(torch.minimum(u, end), end) / self._gap(start, end)).sqrt()

    def sigma(self, t: Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """Square root of the share of the sigmoid already passed."""
        u, start, end = self._parts(t)
        return (self._gap(start, u) / self._gap(start, end)).sqrt()


@dataclass(frozen=True, kw_only=True)
class VPSDE(VariancePreserving):
    """The T -> infinity limit of Ho's chain: log alpha(t) = -t^2 (beta_max - beta_min)/4 - t beta_min/2.

    Reference: Song et al., 2021, arXiv:2011.13456, eq. 33.
    """

    beta_min: float = setting(0.1, "beta(0)", above=0.0)
    beta_max: float = setting(20.0, "beta(1)", above=0.0)

    def log_alpha(self, t: Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """-1/2 of the integral of beta(s) = beta_min + s (beta_max - beta_min) from 0 to t."""
        return _vp_log_alpha(t, self.beta_min, self.beta_max)


def _vp_log_alpha(t: torch.Tensor, beta_min: float, beta_max: float) -> torch.Tensor:
    return -0.25 * t**2 * (beta_max - beta_min) - 0.5 * t * beta_min


@dataclass(frozen=True, kw_only=True)
class SubVP(Schedule):
    """alpha of the VP-SDE with sigma = 1 - alpha^2, a variance below the VP-SDE's at every t.

    Reference: Song et al., 2021, arXiv:2011.13456, eq. 29 with eq. 33.
    """

    beta_min: float = setting(0.1, "beta(0)", above=0.0)
    beta_max: float = setting(20.0, "beta(1)", above=0.0)

    def alpha(self, t: Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """As the VP-SDE."""
        return _vp_log_alpha(t, self.beta_min, self.beta_max).exp()

    def sigma(self, t: Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """1 - alpha^2."""
        return (2.0 * _vp_log_alpha(t, self.beta_min, self.beta_max)).expm1().abs()


@dataclass(frozen=True, kw_only=True)
class Straight(Schedule):
    """alpha = 1 - t, sigma = t: the straight path of flow matching and rectified flow.

    Reference: Lipman et al., 2022, arXiv:2210.02747, eq. 20 with sigma_min = 0 (time reversed); Liu et al., 2022, arXiv:2209.03003.
    """

    def alpha(self, t: Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """1 - t."""
        return 1.0 - t

    def sigma(self, t: Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """t."""
        return t.clone()


@dataclass(frozen=True, kw_only=True)
class VE(Schedule):
    """alpha = 1, sigma(t) = sigma_min sqrt((sigma_max/sigma_min)^(2t) - 1).

    The exact solution of the variance-exploding SDE, so sigma(0) = 0; the published kernel leaves the -1 out and jumps at t = 0.

    Reference: Song et al., 2021, arXiv:2011.13456, eq. 31 and appendix C.
    """

    t_min: float = setting(1e-5, "least noisy instant trained on when time is continuous", above=0.0, below=1.0)
    sigma_min: float = setting(0.01, "scale of the smallest noise", above=0.0)
    sigma_max: float = setting(50.0, "noise at t = 1 (very nearly)", above=0.0)

    def __post_init__(self) -> None:
        check(
            self,
            []
            if self.sigma_max > self.sigma_min
            else [f"sigma_max: got {self.sigma_max}, must be larger than sigma_min = {self.sigma_min}"],
        )

    def alpha(self, t: Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """1."""
        return torch.ones_like(t)

    def sigma(self, t: Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """Square root of sigma^2(t) - sigma^2(0)."""
        return self.sigma_min * (2.0 * t * math.log(self.sigma_max / self.sigma_min)).expm1().sqrt()


@dataclass(frozen=True, kw_only=True)
class EDM(Schedule):
    """alpha = 1, sigma(t) = sigma_max t; made to be walked on the Karras or log-SNR grid.

    Reference: Karras et al., 2022, arXiv:2206.00364, table 1 (sigma(t) = t, rescaled to t in [0, 1]).
    """

    t_min: float = setting(0.002 / 80, "least noisy instant trained on when time is continuous", above=0.0, below=1.0)
    sigma_max: float = setting(80.0, "noise at t = 1", above=0.0)

    def alpha(self, t: Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """1."""
        return torch.ones_like(t)

    def sigma(self, t: Float[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
        """sigma_max t."""
        return self.sigma_max * t
