"""Denoisers: the only place where a network, its process and its parameterization meet, and what a checkpoint stores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ddpm.denoiser.cascade import Base
from ddpm.denoiser.clock import Clock
from ddpm.denoiser.codec import Codec
from ddpm.denoiser.given import Given
from ddpm.denoiser.latents import LatentCodec
from ddpm.denoiser.parameterization import Parameterization, Prediction, V, legal
from ddpm.denoiser.serving import frozen
from ddpm.denoiser.student import Student
from ddpm.errors import ConfigError
from ddpm.networks.autoencoder import Autoencoder
from ddpm.networks.encoders import EncoderSettings
from ddpm.process import At, Process

Cond = Mapping[str, Tensor] | None
# what a sample is told beside what is asked for; the first five are supplied in training and by `sample`
UNASKED = frozenset({"x0", "augment", "guidance", "low", "low_noise", "mask"})


def asked(cond: Cond) -> bool:
    """Whether a condition says what is asked for."""
    return bool(cond) and not cond.keys() <= UNASKED


class Residuals(NamedTuple):
    """Measured E|x0 - x0_hat|^2 per entry at rising log-SNRs."""

    log_snr: tuple[float, ...]
    value: tuple[float, ...]


@runtime_checkable  # so that tests can check annotations at run time
class Model(Protocol):
    """All a sampler sees: a denoiser with its condition bound."""

    @property
    def meaning(self) -> str:
        """What x0 stands for: "mean", E[x0 | x]; "step" or "map", of a distilled `Student`."""
        ...

    @property
    def process(self) -> Process:
        """The process the predictions belong to."""
        ...

    def __call__(self, x: Tensor, at: At) -> Prediction:
        """x (B, *D) at an instant -> x0 and eps."""
        ...

    def residual(self, at: At) -> Tensor:
        """E|x0 - E[x0|x_t]|^2 per entry at the instant, for analytic variances."""
        ...


class Denoiser(nn.Module, ABC):
    """(x, at, cond) -> Prediction; x (B, *D), at broadcast over it, cond a mapping of (B, ...) tensors or None."""

    meaning: str = "mean"  # what x0 stands for; "step", "map": see `Student`
    times: tuple[float, ...] = ()  # the only instants it may be asked at, falling; empty: any
    needs_grad: ClassVar[bool] = False
    self_condition: bool = False  # whether cond["x0"], its earlier prediction (B, *D), improves the next one; without it: zeros
    process: Process
    parameterization: Parameterization = V()  # the basis losses compare in
    log_snr_range: tuple[float, float] = (-float("inf"), float("inf"))  # where the predictions can be trusted
    shape: tuple[int, ...]  # D
    conditions: frozenset[str] | None = None  # what it may be asked for under; None: not known
    classes: int = 0  # of the condition "class"; 0: none, or not known
    codec: Codec | None = None  # None: the data are diffused as they are
    base: Base | None = None  # what draws the smaller samples it enlarges, where it does
    text: EncoderSettings | None = None  # what makes the condition "tokens", where it takes it

    @abstractmethod
    def forward(self, x: Tensor, at: At, cond: Cond = None) -> Prediction:
        """x0 and eps with alpha x0 + sigma eps = x."""

    @abstractmethod
    def residual(self, at: At) -> Tensor:
        """E|x0 - E[x0|x_t]|^2 per entry, shaped as at.t; ConfigError where it is not known."""

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Of one sample in the data's own units."""
        return self.shape

    def take_after(self, other: Denoiser) -> None:
        """Be of the same data, process and meaning as another: for those that wrap one."""
        self.process, self.parameterization, self.log_snr_range = other.process, other.parameterization, other.log_snr_range
        self.shape, self.codec, self.classes, self.self_condition = other.shape, other.codec, other.classes, other.self_condition
        self.meaning, self.times, self.base, self.text = other.meaning, other.times, other.base, other.text
        self.conditions = other.conditions

    def null(self, cond: Cond) -> Cond:
        """The condition that says nothing: the same mapping with `null` set for every sample."""
        if not cond:
            return cond
        some = next(iter(cond.values()))
        return {**cond, "null": torch.ones(len(some), dtype=torch.bool, device=some.device)}

    def within(self, ratios: tuple[float, float]) -> Denoiser:
        """What to call where every sigma/alpha lies within [least, most]: itself, unless something cheaper says the same there."""
        return self

    def bind(self, cond: Cond = None) -> BoundModel:
        """The model a sampler sees: this denoiser at one condition."""
        return BoundModel(self, cond)

    def score(self, x: Tensor, at: At, cond: Cond = None) -> Tensor:
        """grad_x log p_t(x) = -eps/sigma. Reference: Song et al., 2021, arXiv:2011.13456, eq. 7."""
        return -self(x, at, cond).eps / at.sigma


class BoundModel:
    """A denoiser with its condition bound; see `Model`."""

    def __init__(self, denoiser: Denoiser, cond: Cond) -> None:
        self.denoiser, self.cond = denoiser, cond
        self.meaning, self.needs_grad = denoiser.meaning, denoiser.needs_grad

    @property
    def process(self) -> Process:
        """The denoiser's process."""
        return self.denoiser.process

    def __call__(self, x: Tensor, at: At) -> Prediction:
        """The denoiser's prediction under the bound condition."""
        return self.denoiser(x, at, self.cond)

    def residual(self, at: At) -> Tensor:
        """The denoiser's residual moment."""
        return self.denoiser.residual(at)


class NetworkDenoiser(Denoiser):
    """A network that predicts F from c_in x, a clock reading and a condition. Refuses illegal pairs of schedule and parameterization.

    network: (x, c_noise (B,), cond) -> (B, C, *axes), or (B, 2C, *axes) with a learned variance, whose second half f gives v = (f + 1)/2
    (Nichol, Dhariwal, 2021, arXiv:2102.09672, eq. 15). conditions: the keys the network was made for; called without any, it is told that
    all are hidden. classes: how many ids the condition "class" may have. self_condition: the network takes cond["x0"], which is then always
    there. augmented: entries of cond["augment"], likewise; zeros: not augmented. masked: channels of cond["mask"], likewise; ones:
    nothing is missing. guided: the network takes cond["guidance"] (B,), the scale
    of classifier-free guidance it imitates; ones: none. student: what distillation made of it. through: the autoencoder in whose latents it
    diffuses, and the codec of the data that takes; `codec` is then that of the latents. base: the network takes cond["low"] and
    cond["low_noise"], a sample of this denoiser enlarged, which `sample` draws first. given: what cond["image"] is made of, where it is
    made of the sample. text: the encoder that made cond["tokens"]. vector_codec: what brings cond["vector"], in the data's units, to mean 0
    and deviation 1 before the network sees it; None: nothing.

    cond["mask"] (B, 1 or C, *axes), where given, is true where an entry is there. The others are 0 in the space diffused in, and known to
    be: the network sees zeros there, the prediction is x0 = 0 and eps = x/sigma, so that no loss counts them and every sampler ends at 0.

    Reference: self_condition: Chen, Zhang, Hinton, 2022, arXiv:2208.04202, section 3.2; augmented: Karras et al., 2022, arXiv:2206.00364,
    appendix F.2.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        parameterization: Parameterization,
        clock: Clock,
        codec: Codec,
        shape: tuple[int, ...],
        *,
        learned_variance: bool = False,
        conditions: Collection[str] = (),
        classes: int = 0,
        self_condition: bool = False,
        augmented: int = 0,
        masked: int = 0,
        guided: bool = False,
        student: Student | None = None,
        through: tuple[Autoencoder, Codec] | None = None,
        base: Base | None = None,
        given: Given | None = None,
        text: EncoderSettings | None = None,
        vector_codec: Codec | None = None,
    ) -> None:
        super().__init__()
        reason = legal(process.schedule, parameterization)
        if reason:
            raise ConfigError(f"parameterization: {reason}")
        self.network, self.process, self.parameterization, self.clock = network, process, parameterization, clock
        self.autoencoder = None if through is None else frozen(through[0])
        self.stand_on(base)
        self.codec: Codec = codec  # pyright: ignore[reportIncompatibleVariableOverride]  (a network's is never None)
        if through is not None and self.autoencoder is not None:
            self.codec = LatentCodec.through(self.autoencoder, through[1], codec)
        self.shape, self.learned_variance, self.classes = shape, learned_variance, classes
        self.conditions: frozenset[str] = frozenset(conditions)  # pyright: ignore[reportIncompatibleVariableOverride]  (always known)
        self.self_condition, self.augmented, self.guided, self.student = self_condition, augmented, guided, student
        self.given, self.masked = given, masked
        self.text, self.vector_codec = text, vector_codec
        if student is not None:
            self.meaning, self.times = student.meaning, student.times
        slack = 1e-6  # a plan's instants are recomputed from the grid
        self.log_snr_range = (process.log_snr(1.0).item() - slack, process.log_snr(process.schedule.first).item() + slack)
        self.residuals: Residuals | None = None

    def forward(self, x: Tensor, at: At, cond: Cond = None) -> Prediction:
        """One network call; the change of basis in x's precision."""
        c_in = self.parameterization.scale(at)
        c_noise = self.clock(at).reshape(-1).expand(len(x))
        cond = self._told(x, cond)
        # the process may run in float64, the network keeps its own precision
        own = next(iter((*self.network.parameters(), *self.network.buffers())), x).dtype
        there = None if not cond or "mask" not in cond else cond["mask"].to(torch.bool)
        shown = c_in * x if there is None else c_in * x * there
        output = self.network(shown.to(own), c_noise.to(own), cond).to(x.dtype)
        variance = None
        if self.learned_variance:
            output, raw = output.chunk(2, dim=1)
            variance = (raw + 1.0) / 2.0 if self.student is None else None  # distillation leaves this half untrained
        said = self.parameterization.predict(output, x, at, self.process, variance)
        if there is None:
            return said
        return said._replace(x0=said.x0 * there, eps=torch.where(there, said.eps, x / at.sigma))

    def _told(self, x: Tensor, cond: Cond) -> Cond:
        """The condition as the network takes it: with what may be left out, and the vector as it was trained on."""
        if self.conditions and not asked(cond):
            cond = {**(cond or {}), "null": torch.ones(len(x), dtype=torch.bool, device=x.device)}
        if self.self_condition and not (cond and "x0" in cond):
            cond = {**(cond or {}), "x0": torch.zeros_like(x)}
        if self.augmented and not (cond and "augment" in cond):
            cond = {**(cond or {}), "augment": x.new_zeros(len(x), self.augmented)}
        if self.masked and not (cond and "mask" in cond):
            cond = {**(cond or {}), "mask": torch.ones((len(x), self.masked, *x.shape[2:]), dtype=torch.bool, device=x.device)}
        if self.guided and not (cond and "guidance" in cond):
            cond = {**(cond or {}), "guidance": x.new_ones(len(x))}
        if self.base is not None and not (cond and "low" in cond):
            raise ConfigError('cond["low"]: this model enlarges smaller samples and was given none; ddpm.sample draws them itself')
        codec, vector = self.vector_codec, cond.get("vector") if cond else None
        if codec is None or vector is None or vector.shape[1:] != (len(codec.shift),):  # of another length: the network refuses it
            return cond
        return {**(cond or {}), "vector": codec.encode(vector)}

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Of one sample in the data's own units: `shape`, unless it diffuses in latents."""
        return self.shape if self.autoencoder is None else self.autoencoder.shape

    def stand_on(self, base: Base | None) -> None:
        """Take this for what draws the smaller samples; its weights become part of the state, and are trained no more."""
        self.base_denoiser = None if base is None else frozen(base.denoiser)
        self.base = base

    def recode(self, codec: Codec) -> None:
        """Take another normaliser of the space diffused in; its autoencoder, where it has one, stays."""
        old = self.codec
        latent = codec.latent if isinstance(codec, LatentCodec) else codec
        if isinstance(old, LatentCodec):
            codec = LatentCodec.through(old.autoencoder, old.pixels, latent)
        self.codec = codec  # pyright: ignore[reportIncompatibleVariableOverride]

    def residual(self, at: At) -> Tensor:
        """The measured E|x0 - x0_hat|^2 per entry, interpolated linearly in log-SNR, constant beyond the measured levels."""
        if self.residuals is None:
            raise ConfigError(
                "variance 'analytic': this model holds no residual moments; they are measured on held-out data while it trains"
            )
        levels, values = (torch.tensor(column, dtype=torch.float64) for column in self.residuals)
        wanted = at.log_snr.to(levels).clamp(levels[0], levels[-1])
        right = torch.searchsorted(levels, wanted.contiguous()).clamp(1, len(levels) - 1)
        share = (wanted - levels[right - 1]) / (levels[right] - levels[right - 1])
        return torch.lerp(values[right - 1], values[right], share).to(at.t)
