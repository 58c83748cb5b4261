"""A noise schedule that learns: a monotone network of log-SNR whose draws give the bound the least variance, and its export as a table.

The variational bound in continuous time depends on the end points of the log-SNR alone, not on the path between them (Kingma et al., 2021,
section 5.1), so a schedule can only change how noisy its estimate is. The denoiser keeps its own process; a draw of the learned schedule is
a log-SNR, at which the denoiser is asked through `Process.time_of`.
"""

# torch leaves the functions of torch.special and torch.linalg and Tensor.tolist untyped; their results are annotated here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddpm.denoiser import Cond, Denoiser
from ddpm.objective.losses import Draws, Loss, target_error
from ddpm.objective.settings import LearnedSchedule
from ddpm.process import LogSNRTable, Process, log_snr_ends


class Monotone(nn.Module):
    """share(t): a smooth strictly rising map of [0, 1] onto itself, share(0) = 0 and share(1) = 1 exactly; the identity, nearly, at first.

    share = (g(t) - g(0)) / (g(1) - g(0)), g(t) = w1 t + mean_j w3_j sigmoid(w2_j t - b_j), all w positive. Computed in float64 on the host.

    Reference: Kingma et al., 2021, arXiv:2107.00630, appendix H and the published code (there g = l1(t) + l3(sigmoid(l2(2t - 1))) with
    absolute values of the weights). Here the weights are exponentials, multiplied by `gain` so that ordinary learning rates move them,
    and the sigmoids start as an even cover of [0, 1].
    """

    def __init__(self, features: int = 32, gain: float = 10.0) -> None:
        super().__init__()
        self.gain = gain
        place = (torch.arange(features) + 0.5) / features
        self.linear = nn.Parameter(torch.zeros(1))
        self.height = nn.Parameter(torch.zeros(features))
        self.steepness = nn.Parameter(torch.zeros(features))
        self.offset = nn.Parameter(place / gain)
        self.sharpness = float(features)

    def _raw(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """g(t) and g'(t), (B,)."""
        linear, height, steepness, offset = (
            (self.gain * part).cpu().double() for part in (self.linear, self.height, self.steepness, self.offset)
        )
        slope = self.sharpness * steepness.exp()
        rise = (slope * (t[:, None] - offset)).sigmoid()
        g = linear.exp() * t + (height.exp() * rise).mean(1)
        return g, linear.exp() + (height.exp() * slope * rise * (1.0 - rise)).mean(1)

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """t (B,) float64 in [0, 1] -> share and d share/dt, (B,)."""
        ends, _ = self._raw(torch.tensor([0.0, 1.0], dtype=torch.float64))
        g, slope = self._raw(t)
        width = ends[1] - ends[0]
        return (g - ends[0]) / width, slope / width


class Drawn(NamedTuple):
    """Instants of the denoiser's process t (B,), their density p(t) in its time, and log p of the log-SNR as a function of the network."""

    t: Tensor
    density: Tensor
    log_density: Tensor


class LearnedScheduleLoss(Loss):
    """See `LearnedSchedule`."""

    def __init__(self, settings: LearnedSchedule) -> None:
        super().__init__()
        self.settings = settings
        self.schedule = Monotone(settings.features)

    def log_snr(self, u: Tensor, process: Process) -> tuple[Tensor, Tensor]:
        """The learned schedule at times u (B,) in [0, 1]: log-SNR from the cleanest instant's to that of t = 1, and its slope's size."""
        low, high = log_snr_ends(process)
        share, slope = self.schedule(u)
        return high - (high - low) * share, (high - low) * slope

    def draw(self, u: Tensor, process: Process) -> Drawn:
        """Uniforms (B,) as instants. The density of a log-SNR is 1/|slope| at the time the schedule reaches it; moving the network moves
        that time too, which one Newton step from the present time, exact to first order, tells autograd.
        """
        u = u.to(torch.float64).cpu()
        with torch.no_grad():
            log_snr, slope = self.log_snr(u, process)
        again, _ = self.log_snr(u, process)
        moved = u + (again - log_snr) / slope
        _, size = self.log_snr(moved, process)
        t = process.time_of(log_snr).clamp(min=process.schedule.first)
        return Drawn(t, process.log_snr_rate(process.at(t)) / slope, -size.log())

    def forward(self, denoiser: Denoiser, x0: Tensor, cond: Cond, draws: Draws) -> Tensor:
        """The weighted loss over the density drawn from; its gradient for the network of the schedule is that of log E[loss^2]."""
        drawn = self.draw(draws.u, denoiser.process)
        error, determinant = target_error(denoiser, x0, cond, drawn.t, draws.eps)
        factor = self.settings.weighting.on_target(denoiser.process.at(drawn.t), denoiser.process, determinant)
        loss = (factor / drawn.density).to(error) * error
        if not self.training:
            return loss
        square = loss.detach().cpu().double() ** 2
        pull = -drawn.log_density * square / square.mean().clamp(min=1e-300)
        return loss + (pull - pull.detach()).to(loss)

    @torch.no_grad()
    def table(self, process: Process, knots: int = 1024) -> LogSNRTable:
        """The learned schedule as a table of log-SNR at even times, its ends and its T those of the process it was learned on."""
        log_snr, _ = self.log_snr(torch.linspace(0.0, 1.0, knots, dtype=torch.float64), process)
        values: list[float] = log_snr.tolist()
        return LogSNRTable(log_snr=tuple(values), t_min=process.schedule.first, T=process.schedule.T)
