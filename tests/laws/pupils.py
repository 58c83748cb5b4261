"""What the laws of distillation stand on: denoisers with known answers, the exact map of a Gaussian, losses with a teacher at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from worlds import covariance, plain_codec, uniforms, unit

from ddpm.denoiser import Denoiser, NetworkDenoiser, Prediction, Student, V, default_clock, gaussian
from ddpm.distillation.segments import segment_end
from ddpm.networks.config import CondSpec, MLPConfig
from ddpm.networks.mlp import MLPBlock
from ddpm.objective import Draws
from ddpm.process import At, Process

COUNT = 64


class Answering(Denoiser):
    """A denoiser made of a function (x, at) -> x0."""

    def __init__(self, process: Process, answer: Callable[[Tensor, At], Tensor], student: Student | None = None) -> None:
        super().__init__()
        self.process, self.shape, self.answer = process, (2,), answer
        if student is not None:
            self.meaning, self.times = student.meaning, student.times

    def forward(self, x: Tensor, at: At, cond: Any = None) -> Prediction:
        """The answer, and the eps that goes with it."""
        x0 = self.answer(x, at)
        return Prediction(x0, self.process.noise(x, x0, at))

    def residual(self, at: At) -> Tensor:
        """Not known."""
        raise NotImplementedError


@dataclass
class Bell:
    """N(mean, covariance) in two dimensions, its denoiser, and the exact map: along the flow each coordinate of the basis keeps its z."""

    process: Process

    def __post_init__(self) -> None:
        self.mean, self.covariance = 0.5 * unit(2, seed=3), covariance(2, seed=4)
        self.exact = gaussian(self.process, self.mean, self.covariance)

    def map(self, x: Tensor, at: At) -> Tensor:
        """Where the flow through x ends."""
        return self.walked(x, at, self.process.clean)

    def walked(self, x: Tensor, at: At, end: At) -> Tensor:
        """Where the flow through x is at `end`."""
        values, basis = torch.linalg.eigh(self.covariance)
        alpha, sigma, a, s = (level.double().reshape(-1, 1) for level in (at.alpha, at.sigma, end.alpha, end.sigma))
        z = ((x.double() - alpha * self.mean) @ basis) / (alpha**2 * values + sigma**2).sqrt()
        return a * self.mean + (z * (a**2 * values + s**2).sqrt()) @ basis.T

    def jump(self, times: tuple[float, ...]) -> Callable[[Tensor, At], Tensor]:
        """(x, at) -> the x0 whose deterministic step leads to where the flow is at the end of the segment that `at` is in."""

        def answer(x: Tensor, at: At) -> Tensor:
            end = segment_end(self.process, times, at.t.double().flatten()).like(x)
            return self.process.landing(end, at, self.walked(x, at, end), x)

        return answer

    def data(self, count: int, seed: int = 0) -> Tensor:
        """Draws."""
        return self.exact.draw(unit(count, 2, seed=seed), torch.zeros(count, dtype=torch.long))


def drawn(count: int = COUNT, seed: int = 5) -> Draws:
    """All the randomness of a loss."""
    return Draws(uniforms(count, seed), unit(count, 2, seed=seed + 1), unit(count, 2, seed=seed + 2))


def taught(loss: Any, teacher: Denoiser) -> Any:
    """The loss with a teacher that is at hand."""
    loss.teacher.use(teacher)
    return loss


def network(process: Process, student: Student | None = None, *, seed: int = 0, **cond: Any) -> NetworkDenoiser:
    """A small network in float64, none of whose layers is zero."""
    torch.manual_seed(seed)
    net = MLPConfig(width=16, depth=1, dropout=0.0).build((2,), 1, CondSpec(**cond)).double()
    for name, parameter in net.named_parameters():
        if name.endswith(("layer2.weight", "head.weight")):
            nn.init.normal_(parameter, std=0.3)
    spec = CondSpec(**cond)
    return NetworkDenoiser(
        net, process, V(), default_clock(process.schedule), plain_codec(2), (2,), conditions=spec.keys, classes=spec.classes,
        guided=spec.guidance, student=student,
    )  # fmt: skip


def dropping(model: NetworkDenoiser) -> NetworkDenoiser:
    """The same in training mode, half of its hidden units dropped."""
    for part in model.modules():
        if isinstance(part, MLPBlock):
            part.dropout = 0.5
    return model.train()
