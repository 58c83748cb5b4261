"""DDIM: the family of samplers with the chain's marginals and less noise, deterministic at eta = 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddpm.config import setting
from ddpm.sampling.sampler import Plan, Row, Sampler, State, instants, pairs

if TYPE_CHECKING:
    import torch

    from ddpm.denoiser import Model, Prediction
else:
    from ddpm.lazy import torch


@dataclass(frozen=True, kw_only=True)
class DDIM(Sampler):
    """x_s = alpha_s x0_hat + sqrt(sigma_s^2 - std^2) eps_hat + std z with std = eta times the posterior's; eta = 1 is `Ancestral` with the
    small variance.

    Reference: Song, Meng, Ermon, 2020, arXiv:2010.02502, eqs. 12 and 16.
    """

    eta: float = setting(0.0, "share of the chain's noise: 0 deterministic, 1 ancestral", low=0.0, high=1.0)

    @property
    def draws(self) -> int:
        """One with eta > 0."""
        return int(self.eta > 0)

    def reads(self, meaning: str) -> bool:
        """Means, and without noise the students whose steps it takes."""
        return meaning == "mean" or (meaning == "step" and self.eta == 0.0)

    def plan(self, model: Model, times: torch.Tensor) -> Plan:
        """Columns alpha_s, c_eps, std, from `Process.implicit`; at `clean` they are 1, 0, 0."""
        at = instants(model.process, times)
        return Plan(at, torch.stack(model.process.implicit(*pairs(at), self.eta), 1))

    def step(self, model: Model, x: torch.Tensor, row: Row, state: State, z: torch.Tensor | None) -> tuple[torch.Tensor, State, Prediction]:
        """One step along the probability flow, with fresh noise where eta > 0."""
        prediction = model(x, row.now)
        c_x0, c_eps, std = row.coefficients
        x = (c_x0 * prediction.x0).addcmul(c_eps, prediction.eps)
        return (x if z is None else x.addcmul(std, z)), state, prediction
