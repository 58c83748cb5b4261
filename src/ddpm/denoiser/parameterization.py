"""Parameterizations: what the network regresses. F = a x0 + b eps; with x = alpha x0 + sigma eps a 2x2 change of basis gives the rest.

d = alpha b - sigma a,   x0 = (b x - sigma F)/d,   eps = (alpha F - a x)/d. A member writes only a and b.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ddpm.config import check, setting
from ddpm.errors import ConfigError
from ddpm.process import At, Cosine, Process, Schedule, Sigmoid, Straight, ZeroTerminalSNR
from ddpm.process.derived import Shifted

if TYPE_CHECKING:
    import torch
else:
    from ddpm.lazy import torch


class Prediction(NamedTuple):
    """What a denoiser says of x = alpha x0 + sigma eps: both parts, shape (B, *D), which obey that equation.

    variance: the raw interpolation v of a learned reverse variance, (B, *D) within [0, 1] when trained, or None.
    """

    x0: torch.Tensor
    eps: torch.Tensor
    variance: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Parameterization(ABC):
    """The network's target F = a x0 + b eps and its input scale c_in = 1/sqrt(alpha^2 sigma_data^2 + sigma^2).

    With sigma_data = 1 and a variance-preserving schedule c_in is 1: the network sees x, as in Ho et al. 2020.
    """

    sigma_data: float | None = setting(1.0, "standard deviation the input is scaled by; none: measured from the data", above=0.0)

    def __post_init__(self) -> None:
        check(self)

    def scale(self, at: At) -> torch.Tensor:
        """c_in, the factor on x before it enters the network."""
        return 1.0 / (at.alpha**2 * self.std**2 + at.sigma**2).sqrt()

    @property
    def std(self) -> float:
        """sigma_data; ConfigError where it was left to be measured and no data were seen."""
        if self.sigma_data is None:
            raise ConfigError("sigma_data: not measured yet; train on data, or give its value")
        return self.sigma_data

    @abstractmethod
    def target(self, at: At, process: Process) -> tuple[torch.Tensor, torch.Tensor]:
        """(a, b) of F = a x0 + b eps at the instant, shaped as at.alpha."""

    def determinant(self, at: At, process: Process) -> torch.Tensor:
        """d = alpha b - sigma a: F determines x0 and eps where it is not 0."""
        a, b = self.target(at, process)
        return at.alpha * b - at.sigma * a

    def predict(self, output: torch.Tensor, x: torch.Tensor, at: At, process: Process, variance: torch.Tensor | None = None) -> Prediction:
        """(x0, eps) from the network's output F and its input x, both (B, *D)."""
        a, b = self.target(at, process)
        d = at.alpha * b - at.sigma * a
        return Prediction((b * x - at.sigma * output) / d, (at.alpha * output - a * x) / d, variance)


@dataclass(frozen=True, kw_only=True)
class Eps(Parameterization):
    """The noise: a = 0, b = 1. Reference: Ho, Jain, Abbeel, 2020, arXiv:2006.11239, eq. 11."""

    def target(self, at: At, process: Process) -> tuple[torch.Tensor, torch.Tensor]:
        """(0, 1)."""
        return torch.zeros_like(at.alpha), torch.ones_like(at.alpha)


@dataclass(frozen=True, kw_only=True)
class X0(Parameterization):
    """The data: a = 1, b = 0. Reference: Ho, Jain, Abbeel, 2020, arXiv:2006.11239, section 3.2."""

    def target(self, at: At, process: Process) -> tuple[torch.Tensor, torch.Tensor]:
        """(1, 0)."""
        return torch.ones_like(at.alpha), torch.zeros_like(at.alpha)


@dataclass(frozen=True, kw_only=True)
class V(Parameterization):
    """v = alpha eps - sigma x0. Reference: Salimans, Ho, 2022, arXiv:2202.00512, section 4 and appendix D."""

    def target(self, at: At, process: Process) -> tuple[torch.Tensor, torch.Tensor]:
        """(-sigma, alpha)."""
        return -at.sigma, at.alpha.clone()


@dataclass(frozen=True, kw_only=True)
class Flow(Parameterization):
    """u = eps - x0: dx/dt on the straight schedule, and dy/du with y = x/(alpha + sigma), u = sigma/(alpha + sigma) on every other.

    Reference: Liu et al., 2022, arXiv:2209.03003, eq. 1 (time reversed); Lipman et al., 2022, arXiv:2210.02747, eq. 23.
    """

    def target(self, at: At, process: Process) -> tuple[torch.Tensor, torch.Tensor]:
        """(-1, 1)."""
        return -torch.ones_like(at.alpha), torch.ones_like(at.alpha)


@dataclass(frozen=True, kw_only=True)
class Score(Parameterization):
    """grad log p_t(x) = -eps/sigma in expectation: a = 0, b = -1/sigma. Reference: Song et al., 2021, arXiv:2011.13456, eq. 7."""

    def target(self, at: At, process: Process) -> tuple[torch.Tensor, torch.Tensor]:
        """(0, -1/sigma)."""
        return torch.zeros_like(at.alpha), -1.0 / at.sigma


@dataclass(frozen=True, kw_only=True)
class PosteriorMean(Parameterization):
    """mu~_t, the mean of q(x_{t-1} | x_t, x0) one step down the chain: a = c_x0 + c_xt alpha, b = c_xt sigma.

    Reference: Ho, Jain, Abbeel, 2020, arXiv:2006.11239, eq. 8 and table 2.
    """

    def target(self, at: At, process: Process) -> tuple[torch.Tensor, torch.Tensor]:
        """(c_x0 + c_xt alpha, c_xt sigma) of the posterior to t - 1/T."""
        length = process.schedule.T
        if length is None:
            raise ConfigError("parameterization PosteriorMean: time is continuous, there is no step before; give the schedule a T")
        place = at.t.to(device="cpu", dtype=torch.float64) * length
        knot = torch.where((place - place.round()).abs() < 1e-3, place.round(), place).clamp(min=1.0)  # some samplers call between knots
        c_x0, c_xt, _ = process.posterior(process.at((knot - 1) / length), process.at(knot / length))
        c_x0, c_xt = (c.to(dtype=at.alpha.dtype).to(device=at.alpha.device) for c in (c_x0, c_xt))
        return c_x0 + c_xt * at.alpha, c_xt * at.sigma


@dataclass(frozen=True, kw_only=True)
class EDMPreconditioning(Parameterization):
    """F such that input, target and output have unit variance: a = sigma/(sigma_data r), b = -alpha sigma_data/r, r^2 = sigma^2 + alpha^2
    sigma_data^2.

    D = c_skip x + c_out F for any alpha, sigma; with alpha = 1 the published c_skip = sigma_data^2/r^2 and c_out = sigma sigma_data/r.
    sigma_data is measured from the data unless given.

    Reference: Karras et al., 2022, arXiv:2206.00364, table 1 and eq. 7.
    """

    sigma_data: float | None = setting(None, "standard deviation of the data; none: measured", above=0.0)

    def target(self, at: At, process: Process) -> tuple[torch.Tensor, torch.Tensor]:
        """(sigma/(sigma_data r), -alpha sigma_data/r)."""
        r = (at.sigma**2 + at.alpha**2 * self.std**2).sqrt()
        return at.sigma / (self.std * r), -at.alpha * self.std / r


PARAMETERIZATIONS = (Eps, X0, V, Flow, Score, PosteriorMean, EDMPreconditioning)


def reaches_zero(schedule: Schedule) -> bool:
    """Whether alpha(1) = 0, so that x_1 holds no signal."""
    if isinstance(schedule, Shifted):
        return reaches_zero(schedule.base)
    return isinstance(schedule, Straight | Sigmoid | ZeroTerminalSNR) or (isinstance(schedule, Cosine) and schedule.clip is None)


def legal(schedule: Schedule, parameterization: Parameterization) -> str | None:
    """None when the two work together, else the reason they do not and the way out.

    What cannot be recovered: x0 = (x - sigma eps)/alpha at alpha = 0, and "the step before" in continuous time.
    """
    name = f"{type(parameterization).__name__} with {type(schedule).__name__}"
    if isinstance(parameterization, Eps | Score) and reaches_zero(schedule):
        return (
            f"{name}: alpha(1) = 0, where x is pure noise and predicting it says nothing of x0; use V, X0, Flow or EDMPreconditioning, "
            "or a schedule that stops short of 0 (Linear, VPSDE, Cosine with clip)"
        )
    if isinstance(parameterization, PosteriorMean) and schedule.T is None:
        return f"{name}: the posterior mean of the step before needs a discrete chain; give the schedule a T, or predict eps, x0 or v"
    return None
