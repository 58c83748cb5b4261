"""Classifier guidance: a classifier that was trained on noisy data says which way the class lies."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ddpm.denoiser import Clock, Codec, Cond, Denoiser, Prediction
from ddpm.errors import ConfigError
from ddpm.guidance.guided import Guided
from ddpm.process import At, Process

REACH = 10.0  # sigma/alpha; with 1 the network learns too little where there is much noise, and guides worse


class Classifier(nn.Module, ABC):
    """p(y | x_t): (x, at) -> logits (B, classes), x (B, *shape) in the space diffused in."""

    process: Process
    shape: tuple[int, ...]
    classes: int
    codec: Codec | None = None

    @abstractmethod
    def forward(self, x: Tensor, at: At) -> Tensor:
        """log p(y | x_t) up to a constant of each sample, (B, classes)."""

    def gradient(self, x: Tensor, at: At, label: Tensor) -> Tensor:
        """grad_x log p(label | x_t), shaped as x; label (B,). Gradients are switched on within, and only there."""

        def chosen(x: Tensor) -> Tensor:
            return self(x, at).log_softmax(-1).gather(1, label[:, None]).sum()

        return torch.func.grad(chosen)(x)


class NetworkClassifier(Classifier):
    """log p(y | x_t) = prior_y + h network(x / std, clock)_y, std: x's deviation for data of unit variance, h = `signal_share` of REACH.

    network: (x (B, *shape), c_noise (B,)) -> (B, classes). names: of the classes, in order of id. prior: learned, up to a constant.
    h is 1 up to sigma/alpha of about REACH and falls as alpha/sigma beyond, as the gradient does by Bayes' rule: there a gradient moves x0
    by sigma^2/alpha, and the errors of a trained one, which do not fall, would push it without bound.
    """

    def __init__(
        self, network: nn.Module, process: Process, clock: Clock, codec: Codec, shape: tuple[int, ...], names: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.network, self.process, self.clock, self.codec, self.shape, self.names = network, process, clock, codec, shape, names
        self.classes, self.prior = len(names), nn.Parameter(torch.zeros(len(names)))

    def forward(self, x: Tensor, at: At) -> Tensor:
        """One network call, in the network's own precision; logits in x's."""
        own = next(iter(self.network.parameters()), self.prior).dtype
        c_noise, share = self.clock(at).reshape(-1).expand(len(x)), self.process.signal_share(at, REACH).reshape(-1, 1)
        return self.prior.to(x.dtype) + share * self.network((x / self.process.prior_std(at)).to(own), c_noise.to(own)).to(x.dtype)


class ClassifierGuided(Guided):
    """eps = eps(null) - scale sigma grad_x log p(y | x_t), x0 to match: a call of the unconditional model, a pass through the classifier
    and back.

    scale 1: the conditional model, were both exact (Bayes); 0: the unconditional one; s of the paper. cond["class"] (B,) is what is asked
    for; the denoiser is called with all conditions hidden, so one trained without labels will do. interval, rescale and what is refused:
    see `Guided`; outside the interval the scale is 1, as everywhere, so the cost is the same. A classifier of another shape, schedule,
    codec or number of classes is refused too.

    Reference: Dhariwal, Nichol, 2021, arXiv:2105.05233, algorithm 2 and eq. 14.
    """

    def __init__(
        self, denoiser: Denoiser, classifier: Classifier, scale: float, *, interval: tuple[float, float] | None = None, rescale: float = 0.0
    ) -> None:
        super().__init__(denoiser, scale, interval=interval, rescale=rescale)
        pairs = {
            "shape": (denoiser.shape, classifier.shape),
            "schedule": (denoiser.process.schedule, classifier.process.schedule),
            "codec": (denoiser.codec, classifier.codec),
            "classes": (denoiser.classes or classifier.classes, classifier.classes),
        }
        problems = [
            f"{name}: the classifier's is {other}, this model's {own}; train it for this model: ddpm classifier RUN"
            for name, (own, other) in pairs.items()
            if own != other
        ]
        if problems:
            raise ConfigError.of(problems)
        self.classifier, self.classes = classifier, classifier.classes
        if self.conditions is not None:
            self.conditions = self.conditions | {"class"}  # the classifier's, where the model knows none

    def plain(self) -> Denoiser:
        """Itself: scale 1 needs the classifier too."""
        return self

    def rest(self, x: Tensor, at: At, cond: Cond) -> Prediction:
        """All conditions hidden."""
        return self.denoiser(x, at, self.null(cond))

    def parts(self, x: Tensor, at: At, cond: Cond) -> tuple[Prediction, Prediction]:
        """(tilted towards the class, unconditional); ConfigError where no class is asked for."""
        if not cond or "class" not in cond:
            raise ConfigError(f"guidance {self.scale}: no class is asked for; name classes, or leave guidance out")
        rest = self.rest(x, at, cond)
        gradient = self.classifier.gradient(x, at, cond["class"])
        if "null" in cond:
            gradient = torch.where(cond["null"].reshape(-1, *[1] * (x.ndim - 1)), 0.0, gradient)
        x0, eps = self.process.tilted(rest.x0, rest.eps, gradient, at)
        return Prediction(x0, eps, rest.variance), rest
