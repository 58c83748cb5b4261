"""The exponential multistep family: DPM-Solver++, DEIS, iPNDM, LMS, UniPC, SDE-DPM-Solver++ and SA-Solver as settings of one class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ddpm.config import check, setting
from ddpm.process import At, Process
from ddpm.process.flow import SHARES, Kind, Variable, coordinate, held, keep, total
from ddpm.sampling.integrals import weights
from ddpm.sampling.sampler import Plan, Row, Sampler, State, instants

if TYPE_CHECKING:
    import torch

    from ddpm.denoiser import Model, Prediction
else:
    from ddpm.lazy import torch


@dataclass(frozen=True, kw_only=True)
class Multistep(Sampler):
    """x_s = keep x_t + scale int m dW + std z with m the polynomial through the last `order` predictions: one network call a step.

    prediction is m: "x0", "eps" or "flow" (eps - x0). variable is what m is a polynomial of: half the log-SNR, the ratio sigma/alpha, the
    level sigma/(alpha + sigma), time, or the row's index, as if all rows were equal (Adams' numbers). Polynomials of lower order start the
    walk, and a variable that is infinite at `clean` ends it by returning x0.

    rule: the weight of the difference of two predictions is the integral ("exact") or half of B(h), with B = h ("bh1") or e^h - 1 ("bh2"),
    which is what DPM-Solver++(2M) and UniPC publish; larger polynomials are always exact. corrector: once the model has been called at x,
    the step that led there is made again with the new prediction in its polynomial. Only predictions enter that correction, x cancels, so
    it
    is folded into the row's coefficients and costs nothing. noise: tau; 0 the probability flow, 1 the reverse SDE.

    Named settings: dpm++2m (the default), dpm++3m, adams, deis, ipndm, lms, unipc, unipc-bh1, sde-dpm++2m, sde-dpm++3m, sa-solver.

    Reference: DPM-Solver++: Lu et al., 2022, arXiv:2211.01095, algorithm 2 (third order: from the integrals; the second difference printed
    in
    widely used code lacks a factor 2); DEIS: Zhang, Chen, 2022, arXiv:2204.13902, eq. 15; iPNDM: the same, section 4; PLMS: Liu et al.,
    2022, arXiv:2202.09778, eq. 9; LMS: Karras et al., 2022, arXiv:2206.00364 coordinates; UniPC: Zhao et al., 2023, arXiv:2302.04867,
    algorithms 5-8; SA-Solver: Xue et al., 2023, arXiv:2309.05019, algorithm 1.
    """

    prediction: Kind = setting("x0", "what is interpolated")
    variable: Variable = setting("log_snr", "what it is a polynomial of")
    order: int = setting(2, "predictions the polynomial goes through", low=1, high=5)
    rule: Literal["exact", "bh1", "bh2"] = setting("bh2", "weight of a single difference: its integral, or B(h)/2 of the papers")
    corrector: bool = setting(False, "make the last step again with the new prediction")
    noise: float = setting(0.0, "tau: 0 the probability flow, 1 the reverse SDE", low=0.0, high=2.0)

    def __post_init__(self) -> None:
        problems: list[str] = []
        if self.noise and self.prediction != "x0":
            problems.append(
                f"noise: got {self.noise} with prediction {self.prediction}; the SDE's steps stay bounded for prediction x0 only"
            )
        if self.rule != "exact" and self.prediction == "flow" and self.order > 1:
            problems.append(f"rule: got {self.rule} with prediction flow, whose h is infinite at the data; use exact")
        check(self, problems)

    @property
    def convergence(self) -> int:
        """The predictions in the polynomial, with the corrector's where the variable is the log-SNR (in others it falls 0.1 to 0.3 short);
        at most 2 where unequal rows are taken for equal.
        """
        points = self.order + int(self.corrector and self.variable == "log_snr")
        return 1 if self.noise else min(points, 2) if self.variable == "index" else points

    @property
    def least(self) -> int:
        """`order`: with fewer steps the polynomial would never be used."""
        return self.order

    @property
    def draws(self) -> int:
        """One with noise > 0."""
        return int(self.noise > 0)

    def plan(self, model: Model, times: torch.Tensor) -> Plan:
        """Columns c_x0, c_eps, one for each remembered prediction, newest first, std."""
        at = instants(model.process, times)
        steps = len(times)
        ahead = _Weights(self, model.process, at).table(0)  # of the step k -> k + 1
        alpha, c_eps, std = held(at.take(slice(1, None)), at.take(slice(None, -1)), self.noise)
        share_x0, share_eps = SHARES[self.prediction]
        if self.corrector and steps > 1:
            gain = keep(at.take(slice(2, None)), at.take(slice(1, -1)), self.prediction, self.noise)
            gain = torch.where(gain.isfinite(), gain, 0.0)[:, None]
            again = _Weights(self, model.process, at).table(1)[:-1]  # of the same steps, with the prediction at k + 1: newest first
            again[:, 1:] -= ahead[:-1, :-1]
            ahead[1:] += gain * again
        c_x0, c_eps = alpha + share_x0 * ahead[:, 0], c_eps + share_eps * ahead[:, 0]
        return Plan(at, torch.cat([torch.stack([c_x0, c_eps], 1), ahead[:, 1 : 1 + self.memory], std[:, None]], 1))

    @property
    def memory(self) -> int:
        """How many predictions are remembered beside the present one."""
        return self.order if self.corrector else self.order - 1

    def init(self, x: torch.Tensor) -> State:
        """No predictions yet: zeros, with coefficients of zero."""
        return tuple(torch.zeros_like(x) for _ in range(self.memory))

    def step(self, model: Model, x: torch.Tensor, row: Row, state: State, z: torch.Tensor | None) -> tuple[torch.Tensor, State, Prediction]:
        """One step from the prediction at x and those remembered."""
        prediction = model(x, row.now)
        c_x0, c_eps, *past, std = row.coefficients
        x = (c_x0 * prediction.x0).addcmul(c_eps, prediction.eps)
        for c, m in zip(past, state, strict=True):
            x = x.addcmul(c, m)
        if z is not None:
            x = x.addcmul(std, z)
        return x, (known(prediction, self.prediction), *state)[: len(state)], prediction


def known(prediction: Prediction, kind: Kind) -> torch.Tensor:
    """m of a prediction."""
    if kind == "flow":
        return prediction.eps - prediction.x0
    return prediction.x0 if kind == "x0" else prediction.eps


@dataclass(frozen=True)
class _Weights:
    """Tables (steps, order + 1) of what a step adds to the one that holds the newest prediction; columns are predictions, newest first."""

    sampler: Multistep
    process: Process
    at: At

    def table(self, newer: int) -> torch.Tensor:
        """newer = 0: the polynomial through predictions k, k - 1, ...; newer = 1: through k + 1 as well, the corrector's."""
        sampler, steps = self.sampler, len(self.at.t) - 1
        out = torch.zeros(steps, sampler.order + 1, dtype=torch.float64)
        k = torch.arange(steps)
        regular = sampler.prediction == "flow" and sampler.variable == "level"
        first = int(not regular and bool((self.at.alpha == 0).any()))  # alpha = 0 has no place in the other coordinates
        held_points = (k + 1 - first).clamp(min=1, max=sampler.order)
        if sampler.variable == "log_snr":
            held_points[-1] = 1  # infinite at `clean`
        for points in range(1, sampler.order + 1):
            rows = k[(held_points == points) & (k >= first * newer) & (k < steps - newer)]
            if len(rows) and points + newer > 1:
                out[rows, : points + newer] = self._rows(rows, points, newer)
        return out

    def _rows(self, rows: torch.Tensor, points: int, newer: int) -> torch.Tensor:
        sampler = self.sampler
        t, s = self.at.take(rows), self.at.take(rows + 1)
        nodes = self.at.take(rows[:, None] + newer - torch.arange(points + newer))
        whole = total(s, t, sampler.prediction, sampler.noise)
        if points + newer == 2 and sampler.rule != "exact":
            w = self._single(s, t, nodes, newer, whole)
        else:
            w = weights(self.process, s, t, nodes, sampler.prediction, sampler.variable, sampler.noise, newer)
        w[:, newer] -= whole  # beside the step that holds the newest prediction known at its start
        return w

    def _single(self, s: At, t: At, nodes: At, newer: int, whole: torch.Tensor) -> torch.Tensor:
        """B(h)/2 for the difference of two predictions, scaled to the distance of the nodes."""
        half = whole / 2
        if self.sampler.rule == "bh1":
            h = (s.log_snr - t.log_snr) / 2 * (1.0 + self.sampler.noise**2)
            half = torch.where(s.sigma == 0, half, h * (s.alpha if self.sampler.prediction == "x0" else -s.sigma) / 2)
        if newer:
            return torch.stack([half, whole - half], 1)
        before = -half  # equal rows
        if self.sampler.variable != "index":
            v_s, v_t, v = (coordinate(at, self.sampler.variable) for at in (s, t, nodes))
            before = half * (v_s - v_t) / (v[:, 1] - v_t)
        return torch.stack([whole - before, before], 1)
