"""RePaint: inpainting by ancestral sampling in which the known entries are replaced, and steps are taken back so that both parts agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ddpm.config import setting
from ddpm.errors import ConfigError
from ddpm.process import At
from ddpm.sampling.ancestral import Ancestral
from ddpm.sampling.sampler import Plan, Row, Sampler, State

if TYPE_CHECKING:
    import torch

    from ddpm.denoiser import Model, Prediction
else:
    from ddpm.lazy import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class RePaint(Sampler):
    """Unknown entries: x_s = c_x0 x0_hat + c_xt x + std z, as in `Ancestral`; known ones: a draw of q(x_s | x0) from the data themselves.

    Every `jump` steps the walk goes back `jump` steps to more noise, x_t = scale x_s + std z, and down again, `resamples` times in all:
    what was drawn for the unknown part is mixed with noise and drawn anew beside the known part. Such a way up costs no network call: it
    is merged into the step before it, which then ends at more noise than it began with. resamples = 1 is replacement alone.

    Known bias: the network sees known entries with fresh noise at every step, as if nothing had been learnt of them before; the parts
    agree in the limit of many resamples only, and even then the posterior is approached as far as each step's Gaussian allows. What is
    known is known exactly: noise in the measurement cannot be said.

    values, known: what was measured (*D) or (B, *D), in the space diffused in, and where it was, bool, to broadcast over it; entries that
    are not known are ignored. Raises ConfigError for masks that are not bool, shapes that do not meet, known values that are not finite.
    Deviation: the noise of the known and of the unknown entries is one draw, as their entries are different ones.

    Reference: Lugmayr et al., 2022, arXiv:2201.09865, eqs. 7-8 and algorithm 1; jumps: section 4.2 and its published schedule.
    """

    values: torch.Tensor = setting(help="what is known, in the space diffused in")
    known: torch.Tensor = setting(help="where it is known")
    jump: int = setting(5, "steps the walk goes back", low=1)
    resamples: int = setting(5, "how often every stretch is walked", low=1)
    variance: Literal["auto", "small", "large", "analytic"] = setting("auto", "as in ancestral sampling")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.known.dtype != torch.bool:
            raise ConfigError(f"known: got dtype {self.known.dtype}, must be bool, true where the value is known")
        try:
            right = self.values.isfinite() | ~self.known
        except RuntimeError as error:
            shapes = f"{tuple(self.known.shape)} and {tuple(self.values.shape)}"
            raise ConfigError(f"known, values: got shapes {shapes}, which do not broadcast") from error
        if not bool(right.all()):
            raise ConfigError("values: some that are called known are not finite")

    @property
    def draws(self) -> int:
        """One."""
        return 1

    def path(self, steps: int) -> list[tuple[int, int, int]]:
        """Of every row: the places in the grid where it begins, to which it goes down, and where it ends (the same, or `jump` places up).

        From below, the places from which the walk goes back are 0, jump, 2 jump ... steps before the last instant, as far as there are
        `jump` steps above them.
        """
        left = {steps - 1 - place: self.resamples - 1 for place in range(0, steps - self.jump, self.jump)}
        rows: list[tuple[int, int, int]] = []
        now = 0
        while now < steps:
            down = end = now + 1
            if left.get(down, 0):
                left[down] -= 1
                end = down - self.jump
            rows.append((now, down, end))
            now = end
        return rows

    def plan(self, model: Model, times: torch.Tensor) -> Plan:
        """Columns c_x0, c_xt, std of the unknown entries and alpha, sigma of the known ones, all at the row's end, which may be noisier."""
        base = Ancestral(variance=self.variance).plan(model, times)
        now, down, end = (torch.tensor(column) for column in zip(*self.path(len(times)), strict=True))
        rise = end < down
        lower, upper = (At(*(level[at] for level in base.instants)) for at in (torch.where(rise, down, 1), torch.where(rise, end, 0)))
        scale, fresh = model.process.transition(lower, upper)
        scale, fresh = torch.where(rise, scale, 1.0), torch.where(rise, fresh, 0.0)
        c_x0, c_xt, std = base.coefficients[now, :3].unbind(1)
        after = At(*(level[end] for level in base.instants))
        instants = At(*(torch.cat([level[:1], later]) for level, later in zip(base.instants, after, strict=True)))
        columns = (scale * c_x0, scale * c_xt, torch.hypot(scale * std, fresh), after.alpha, after.sigma)
        return Plan(instants, torch.stack(columns, 1))

    def step(self, model: Model, x: torch.Tensor, row: Row, state: State, z: torch.Tensor | None) -> tuple[torch.Tensor, State, Prediction]:
        """One step down, with the way back up where the row has one."""
        prediction = model(x, row.now)
        c_x0, c_xt, std, alpha, sigma = row.coefficients
        assert z is not None  # stochastic: the walk draws it
        drawn = c_x0 * prediction.x0 + c_xt * x + std * z
        return torch.where(self.known.to(x.device), alpha * self.values.to(x) + sigma * z, drawn), state, prediction

    def init(self, x: torch.Tensor) -> State:
        """Nothing is remembered; ConfigError where the known values do not fit samples x (B, *D)."""
        for name, given in (("known", self.known), ("values", self.values)):
            fits = given.ndim <= x.ndim and all(a in (1, b) for a, b in zip(reversed(given.shape), reversed(x.shape), strict=False))
            if not fits:
                raise ConfigError(f"{name}: got shape {tuple(given.shape)}, must fit samples drawn together, {tuple(x.shape)}")
        return ()

    def rows(self, steps: int) -> int:
        """Steps, and what is walked again."""
        return len(self.path(steps))

    def calls(self, steps: int) -> int:
        """One a row."""
        return self.rows(steps)
