"""Losses: what training minimises.

Settings (frozen dataclasses) that build a `Loss` module; its parameters train along, its buffers are checkpointed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ddpm.config import check, setting
from ddpm.objective.times import Times, UniformTimes
from ddpm.objective.weighting import Bound, Simple, Weighting

if TYPE_CHECKING:
    from ddpm.denoiser import Student
    from ddpm.objective.losses import Loss
    from ddpm.process import Process


@dataclass(frozen=True, kw_only=True)
class LossSettings(ABC):
    """A loss as it is asked for; `build()` makes the module."""

    def __post_init__(self) -> None:
        check(self)

    @property
    def learned_variance(self) -> bool:
        """Whether the network must predict a variance too."""
        return False

    @property
    def guided(self) -> bool:
        """Whether the network is told a guidance scale."""
        return False

    def student(self, process: Process) -> Student | None:
        """What the loss makes of the denoiser, where it is no mean any more."""
        return None

    @abstractmethod
    def build(self) -> Loss:
        """The module that computes it."""


@dataclass(frozen=True, kw_only=True)
class Denoising(LossSettings):
    """Weighted regression of the network's target: L_simple, the continuous bound, min-SNR ... by its `weighting`.

    E_t[ k(t)/p(t) |F - F_hat|^2 ] with k the weighting's factor. `uncertainty` learns u(log_snr) per level and minimises |.|^2 exp(-u) + u
    (Karras et al., 2024, arXiv:2312.02696, eq. 21). `importance` draws times by their loss (Nichol, Dhariwal, 2021, arXiv:2102.09672, eq.
    18).
    """

    weighting: Weighting = setting(Simple(), "how much each noise level counts")
    times: Times = setting(UniformTimes(), "which noise levels are drawn")
    uncertainty: bool = setting(False, "learn the weight of each noise level")
    importance: bool = setting(False, "draw the noise levels whose loss is large more often")

    def build(self) -> Loss:
        """A `DenoisingLoss`."""
        from ddpm.objective.losses import DenoisingLoss

        return DenoisingLoss(self)


@dataclass(frozen=True, kw_only=True)
class VariationalBound(LossSettings):
    """One random term of the exact T-step bound times T: its expectation is the bound less L_T, in nats per entry.

    Reference: Ho, Jain, Abbeel, 2020, arXiv:2006.11239, eq. 5.
    """

    variance: Literal["small", "large", "learned"] = setting("small", "the model's reverse variance")

    @property
    def learned_variance(self) -> bool:
        """True for variance = "learned"."""
        return self.variance == "learned"

    def build(self) -> Loss:
        """A `BoundLoss`."""
        from ddpm.objective.losses import BoundLoss

        return BoundLoss(self)


@dataclass(frozen=True, kw_only=True)
class Hybrid(LossSettings):
    """L_simple + weight L_vlb with learned variance; the mean is shielded from L_vlb by a stop-gradient. L_vlb in bits per entry, as in the
    published code.

    Reference: Nichol, Dhariwal, 2021, arXiv:2102.09672, eq. 16 and section 3.1.
    """

    weight: float = setting(0.001, "weight of the bound", low=0.0)

    @property
    def learned_variance(self) -> bool:
        """Always."""
        return True

    def build(self) -> Loss:
        """A `HybridLoss`."""
        from ddpm.objective.losses import HybridLoss

        return HybridLoss(self)


@dataclass(frozen=True, kw_only=True)
class Stepwise(LossSettings):
    """Regression of each step's data on the next, sum_t E[-log p(x_s | x_t)], s the instant before t; T times one random term, nats per
    entry.

    `reduced` integrates x_s out: E_q[-log N(x_s; mu_p, v_p)] = -log N(mu_q; mu_p, v_p) + v_q/(2 v_p), the same expected gradient with less
    variance.

    Reference: Turner et al., 2024, arXiv:2402.04384 (the step-wise objective and its variance-reduced form).
    """

    reduced: bool = setting(True, "replace x_s by its mean given x_t and x0")
    variance: Literal["small", "large"] = setting("small", "the model's reverse variance")

    def build(self) -> Loss:
        """A `StepwiseLoss`."""
        from ddpm.objective.losses import StepwiseLoss

        return StepwiseLoss(self)


@dataclass(frozen=True, kw_only=True)
class LearnedSchedule(LossSettings):
    """The weighted regression with noise levels drawn from a schedule that learns: a monotone network of log-SNR inside the loss.

    The expected loss is that of `Denoising(weighting)` in continuous time whatever the network does; the network is trained to make
    E[loss^2], so the variance of the estimate, least: its density tends to the root mean square of the integrand at each log-SNR. The
    published objective learns the end points by the bound too; here they are those of the denoiser's own schedule (within -14..14).
    `LearnedScheduleLoss.table` and `ddpm schedule RUN` export it.

    Reference: Kingma et al., 2021, arXiv:2107.00630, sections 4.1 and 5, appendices H and I.2.
    """

    weighting: Weighting = setting(Bound(), "how much each noise level counts; Bound: the variational bound")
    features: int = setting(32, "sigmoids in the monotone network", low=1, high=4096)

    def build(self) -> Loss:
        """A `LearnedScheduleLoss`."""
        from ddpm.objective.learned_schedule import LearnedScheduleLoss

        return LearnedScheduleLoss(self)


LOSSES = (Denoising, VariationalBound, Hybrid, Stepwise, LearnedSchedule)
