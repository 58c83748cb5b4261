"""The probability flow solved to a tolerance: Dormand and Prince's embedded Runge-Kutta pair, each sample with its own steps.

There is no grid, so `Adaptive` is no member of the family of samplers: `sample(..., sampler=Adaptive())` takes it, `trajectory` does not.
"""

# torch leaves the functions of torch.special and torch.linalg and Tensor.tolist untyped; their results are annotated here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ddpm.config import check, setting
from ddpm.denoiser.student import refusal
from ddpm.errors import ConfigError
from ddpm.process import At, Process

if TYPE_CHECKING:
    import torch

    from ddpm.denoiser import Model
else:
    from ddpm.lazy import torch

NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)  # where stages 2 to 7 stand within a step
STAGES = (  # a row a stage: weights of the slopes so far; the last row is the fifth-order solution, whose slope opens the next step
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
FOURTH = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)  # the embedded fourth-order solution
SAFETY, SLOWEST, FASTEST = 0.9, 0.2, 5.0  # a step is aimed at 0.9 of what the error allows and changes at most fivefold

Slope = Callable[["torch.Tensor", At], tuple["torch.Tensor", "torch.Tensor"]]


class Solution(NamedTuple):
    """Where an integration ended: y (B, *D), the integrals of what went along (B, E), dy/du there, and network calls (B,)."""

    y: torch.Tensor
    extra: torch.Tensor
    slope: torch.Tensor
    calls: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """Embedded Runge-Kutta of order 5(4) on dy/du = eps - x0, y = x/(alpha + sigma), u = sigma/(alpha + sigma), in either direction.

    A step is taken where the RMS over the sample's entries of error / (atol + rtol |y|) is at most 1, and tried again shorter elsewhere;
    each sample has its own step, so its result does not depend on the samples beside it. The first call aside, a step tried costs six.

    Reference: Dormand, Prince, 1980, "A family of embedded Runge-Kutta formulae", table 2 (RK5(4)7M); step control: Hairer, Norsett,
    Wanner, 1993, "Solving Ordinary Differential Equations I", section II.4.
    """

    rtol: float = setting(1e-4, "error allowed in a step, relative to the value", low=0.0, high=1.0)
    atol: float = setting(1e-4, "error allowed in a step where values are small", above=0.0, high=1.0)
    calls: int = setting(20_000, "network calls after which a sample is given up", low=7, high=1_000_000_000)

    def __post_init__(self) -> None:
        check(self)

    def solve(self, model: Model, x: torch.Tensor, start: At | float, stop: At | float) -> tuple[torch.Tensor, torch.Tensor]:
        """x (B, *D) at `start` carried to `stop`, and the network calls of each sample (B,); instants are times or At, () or (B,).

        The model is never called below the first trained instant (`Schedule.first`). `clean` as the stop: from there the predicted x0 is
        returned, which is one Euler step of this equation to u = 0. `clean` as the start: x is data, and x_t at the first instant is
        taken as its mean, alpha x. Raises ConfigError for a model that predicts no mean, and where `calls` do not suffice.
        """
        if model.meaning != "mean":
            raise ConfigError(f"sampler Adaptive: {refusal(model.meaning, walk=True)}")
        process = model.process
        first = process.at(process.schedule.first)
        begin, end = (moment if isinstance(moment, At) else process.at(moment) for moment in (start, stop))
        if bool((begin.sigma == 0).any()):
            x, begin = process.perturb(x, torch.zeros_like(x), first.like(x)), first
        cleaned = bool((end.sigma == 0).any())
        end = first if cleaned else end

        def slope(y: torch.Tensor, at: At) -> tuple[torch.Tensor, torch.Tensor]:
            prediction = model(process.straightened(at)[0] * y, at)
            return prediction.eps - prediction.x0, y.new_zeros(len(y), 0)

        with nullcontext() if getattr(model, "needs_grad", False) else torch.no_grad():
            ended = self.integrate(slope, process, x / process.straightened(begin.like(x))[0], begin, end)
        scale, u = process.straightened(end.like(x))
        return (ended.y - u * ended.slope if cleaned else scale * ended.y), ended.calls

    def integrate(self, slope: Slope, process: Process, y: torch.Tensor, start: At, stop: At) -> Solution:
        """dy/du = slope(y, at)[0] from `start` to `stop`, both with sigma > 0; slope(y, at)[1] (B, E) is integrated beside it, from 0.

        The tolerance holds for the entries of y and for the E integrals each. slope is given instants (B,) that broadcast over y.
        """
        shape, count = y.shape, len(y)
        u, end = (process.straightened(at)[1].to(dtype=torch.float64, device="cpu").expand(count).clone() for at in (start, stop))
        size = y[0].numel()

        def rate(state: torch.Tensor, at: At) -> torch.Tensor:
            flow, beside = slope(state[:, :size].reshape(shape), at.like(y))
            return torch.cat([flow.reshape(count, -1), beside], 1)

        bad = (~y.reshape(count, -1).isfinite().all(1)).nonzero().flatten()
        if len(bad):
            raise ConfigError(f"x: sample {int(bad[0])} is not finite ({len(bad)} of {count} are not); remove it")
        first = rate(y.reshape(count, -1), process.at_level(u))
        state = torch.cat([y.reshape(count, -1), y.new_zeros(count, first.shape[1] - size)], 1)
        reach = 0.01 * self._size(state, state, size) / self._size(first, state, size).clamp(min=1e-6)
        h = (end - u).sign() * torch.minimum((end - u).abs(), reach.clamp(min=1e-6))
        calls, retried = torch.ones(count, dtype=torch.int64), torch.zeros(count, dtype=torch.bool)
        while bool((u != end).any()):
            left = end - u
            last = h.abs() >= left.abs() * (1 - 1e-9)
            h = torch.where(last, left, h)
            arrival = torch.where(last, end, u + h)
            proposal, closing, gap = self._step(rate, process, state, first, u, h, arrival)
            error = self._size(gap, torch.maximum(state.abs(), proposal.abs()), size)
            active = u != end
            taken = (error <= 1.0) & active
            calls += 6 * active
            mask = taken.to(state.device)[:, None]
            state, first = torch.where(mask, proposal, state), torch.where(mask, closing, first)
            u = torch.where(taken, arrival, u)
            error = torch.where(error.isfinite(), error, torch.inf)
            factor = (SAFETY * error.clamp(min=1e-12) ** -0.2).clamp(SLOWEST, FASTEST)
            h = h * torch.where(retried, factor.clamp(max=1.0), factor)
            retried = active & ~taken
            self._give_up(calls, u, end)
        return Solution(state[:, :size].reshape(shape), state[:, size:], first[:, :size].reshape(shape), calls)

    def _step(
        self,
        rate: Callable[[torch.Tensor, At], torch.Tensor],
        process: Process,
        state: torch.Tensor,
        first: torch.Tensor,
        u: torch.Tensor,
        h: torch.Tensor,
        arrival: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The fifth-order proposal, the slope there, and its difference from the fourth-order one."""
        ats = process.at_level(torch.stack([u + node * h if node < 1 else arrival for node in NODES]))
        width = h.to(dtype=state.dtype).to(device=state.device)[:, None]
        slopes = [first]
        proposal = state
        for k, weights in enumerate(STAGES):
            proposal = state + width * sum((w * slope for w, slope in zip(weights, slopes, strict=True) if w), torch.zeros_like(state))
            slopes.append(rate(proposal, At(*(level[k] for level in ats))))
        gaps = [fifth - fourth for fifth, fourth in zip((*STAGES[-1], 0.0), FOURTH, strict=True)]
        return proposal, slopes[-1], width * sum((w * slope for w, slope in zip(gaps, slopes, strict=True) if w), torch.zeros_like(state))

    def _size(self, value: torch.Tensor, scale: torch.Tensor, size: int) -> torch.Tensor:
        """RMS of value / (atol + rtol |scale|) over the entries of y and over the integrals, the larger of the two, (B,) on the host."""
        squares = (value / (self.atol + self.rtol * scale.abs())) ** 2
        parts = [part.mean(1) for part in (squares[:, :size], squares[:, size:]) if part.shape[1]]
        return torch.stack(parts).amax(0).sqrt().to(dtype=torch.float64, device="cpu")

    def _give_up(self, calls: torch.Tensor, u: torch.Tensor, end: torch.Tensor) -> None:
        spent = (calls + 6 > self.calls) & (u != end)
        if bool(spent.any()):
            worst = int(spent.nonzero()[0])
            raise ConfigError(
                f"sampler Adaptive: sample {worst} stands at u = {u[worst].item():.3g}, on its way to {end[worst].item():.3g}, "
                f"after {int(calls[worst])} network calls; "
                "allow more calls, or loosen rtol and atol"
            )
