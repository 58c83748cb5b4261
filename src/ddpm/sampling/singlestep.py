"""Single-step methods, which call the model again within the step: Heun (EDM), DPM-Solver-2 and -3, DPM-Solver++(2S); churn; Restart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddpm.config import check, setting
from ddpm.errors import ConfigError
from ddpm.process import At, Process
from ddpm.process.flow import Kind, total
from ddpm.sampling.integrals import weights
from ddpm.sampling.multistep import known
from ddpm.sampling.sampler import Plan, Row, Sampler, State, instants

if TYPE_CHECKING:
    import torch

    from ddpm.denoiser import Model, Prediction
else:
    from ddpm.lazy import torch


@dataclass(frozen=True, kw_only=True)
class SingleStep(Sampler):
    """x_s = alpha_s x0 + sigma_s eps + w (m' - m): a DDIM step, mended by predictions m' made on the way at lambda_t + r h.

    order 2, one further call at r = `reach`: w = scale int dW / (2 reach). reach = 1 is Heun's rule: with "flow" in the level
    sigma/(alpha + sigma), which suits every schedule; with "eps" in sigma/alpha, the sampler of EDM, for schedules of alpha = 1 (others
    begin at a huge sigma/alpha, from where it overshoots). reach = 1/2 is DPM-Solver-2 ("eps") and DPM-Solver++(2S) ("x0"). order 3, calls
    at 1/3 and 2/3: the differences' weights are integrals, DPM-Solver-3. The last step returns x0 and, like a first one from alpha = 0,
    makes no further call (Heun with "flow" does: it is regular there).

    churn > 0 first goes back up to sigma/alpha (1 + min(churn/steps, sqrt(2) - 1)) wherever sigma/alpha lies in [churn_low, churn_high],
    with noise of standard deviation `churn_noise`; never above the process's own end.

    Named settings: heun (the default), edm, edm-churn, dpm-solver-2, dpm-solver-3, dpm++2s.

    Reference: Karras et al., 2022, arXiv:2206.00364, algorithms 1 and 2; Lu et al., 2022, arXiv:2206.00927, algorithms 1 and 2, and
    arXiv:2211.01095, algorithm 1.
    """

    prediction: Kind = setting("flow", "what is interpolated")
    order: int = setting(2, "network calls a step", low=2, high=3)
    reach: float = setting(1.0, "where order 2 calls again, as a share of the step in log-SNR", above=0.0, high=1.0)
    churn: float = setting(0.0, "noise added over the whole walk; 0 none", low=0.0)
    churn_low: float = setting(0.0, "least sigma/alpha that is churned", low=0.0)
    churn_high: float = setting(1e6, "largest sigma/alpha that is churned", low=0.0)
    churn_noise: float = setting(1.0, "standard deviation of that noise; a little above 1 makes up for detail the network loses", above=0.0)

    def __post_init__(self) -> None:
        problems = (
            [f"churn_high: got {self.churn_high}, must be above churn_low = {self.churn_low}"] if self.churn_high <= self.churn_low else []
        )
        if self.order == 3 and self.reach != 1.0:
            problems.append(f"reach: got {self.reach}, order 3 calls at 1/3 and 2/3; leave it at 1")
        check(self, problems)

    @property
    def convergence(self) -> int:
        """`order`; 1 with churn."""
        return 1 if self.churn else self.order

    @property
    def draws(self) -> int:
        """One with churn."""
        return int(self.churn > 0)

    def calls(self, steps: int) -> int:
        """order steps - (order - 1); the same less again where the schedule begins at alpha = 0."""
        return self.order * steps - (self.order - 1)

    def plan(self, model: Model, times: torch.Tensor) -> Plan:
        """Columns up, std of the way back up; per further call c_x0, c_eps and weights of the differences; the same for the step."""
        at = instants(model.process, times)
        t = At(*(value[:-1] for value in at))
        if not self.churn:
            return self.table(model.process, at, t)
        rho = t.ratio
        raised = math.log1p(min(self.churn / len(times), 2.0**0.5 - 1.0))
        churned = (rho >= self.churn_low) & (rho <= self.churn_high)
        higher = model.process.at(model.process.time_of(t.log_snr - 2.0 * raised * churned.to(rho)))
        return self.table(model.process, at, At(*(torch.where(churned, up, now) for up, now in zip(higher, t, strict=True))))

    def table(self, process: Process, at: At, begin: At) -> Plan:
        """The plan of steps begin_k -> at_(k + 1), each reached from at_k by adding noise where begin_k is noisier. at (steps + 1,)."""
        now, s = At(*(value[:-1] for value in at)), At(*(value[1:] for value in at))
        moved = begin.log_snr < now.log_snr - 1e-9
        up, std = process.transition(now, begin)
        columns = [torch.where(moved, up, 1.0), torch.where(moved, std * self.churn_noise, 0.0)]
        through = self.prediction == "flow" and self.order == 2 and self.reach == 1.0  # regular at alpha = 0 too
        whole_row = (s.sigma > 0) & ((begin.alpha > 0) | through)
        inner = At(*(torch.where(whole_row, a, b) for a, b in zip(begin, now, strict=True)))  # rows of one call get finite dummies
        after = At(*(torch.where(whole_row, a, b) for a, b in zip(s, process.at(0.5 * now.t), strict=True)))
        stages: list[At] = []
        for reach in self._reaches():
            stage = after
            if reach < 1.0:
                lam = torch.lerp(inner.log_snr, after.log_snr, reach)
                stage = process.at(process.time_of(torch.where(inner.log_snr.isfinite(), lam, after.log_snr)))
            columns += [stage.alpha, stage.sigma, *self._mend(process, stage, inner, stages)]
            stages.append(stage)
        columns += [s.alpha, s.sigma, *(torch.where(whole_row, w, 0.0) for w in self._mend(process, after, inner, stages))]
        left_out = [At(*(torch.where(whole_row, value, torch.nan) for value in stage)) for stage in stages]
        return Plan(at, torch.stack(columns, 1), (begin, *left_out))

    def step(self, model: Model, x: torch.Tensor, row: Row, state: State, z: torch.Tensor | None) -> tuple[torch.Tensor, State, Prediction]:
        """Up, if the row says so, then down by one call and those further ones the row has."""
        up, std, *columns, c_x0, c_eps, w = row.coefficients
        begin, *further = row.stages
        if z is not None:
            x = up * x + std * z
        first = model(x, begin)
        m = known(first, self.prediction)
        change = None
        for stage in further:
            a, b, *mend = columns[: 2 + (change is not None)]
            columns = columns[2 + (change is not None) :]
            there = a * first.x0 + b * first.eps
            if change is not None:
                there = there.addcmul(mend[0], change)
            change = known(model(there, stage), self.prediction) - m
        x = c_x0 * first.x0 + c_eps * first.eps
        return (x if change is None else x.addcmul(w, change)), state, first

    def _reaches(self) -> tuple[float, ...]:
        return (self.reach,) if self.order == 2 else (1.0 / 3.0, 2.0 / 3.0)

    def _mend(self, process: Process, s: At, t: At, stages: list[At]) -> list[torch.Tensor]:
        """Weight of m' - m for the newest of the stages at s; none where there are none."""
        if not stages:
            return []
        if self.order == 2:
            return [total(s, t, self.prediction) / (2.0 * self.reach)]
        nodes = At(*(torch.stack(pair, 1) for pair in zip(t, stages[-1], strict=True)))
        return [weights(process, s, t, nodes, self.prediction, "log_snr")[:, 1]]


HEUN = SingleStep()


@dataclass(frozen=True, kw_only=True)
class Restart(Sampler):
    """Heun's method that, having come down to sigma/alpha = `low`, goes `repeats` times back up to `high` by fresh noise and down again.

    `low` is walked beside the grid's instants (the least noisy one trained on where that is noisier); each way down from `high` takes
    `inner` steps, even in (sigma/alpha)^(1/7). The noise forgets errors of the walk so far, the deterministic steps keep their own small.

    Reference: Xu et al., 2023, arXiv:2306.14878, algorithm 1.
    """

    low: float = setting(0.06, "sigma/alpha where it turns", above=0.0)
    high: float = setting(0.3, "sigma/alpha it goes back up to", above=0.0)
    repeats: int = setting(2, "how often", low=1, high=1000)
    inner: int = setting(3, "steps of each way down", low=1, high=1000)

    def __post_init__(self) -> None:
        check(self, [] if self.high > self.low else [f"high: got {self.high}, must be above low = {self.low}"])

    @property
    def draws(self) -> int:
        """One."""
        return 1

    def rows(self, steps: int) -> int:
        """Those of the grid, one to `low`, and those of the repeats."""
        return steps + 1 + self.repeats * self.inner

    def calls(self, steps: int) -> int:
        """Two a row but the last."""
        return 2 * self.rows(steps) - 1

    def plan(self, model: Model, times: torch.Tensor) -> Plan:
        """The plan of Heun's method over the lengthened list of instants."""
        process, given = model.process, instants(model.process, times).t
        turn, top = (process.at_ratio(torch.tensor(end, dtype=torch.float64)).t for end in (self.low, self.high))
        turn = turn.clamp(min=process.schedule.first)
        if turn >= given[0] or turn >= top:
            least, most = (float(process.at(t).ratio) for t in (process.schedule.first, given[0]))
            raise ConfigError(
                f"low: got {self.low}, high: {self.high}, but this walk goes from sigma/alpha = {most:.3g} to {least:.3g}; low and high "
                "must lie within"
            )
        ends = process.at(torch.stack([top, turn])).ratio ** (1 / 7)
        inner = process.at_ratio(torch.linspace(float(ends[0]), float(ends[1]), self.inner + 1, dtype=torch.float64) ** 7).t
        loop = torch.cat([inner[1:-1], turn[None]])
        before = given[given > turn + 1e-9]
        walked = torch.cat([before, turn[None], loop.repeat(self.repeats), given[given < turn - 1e-9]])
        begin = walked[:-1].clone()
        begin[len(before) + self.inner * torch.arange(self.repeats)] = top
        return HEUN.table(process, process.at(walked), process.at(begin))

    def step(self, model: Model, x: torch.Tensor, row: Row, state: State, z: torch.Tensor | None) -> tuple[torch.Tensor, State, Prediction]:
        """Heun's, after the way up where the row has one."""
        return HEUN.step(model, x, row, state, z)
