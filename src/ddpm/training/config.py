"""The settings of a training run: one frozen dataclass, read from flags and files, checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ddpm.config import check, setting
from ddpm.data.settings import DataSettings
from ddpm.denoiser.clock import CLOCKS, Clock
from ddpm.denoiser.given import GIVENS, Given
from ddpm.denoiser.parameterization import PARAMETERIZATIONS, Parameterization, PosteriorMean, V, legal
from ddpm.networks.config import AutoencoderConfig, MLPConfig, UNetConfig
from ddpm.objective.settings import LOSSES, Denoising, Hybrid, LossSettings, Stepwise, VariationalBound
from ddpm.objective.times import TIMES, Times
from ddpm.objective.weighting import WEIGHTINGS, Weighting
from ddpm.process import SCHEDULES, Cosine, Schedule
from ddpm.training.text import TextSettings
from ddpm.training.tricks import Tricks

FAMILIES: dict[type, tuple[type, ...]] = {
    Schedule: SCHEDULES,
    Parameterization: PARAMETERIZATIONS,
    Clock: CLOCKS,
    Given: GIVENS,
    LossSettings: LOSSES,
    Weighting: WEIGHTINGS,
    Times: TIMES,
}


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The optimizer, with a linear warm-up, an optional decay, and a bound on the gradient's norm.

    muon: orthogonalised momentum for matrices and kernels, AdamW for the rest. schedule-free: AdamW that averages its steps instead of
    making them smaller; it needs no decay and takes none.

    Reference: Karras et al., 2024, arXiv:2312.02696, appendix B (inverse-sqrt).
    """

    kind: Literal["adamw", "muon", "schedule-free"] = setting("adamw", "how gradients become steps", flag="optimizer")
    lr: float = setting(2e-4, "peak learning rate", above=0.0, below=10.0)
    warmup: int = setting(100, "steps over which the learning rate rises from 0", low=0)
    decay: Literal["none", "cosine", "linear", "inverse-sqrt"] = setting(
        "none", "how the learning rate falls after the warm-up: to 0 by the last step, or with the root of the steps, without an end"
    )
    decay_after: int = setting(1000, "step from which inverse-sqrt lets the learning rate fall", low=1)
    weight_decay: float = setting(0.0, "decoupled weight decay", low=0.0, below=1.0)
    beta1: float = setting(0.9, "averaging of gradients", low=0.0, below=1.0)
    beta2: float = setting(0.999, "averaging of squared gradients", low=0.0, below=1.0)
    momentum: float = setting(0.95, "averaging of gradients by muon, for its matrices", low=0.0, below=1.0)
    muon_lr: float = setting(1.0, "learning rate of muon's matrices, as a multiple of lr", above=0.0, below=1000.0)
    grad_clip: float = setting(1.0, "largest norm of the gradient; longer ones are scaled down", above=0.0)

    def __post_init__(self) -> None:
        problems: list[str] = []
        if self.kind == "schedule-free" and self.decay != "none":
            problems.append(f"decay: got {self.decay!r}; schedule-free takes none: its average does what a decay does")
        if self.kind == "schedule-free" and self.beta1 == 0.0:
            problems.append("beta1: got 0; schedule-free trains between the average and the newest weights, give a value in (0, 1)")
        check(self, problems)

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of step 0..steps-1."""
        import math

        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        share = min(1.0, max(0.0, (step - self.warmup) / max(1, steps - self.warmup)))
        if self.decay == "inverse-sqrt":
            return self.lr * warm / math.sqrt(max(1.0, step / self.decay_after))
        fall = {"none": 1.0, "linear": 1.0 - share, "cosine": 0.5 * (1.0 + math.cos(math.pi * share))}[self.decay]
        return self.lr * warm * fall


@dataclass(frozen=True, kw_only=True)
class CascadeSettings:
    """A stage of a cascade: the run that draws smaller samples, which this one enlarges; the two are sampled as one model.

    Reference: Ho et al., 2022, arXiv:2106.15282.
    """

    base: str | None = setting(None, "run folder of a model of the same data at a smaller size, whose samples are enlarged")
    base_noise: float = setting(0.4, "most noise laid on an enlarged sample in training, in the space diffused in", low=0.0, high=10.0)
    base_drawn: float = setting(0.1, "noise laid on it when samples are drawn", low=0.0, high=10.0)

    def __post_init__(self) -> None:
        usual = type(self)  # whose attributes are the defaults
        lost = [name for name in ("base_noise", "base_drawn") if self.base is None and getattr(self, name) != getattr(usual, name)]
        check(self, [f"{name}: is noise on the samples of a base, and there is none; name one with --base" for name in lost])


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything a training run is asked for; what is left out has a default, or is found from the data."""

    data: DataSettings = setting(DataSettings(), "", flat=True, group="data")
    out: str | None = setting(None, "run folder; none: runs/ and the name of the data", group="run")
    steps: int = setting(10_000, "optimizer steps in all; a larger number continues a finished run", low=1, high=1_000_000_000, group="run")
    batch: int = setting(128, "samples a step", low=1, high=1_000_000, group="run")
    accumulate: int = setting(1, "passes of `batch` samples whose gradients make one step", low=1, high=100_000, group="run")
    seed: int = setting(0, "all randomness follows from it", low=0, high=2**63 - 1, group="run")
    checkpoint_every: int = setting(1000, "steps between checkpoints", low=1, group="run")
    keep: int = setting(2, "checkpoints kept", low=1, group="run")
    keep_best: int = setting(
        0, "besides, so many checkpoints of lowest held-out loss are kept (ddpm sample RUN --step best)", low=0, group="run"
    )
    log_every: int = setting(50, "steps between lines of metrics.jsonl", low=1, group="run")
    evaluate_every: int = setting(500, "steps between measurements of the held-out loss", low=1, group="run")
    preview: int = setting(16, "samples drawn at each checkpoint; 0: none", low=0, high=4096, group="run")
    snapshots: int = setting(0, "steps between averages kept for ddpm ema, which makes any other length; 0: none", low=0, group="run")
    track: tuple[Literal["auto", "none", "tensorboard", "wandb"], ...] = setting(
        ("auto",),
        "where the log goes beside metrics.jsonl: none, tensorboard, wandb, several with commas; auto: TensorBoard where installed",
        group="run",
    )
    rollback: int = setting(
        3, "times a run whose loss has leapt goes back to a checkpoint and on with other batches; 0: never", low=0, high=1000, group="run"
    )
    monitor: bool = setting(
        True, "at evaluations, measure the gradient at every noise level, and at previews how far samples are from the data", group="run"
    )
    init: str | None = setting(None, "run folder or .safetensors file whose weights training starts from", group="run")
    autoencoder: str | None = setting(
        None,
        "folder of an autoencoder (ddpm autoencode, or an AutoencoderKL of diffusers): train in its latents; samples are as the data are",
        group="data",
    )
    accept_data_change: bool = setting(False, "resume although the data are not those the run began with", group="run")

    schedule: Schedule = setting(Cosine(), "noise schedule", group="model")
    parameterization: Parameterization = setting(V(), "what the network predicts", group="model")
    clock: Clock | None = setting(None, "how the network is told the noise level; none: what suits the schedule", group="model")
    loss: LossSettings = setting(Denoising(), "what is minimised", group="model")
    network: UNetConfig | MLPConfig | None = setting(
        None, "network; none: UNet for pictures, signals and volumes, MLP for tables", group="model"
    )
    conditional: bool = setting(True, "learn from labels, vectors and captions where the data have them", group="model")
    given: Given | None = setting(
        None, "draw samples from a part of what they say: small (super-resolution), grey (colourisation); none: no", group="model"
    )
    cond_dropout: float = setting(
        0.1, "share of samples whose condition is hidden, so that guidance works", low=0.0, high=1.0, group="model"
    )

    text: TextSettings = setting(TextSettings(), "", flat=True, group="text")
    tricks: Tricks = setting(Tricks(), "", flat=True, group="tricks")
    cascade: CascadeSettings = setting(CascadeSettings(), "", flat=True, group="cascade")

    optimizer: OptimizerSettings = setting(OptimizerSettings(), "", flat=True, group="optimizer")
    ema: float | tuple[float, ...] = setting(
        0.05,
        "length of the weight average (EMA), as a share of the run so far; several, 0.05,0.1, are tracked at once, the first is used",
        above=0.0,
        below=0.28,
        group="optimizer",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "where to compute", group="machine")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto", "of the network; the process is always float32 or better", group="machine"
    )
    threads: int | None = setting(None, "CPU threads; none: all cores, at most two for a small network", low=1, high=4096, group="machine")
    compile: Literal["none", "default", "reduce-overhead", "max-autotune"] = setting(
        "none",
        "torch.compile the network, with this mode: a minute or more at the start, kept in the cache for later runs; "
        "reduce-overhead replays CUDA graphs",
        group="machine",
    )
    gradient_checkpointing: bool = setting(
        False, "compute the network's blocks twice instead of keeping what is inside them: less memory, more time", group="machine"
    )
    prefetch: int | None = setting(
        None,
        "batches prepared ahead by threads, 0: none; none: 0 for samples in memory on a CPU, else 2 or more; results do not depend on it",
        low=0,
        high=1000,
        group="machine",
    )
    workers: int | None = setting(None, "threads that prepare batches; none: what suits the data", low=1, high=256, group="machine")
    parallel: Literal["ddp", "fsdp"] = setting(
        "ddp", "of several processes: each holds the whole model (ddp), or a part of it (fsdp)", group="machine"
    )
    sharded_save: bool = setting(
        False, "of fsdp: each process writes its own part of a checkpoint; for models that one process cannot hold", group="machine"
    )
    logical_shards: int | None = setting(
        None, "parts every pass is computed in; none: one for each process of the first run", low=1, high=65536, group="machine"
    )
    timeout: float = setting(300.0, "seconds a process may keep the others waiting", above=0.0, high=86_400.0, group="machine")

    def __post_init__(self) -> None:
        check(self)
        reason = legal(self.schedule, self.parameterization)
        problems = [f"parameterization: {reason}"] if reason else []
        if self.schedule.T is None and isinstance(self.loss, Hybrid | VariationalBound | Stepwise):
            problems.append(f"loss: {type(self.loss).__name__} sums over the steps of a chain; give the schedule a T, or use Denoising")
        if isinstance(self.parameterization, PosteriorMean) and self.loss.learned_variance:
            problems.append("loss: a learned variance with PosteriorMean prediction is not supported; predict eps, x0 or v")
        if self.sharded_save and self.parallel != "fsdp":
            problems.append(f"sharded_save: got parallel = {self.parallel!r}, where each process holds all; use it with parallel = 'fsdp'")
        if self.compile != "none" and self.parallel == "fsdp":
            problems.append("compile: with parallel = 'fsdp' the network is gathered part by part as it runs; use ddp, or compile none")
        if self.cascade.base is not None and (self.autoencoder is not None or self.tricks.augment):
            problems.append("base: not with an autoencoder or augment; a stage enlarges samples as they are")
        if self.given is not None and (self.autoencoder is not None or self.cascade.base is not None or self.tricks.augment):
            problems.append("given: not with an autoencoder, a base or augment; what is given is made of the samples as they are")
        if self.given is not None and self.text.reference is not None:
            problems.append("given: not with a reference, which would be read of the same pictures; leave --given or --reference out")
        if self.text.wanted and not self.conditional:
            problems.append("text: an encoder of what the model is told, and conditional is off; leave one of the two out")
        names = [f"{width:.3f}" for width in self.ema] if isinstance(self.ema, tuple) else [""]
        if len({*names}) < max(1, len(names)):
            problems.append(f"ema: {', '.join(names) or 'empty'}; give one width or several that differ in the first three decimals")
        check(self, problems)
        if isinstance(self.ema, tuple) and len(self.ema) == 1:
            object.__setattr__(self, "ema", self.ema[0])  # a list of one is that one: the two must compare equal

    @property
    def widths(self) -> tuple[float, ...]:
        """The widths of the weight averages; the first is the one that is measured and shown."""
        return self.ema if isinstance(self.ema, tuple) else (self.ema,)

    def problems(self) -> list[str]:
        """What the nested settings have to say; found before torch is imported."""
        out = ["out: empty; name a folder, or leave it out"] if self.out is not None and not self.out.strip() else []
        network = [f"network.{line}" for line in self.network.problems()] if self.network is not None else []
        return [*out, *self.data.problems(), *network]


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """What the noisy classifier of a run is asked for; what is left out is the run's own, or has a default."""

    data: DataSettings = setting(DataSettings(), "", flat=True, group="data", inherits="the run")
    steps: int = setting(1000, "optimizer steps", low=1, high=1_000_000_000, group="run")
    batch: int = setting(128, "samples a step", low=1, high=1_000_000, group="run")
    seed: int = setting(0, "all randomness follows from it", low=0, high=2**63 - 1, group="run")
    log_every: int = setting(50, "steps between lines of metrics.jsonl", low=1, group="run")
    network: UNetConfig | MLPConfig | None = setting(
        None,
        "network, of which the first half is used; none: a small UNet for pictures, signals and volumes, a small MLP for tables",
        group="model",
    )
    optimizer: OptimizerSettings = setting(OptimizerSettings(lr=1e-3, decay="cosine", weight_decay=0.05), "", flat=True, group="optimizer")
    ema: float = setting(0.1, "length of the weight average (EMA), as a share of the run so far", above=0.0, below=0.28, group="optimizer")
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "where to compute", group="machine")
    threads: int | None = setting(None, "CPU threads; none: all cores, at most two for a small network", low=1, high=4096, group="machine")

    def __post_init__(self) -> None:
        check(self)

    def problems(self) -> list[str]:
        """What the nested settings have to say; found before torch is imported."""
        network = [f"network.{line}" for line in self.network.problems()] if self.network is not None else []
        return [*self.data.problems(), *network]


@dataclass(frozen=True, kw_only=True)
class AutoencodeConfig:
    """What an autoencoder is asked for."""

    data: DataSettings = setting(DataSettings(), "", flat=True, group="data")
    steps: int = setting(2000, "optimizer steps", low=1, high=1_000_000_000, group="run")
    batch: int = setting(32, "samples a step", low=1, high=1_000_000, group="run")
    seed: int = setting(0, "all randomness follows from it", low=0, high=2**63 - 1, group="run")
    out: str = setting("runs/autoencoder", "folder of the autoencoder; the same command resumes what is there", group="run")
    checkpoint_every: int = setting(500, "steps between checkpoints", low=1, group="run")
    log_every: int = setting(50, "steps between lines of metrics.jsonl", low=1, group="run")
    network: AutoencoderConfig = setting(AutoencoderConfig(), "", group="model")
    kl: float = setting(
        0.01, "weight of what the latents carry, in nats; 1: the evidence bound; none with a codebook", low=0.0, group="model"
    )
    perceptual: float = setting(0.0, "weight of the distance of copies from originals in the features of a critic", low=0.0, group="critic")
    adversarial: float = setting(
        0.0, "weight of what the critic, which learns to tell them apart, says of copies; 1: as strong as the rest", low=0.0, group="critic"
    )
    critic_from: float = setting(0.3, "share of the steps after which the critic begins", low=0.0, high=1.0, group="critic")
    optimizer: OptimizerSettings = setting(OptimizerSettings(lr=1e-3, decay="cosine", warmup=50), "", flat=True, group="optimizer")
    ema: float = setting(0.05, "length of the weight average (EMA), as a share of the run so far", above=0.0, below=0.28, group="optimizer")
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "where to compute", group="machine")
    precision: Literal["auto", "fp32", "bf16"] = setting("auto", "of the network", group="machine")
    threads: int | None = setting(None, "CPU threads; none: all cores, at most two for a small network", low=1, high=4096, group="machine")

    def __post_init__(self) -> None:
        coded = bool(self.network.codes) and self.kl != type(self).kl
        problems = ["kl: is of continuous latents; with network.codes leave it out"] if coded else []
        if self.critic_from != type(self).critic_from and not (self.perceptual or self.adversarial):
            problems.append("critic_from: there is no critic without perceptual or adversarial")
        check(self, problems)

    def problems(self) -> list[str]:
        """What the nested settings have to say; found before torch is imported."""
        return [*self.data.problems(), *(f"network.{line}" for line in self.network.problems())]
