"""Samplers of the reverse SDE by small steps: Euler-Maruyama, annealed Langevin dynamics, and predictor with Langevin corrections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ddpm.config import setting
from ddpm.sampling.sampler import Plan, Row, Sampler, State, instants, pairs

if TYPE_CHECKING:
    import torch

    from ddpm.denoiser import Model, Prediction
else:
    from ddpm.lazy import torch


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(Sampler):
    """x_s = x - (t - s)(f x - g^2 score) + g sqrt(t - s) z with f, g of the forward SDE dx = f x dt + g dw at t, score = -eps/sigma.

    The last step returns x0; one from alpha = 0, where f is infinite, is the posterior's. The drift is frozen over a step, so it wants
    many:
    `Ancestral` and `Multistep` with noise take the same SDE in longer ones.

    Reference: Song et al., 2021, arXiv:2011.13456, eq. 6 and section 4.1.
    """

    @property
    def draws(self) -> int:
        """One."""
        return 1

    def plan(self, model: Model, times: torch.Tensor) -> Plan:
        """Columns c_x, c_x0, c_eps, std."""
        process = model.process
        at = instants(process, times)
        s, t = pairs(at)
        dt = t.t - s.t
        f, g = process.sde(process.at(t.t - 1e-6 * dt))  # from below: at a table's knots the two sides differ
        columns = torch.stack([1.0 - dt * f, torch.zeros_like(dt), -dt * g**2 / t.sigma, g * dt.sqrt()], 1)
        c_x0, c_xt, std = process.posterior(s, t)
        exact = torch.stack([c_xt, c_x0, torch.zeros_like(dt), std], 1)
        return Plan(at, torch.where(((s.sigma == 0) | (t.alpha == 0))[:, None], exact, columns))

    def step(self, model: Model, x: torch.Tensor, row: Row, state: State, z: torch.Tensor | None) -> tuple[torch.Tensor, State, Prediction]:
        """One Euler step."""
        prediction = model(x, row.now)
        c_x, c_x0, c_eps, std = row.coefficients
        assert z is not None  # stochastic: the walk draws it
        return c_x * x + c_x0 * prediction.x0 + c_eps * prediction.eps + std * z, state, prediction


@dataclass(frozen=True, kw_only=True)
class Langevin(Sampler):
    """At every level `corrections` steps x <- x + d score + sqrt(2 d) z with d = 2 (snr sigma)^2, then down to the next level.

    predictor "ancestral" goes down by a draw of the posterior: predictor-corrector sampling. "none" keeps x/alpha, so that the noise falls
    by
    the corrections alone, and ends with x0: annealed Langevin dynamics.

    snr is the size of a step's score term over that of its noise when |score| = |z|/sigma; the published step measures both norms on the
    batch,
    which would make a sample depend on its neighbours. A finite step leaves too much spread, without a predictor most: data of standard
    deviation 0.5 end at 0.58 to 0.68 after 100 levels of 5 steps, 0.475 to 0.49 with the predictor and one.

    Reference: predictor-corrector: Song et al., 2021, arXiv:2011.13456, algorithms 2-5; annealed: Song, Ermon, 2019, arXiv:1907.05600,
    algorithm 1 (its step alpha_i is 2 d).
    """

    predictor: Literal["ancestral", "none"] = setting("ancestral", "how to come to the next level")
    corrections: int = setting(1, "Langevin steps at each level", low=1, high=1000)
    snr: float = setting(0.16, "size of those steps", above=0.0, below=1.0)

    @property
    def draws(self) -> int:
        """One for each correction, one for the predictor."""
        return self.corrections + int(self.predictor == "ancestral")

    def calls(self, steps: int) -> int:
        """corrections + 1 a step; without a predictor, which makes no call, corrections."""
        return steps * self.draws

    def plan(self, model: Model, times: torch.Tensor) -> Plan:
        """Columns c_eps and std of a correction; c_x0, c_x, std of the way down."""
        process = model.process
        at = instants(process, times)
        s, t = pairs(at)
        d = 2.0 * (self.snr * t.sigma) ** 2
        c_x0, c_xt, std = process.posterior(s, t)
        if self.predictor == "none":
            last = s.sigma == 0
            c_x0, c_xt, std = (
                last.to(c_x0),
                torch.where(last | (t.alpha == 0), 1.0 - last.to(c_x0), s.alpha / t.alpha),
                torch.zeros_like(std),
            )
        return Plan(at, torch.stack([-d / t.sigma, (2.0 * d).sqrt(), c_x0, c_xt, std], 1))

    def step(self, model: Model, x: torch.Tensor, row: Row, state: State, z: torch.Tensor | None) -> tuple[torch.Tensor, State, Prediction]:
        """The corrections, then down."""
        assert z is not None  # stochastic: the walk draws it
        noises = z.unbind() if self.draws > 1 else (z,)
        c_eps, spread, c_x0, c_xt, std = row.coefficients
        prediction = model(x, row.now)
        for i in range(self.corrections):
            if i:
                prediction = model(x, row.now)
            x = x + c_eps * prediction.eps + spread * noises[i]
        if self.predictor == "none":
            return c_x0 * prediction.x0 + c_xt * x, state, prediction
        prediction = model(x, row.now)
        return c_x0 * prediction.x0 + c_xt * x + std * noises[-1], state, prediction
