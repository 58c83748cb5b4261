"""Three Gaussians, one a class, with exact denoisers and the exact classifier of their noisy mixture; every kind of guidance round them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from worlds import covariance, unit

from ddpm.denoiser import Denoiser, Mixture, Prediction
from ddpm.errors import ConfigError
from ddpm.guidance import AutoGuided, Classifier, ClassifierFree, ClassifierGuided, Guided
from ddpm.process import At, Process, Schedule

WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
Kinds = dict[str, Callable[..., Guided]]
KINDS = ("free", "classifier", "auto")


class ByClass(Denoiser):
    """Three Gaussians: class k is the k-th, no class all of them, both exact."""

    def __init__(self, process: Process, shape: tuple[int, ...] = (2,)) -> None:
        super().__init__()
        size = math.prod(shape)
        means, spread = unit(3, *shape, seed=9), torch.stack([0.3 * covariance(size, seed=k) + 0.05 * torch.eye(size) for k in range(3)])
        self.every = Mixture(process, means, spread, WEIGHTS)
        self.each = nn.ModuleList([Mixture(process, means[k : k + 1], spread[k : k + 1]) for k in range(3)])
        self.process, self.shape, self.classes, self.calls = process, shape, 3, []

    def forward(self, x: Tensor, at: At, cond: Any = None) -> Prediction:
        """The mean of the class asked for, or of all where `null` is set."""
        self.calls.append(len(x))
        x0, eps, _ = self.every(x, at)
        for k, one in enumerate(self.each):
            asked = (cond["class"] == k) & ~cond.get("null", torch.zeros(len(x), dtype=torch.bool)) if cond else torch.zeros(len(x)) > 0
            chosen, here = asked.reshape(-1, *[1] * (x.ndim - 1)), one(x, at)
            x0, eps = torch.where(chosen, here.x0, x0), torch.where(chosen, here.eps, eps)
        return Prediction(x0, eps)

    def residual(self, at: At) -> Tensor:
        """Not known."""
        raise ConfigError("no closed form")


class ExactClassifier(Classifier):
    """log p(k | x_t) of the same Gaussians, by Bayes' rule."""

    def __init__(self, truth: ByClass) -> None:
        super().__init__()
        self.truth, self.process, self.shape, self.classes = truth, truth.process, truth.shape, 3

    def forward(self, x: Tensor, at: At) -> Tensor:
        """Log joint densities."""
        return torch.stack([WEIGHTS[k].log() + one.log_density(x, at) for k, one in enumerate(self.truth.each)], 1)  # type: ignore[operator]


def world(schedule: Schedule, shape: tuple[int, ...] = (2,)) -> tuple[ByClass, Tensor, At, dict[str, Tensor]]:
    """The truth, x (6, *shape) at six instants, the instants, and the classes asked for."""
    truth = ByClass(Process(schedule), shape)
    at = truth.process.at(
        torch.tensor([schedule.first, 0.3, 0.6, 0.8, 1.0, 0.5], dtype=torch.float64), like=torch.empty(6, *shape).double()
    )
    x = truth.process.perturb(unit(6, *shape, seed=1), unit(6, *shape, seed=2), at)
    return truth, x, at, {"class": torch.tensor([0, 1, 2, 0, 1, 2])}


def kinds(truth: ByClass) -> Kinds:
    """For each kind, scale and options -> the guided model; the weak model of autoguidance is a wider one."""
    weak = ByClass(truth.process, truth.shape)
    weak.every.means *= 1.3
    for one in weak.each:
        one.means *= 1.3  # type: ignore[operator]
    return {
        "free": lambda scale, **options: ClassifierFree(truth, scale, **options),
        "classifier": lambda scale, **options: ClassifierGuided(truth, ExactClassifier(truth), scale, **options),
        "auto": lambda scale, **options: AutoGuided(truth, weak, scale, **options),
    }
