"""Sampling from a model that maps noise to data at once: predict where the trajectory ends, put noise back, predict again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddpm.sampling.sampler import Plan, Row, Sampler, State, instants, pairs

if TYPE_CHECKING:
    import torch

    from ddpm.denoiser import Model, Prediction
else:
    from ddpm.lazy import torch


@dataclass(frozen=True, kw_only=True)
class Consistency(Sampler):
    """x_s = alpha_s x0_hat(x_t) + sigma_s z: each step begins a new trajectory from the end of the last, with new noise. One step: x0_hat.

    For models that were distilled to say where a trajectory ends; of a mean it would make a blur.

    Reference: Song, Dhariwal, Chen, Sutskever, 2023, arXiv:2303.01469, algorithm 1.
    """

    @property
    def draws(self) -> int:
        """One."""
        return 1

    def reads(self, meaning: str) -> bool:
        """Maps only."""
        return meaning == "map"

    def plan(self, model: Model, times: torch.Tensor) -> Plan:
        """Columns alpha_s, sigma_s; at `clean` 1 and 0."""
        at = instants(model.process, times)
        s, _ = pairs(at)
        return Plan(at, torch.stack([s.alpha, s.sigma], 1))

    def step(self, model: Model, x: torch.Tensor, row: Row, state: State, z: torch.Tensor | None) -> tuple[torch.Tensor, State, Prediction]:
        """One draw of q(x_s | x0) at the predicted x0."""
        prediction = model(x, row.now)
        alpha, sigma = row.coefficients
        assert z is not None  # stochastic: the walk draws it
        return (alpha * prediction.x0).addcmul(sigma, z), state, prediction
