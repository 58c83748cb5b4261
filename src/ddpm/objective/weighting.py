"""Weightings w(log_snr): which noise levels a loss cares about. L = E_t[ w / (2 p_lambda) |eps - eps_hat|^2 ], p_lambda = p(t)/|d
log_snr/dt|.

w = 1 is the variational bound. Evaluated on the network's target F = a x0 + b eps, |eps - eps_hat| = |alpha/d| |F - F_hat| with
d = alpha b - sigma a, the factor of |F - F_hat|^2 per unit of t is w alpha W / (sigma d^2), W = alpha sigma' - sigma alpha', finite at both
ends.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddpm.config import check, setting
from ddpm.process import At, Process

if TYPE_CHECKING:
    import torch
else:
    from ddpm.lazy import torch


@dataclass(frozen=True, kw_only=True)
class Weighting(ABC):
    """A curve over noise levels, asked for as the factor of |F - F_hat|^2 per unit of t."""

    def __post_init__(self) -> None:
        check(self)

    @abstractmethod
    def on_target(self, at: At, process: Process, determinant: torch.Tensor) -> torch.Tensor:
        """The factor at the instants, shaped as at.t."""


@dataclass(frozen=True, kw_only=True)
class LevelWeighting(Weighting):
    """A weighting given by w(log_snr)."""

    @abstractmethod
    def __call__(self, at: At, process: Process) -> torch.Tensor:
        """w at the instants, shaped as at.t."""

    def on_target(self, at: At, process: Process, determinant: torch.Tensor) -> torch.Tensor:
        """w alpha W / (sigma d^2); where alpha = 0 its limit, read just before, for there W or w may be infinite."""
        at = process.at(torch.where(at.alpha == 0, at.t.double() - 1e-8, at.t.double()))
        return self(at, process) * at.alpha * process.wronskian(at) / (at.sigma * determinant**2)


@dataclass(frozen=True, kw_only=True)
class SimpleWeighting(LevelWeighting):
    """L_simple times a function of the level; on F its factor needs no derivative of the schedule, which costs more than the rest."""

    @abstractmethod
    def relative(self, at: At) -> torch.Tensor:
        """w over that of L_simple, shaped as at.t."""

    def __call__(self, at: At, process: Process) -> torch.Tensor:
        """relative alpha sigma / W."""
        return self.relative(at) * at.alpha * at.sigma / process.wronskian(at)

    def on_target(self, at: At, process: Process, determinant: torch.Tensor) -> torch.Tensor:
        """relative alpha^2 / d^2: W cancels."""
        at = process.at(torch.where(at.alpha == 0, at.t.double() - 1e-8, at.t.double()))
        return self.relative(at) * (at.alpha / determinant) ** 2


@dataclass(frozen=True, kw_only=True)
class Simple(SimpleWeighting):
    """L_simple, the mean of |eps - eps_hat|^2 over uniform t: w = 2/|d log_snr/dt| = alpha sigma / W.

    Reference: Ho, Jain, Abbeel, 2020, arXiv:2006.11239, eq. 14.
    """

    def relative(self, at: At) -> torch.Tensor:
        """1."""
        return torch.ones_like(at.t)


@dataclass(frozen=True, kw_only=True)
class Bound(LevelWeighting):
    """The variational bound in continuous time, the "SNR" or variational-diffusion objective: w = 1.

    Reference: Kingma et al., 2021, arXiv:2107.00630, eqs. 17-18.
    """

    def __call__(self, at: At, process: Process) -> torch.Tensor:
        """1."""
        return torch.ones_like(at.t)


@dataclass(frozen=True, kw_only=True)
class MinSNR(SimpleWeighting):
    """L_simple times min(1, gamma/SNR), which caps the weight of x0 errors at high SNR.

    Reference: Hang et al., 2023, arXiv:2303.09556, section 3.4.
    """

    gamma: float = setting(5.0, "SNR above which the weight falls", above=0.0)

    def relative(self, at: At) -> torch.Tensor:
        """min(1, gamma exp(-log_snr))."""
        return (self.gamma * (-at.log_snr).exp()).clamp(max=1.0)


@dataclass(frozen=True, kw_only=True)
class Sigmoid(LevelWeighting):
    """w = 1/(1 + exp(log_snr - bias)).

    Reference: Kingma, Gao, 2023, arXiv:2303.00848, appendix K; Hoogeboom et al., 2024, arXiv:2410.19324, eq. 4.
    """

    bias: float = setting(2.0, "log-SNR at which the weight is a half")

    def __call__(self, at: At, process: Process) -> torch.Tensor:
        """sigmoid(bias - log_snr)."""
        return (self.bias - at.log_snr).sigmoid()


@dataclass(frozen=True, kw_only=True)
class P2(SimpleWeighting):
    """L_simple over (k + SNR)^gamma: less weight where only imperceptible detail is learned.

    Reference: Choi et al., 2022, arXiv:2204.00227, eq. 8.
    """

    k: float = setting(1.0, "SNR below which nothing changes", above=0.0)
    gamma: float = setting(1.0, "strength", low=0.0)

    def relative(self, at: At) -> torch.Tensor:
        """(k + exp(log_snr))^-gamma."""
        return (self.k + at.log_snr.exp()) ** -self.gamma


@dataclass(frozen=True, kw_only=True)
class EDMWeighting(LevelWeighting):
    """EDM's loss whatever the time sampler: w = 2 N(log_snr; -2 mean, (2 std)^2) (exp(-log_snr) + sigma_data^2)/sigma_data^2.

    With times drawn from `LogNormalSigma(mean, std)` and EDM preconditioning the factor on F is 1, as published.

    Reference: Karras et al., 2022, arXiv:2206.00364, table 1; as a weighting: Kingma, Gao, 2023, arXiv:2303.00848, appendix D.2.
    """

    mean: float = setting(-1.2, "mean of log sigma")
    std: float = setting(1.2, "standard deviation of log sigma", above=0.0)
    sigma_data: float | None = setting(None, "standard deviation of the data; none: measured", above=0.0)

    def __call__(self, at: At, process: Process) -> torch.Tensor:
        """The closed form above."""
        if self.sigma_data is None:
            raise ValueError("sigma_data: not measured yet; train on data, or give its value")
        log_snr, spread = at.log_snr, 2.0 * self.std
        density = (-0.5 * ((log_snr + 2.0 * self.mean) / spread) ** 2).exp() / (spread * math.sqrt(2.0 * math.pi))
        return 2.0 * density * ((-log_snr).exp() + self.sigma_data**2) / self.sigma_data**2


@dataclass(frozen=True, kw_only=True)
class Target(Weighting):
    """Plain mean squared error of F, whatever F is: the usual loss of v and flow prediction."""

    def on_target(self, at: At, process: Process, determinant: torch.Tensor) -> torch.Tensor:
        """1."""
        return torch.ones_like(at.t)


WEIGHTINGS = (Simple, Bound, MinSNR, Sigmoid, P2, EDMWeighting, Target)
