"""Ancestral sampling: Ho's Algorithm 2, walking q(x_s | x_t, x0) with x0 replaced by the prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ddpm.config import setting
from ddpm.errors import ConfigError
from ddpm.sampling.sampler import Plan, Row, Sampler, State, instants, pairs

if TYPE_CHECKING:
    import torch

    from ddpm.denoiser import Model, Prediction
else:
    from ddpm.lazy import torch


@dataclass(frozen=True, kw_only=True)
class Ancestral(Sampler):
    """x_s = c_x0 x0_hat + c_xt x + std z, no noise at the last step.

    variance: "auto" (large where the schedule preserves variance, small elsewhere), "small" (the posterior's own), "large" (the
    transition's; too much for alpha = 1), "learned" (between the two, by the network's v) or "analytic" (the best for this model: the
    posterior's plus c_x0^2 E|x0 - x0_hat|^2; the last step returns x0_hat, so end on a grid that comes close to t = 0).

    Reference: Ho, Jain, Abbeel, 2020, arXiv:2006.11239, algorithm 2; learned: Nichol, Dhariwal, 2021, arXiv:2102.09672, eq. 15; analytic:
    Bao et al., 2022, arXiv:2201.06503.
    """

    variance: Literal["auto", "small", "large", "learned", "analytic"] = setting("auto", "standard deviation of the noise a step adds")

    @property
    def draws(self) -> int:
        """One."""
        return 1

    def plan(self, model: Model, times: torch.Tensor) -> Plan:
        """Columns c_x0, c_xt, log of the least and of the largest std, all from `Process.posterior`; the last row's std is 0."""
        process = model.process
        at = instants(process, times)
        s, t = pairs(at)
        c_x0, c_xt, small = process.posterior(s, t)
        large = process.posterior(s, t, 1.0)[2]
        if self.variance == "analytic":
            small = process.residual_variance(s, t, model.residual(t)).sqrt()
        kind = self.variance
        if kind == "auto":  # the transition's variance suits data of unit variance only while alpha^2 + sigma^2 = 1
            kind = "large" if bool(((t.alpha**2 + t.sigma**2 - 1.0).abs() < 1e-6).all()) else "small"
        low, high = {"small": (small, small), "large": (large, large), "analytic": (small, small), "learned": (small, large)}[kind]
        walked = torch.arange(len(times)) < len(times) - 1
        return Plan(at, torch.stack([c_x0, c_xt, *(torch.where(walked, std, 0.0) for std in (low, high))], 1))

    def step(self, model: Model, x: torch.Tensor, row: Row, state: State, z: torch.Tensor | None) -> tuple[torch.Tensor, State, Prediction]:
        """One draw of p(x_s | x_t)."""
        prediction = model(x, row.now)
        c_x0, c_xt, low, high = row.coefficients
        std = low
        if self.variance == "learned":
            if prediction.variance is None:
                raise ConfigError("variance 'learned': this model predicts none; choose small, large or analytic")
            v = prediction.variance.clamp(0.0, 1.0)
            std = low ** (1.0 - v) * high**v
        assert z is not None  # stochastic: the walk draws it
        return (c_x0 * prediction.x0).addcmul(c_xt, x).addcmul(std, z), state, prediction
