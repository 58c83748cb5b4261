"""The settings of a training run: one frozen dataclass, read from flags and files, checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ddpm.config import check, setting
from ddpm.data.settings import DataSettings
from ddpm.denoiser.clock import CLOCKS, Clock
from ddpm.denoiser.parameterization import PARAMETERIZATIONS, Parameterization, PosteriorMean, V, legal
from ddpm.networks.config import MLPConfig, UNetConfig
from ddpm.objective.loss import LOSSES, Denoising, Hybrid, LossSettings, Stepwise, VariationalBound
from ddpm.objective.times import TIMES, Times
from ddpm.objective.weighting import WEIGHTINGS, Weighting
from ddpm.process import SCHEDULES, Cosine, Schedule

FAMILIES: dict[type, tuple[type, ...]] = {
    Schedule: SCHEDULES,
    Parameterization: PARAMETERIZATIONS,
    Clock: CLOCKS,
    LossSettings: LOSSES,
    Weighting: WEIGHTINGS,
    Times: TIMES,
}


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW with a linear warm-up, an optional decay, and a bound on the gradient's norm."""

    lr: float = setting(2e-4, "peak learning rate", above=0.0, below=10.0)
    warmup: int = setting(100, "steps over which the learning rate rises from 0", low=0)
    decay: Literal["none", "cosine", "linear"] = setting("none", "how the learning rate falls to 0 by the last step, after the warm-up")
    weight_decay: float = setting(0.0, "decoupled weight decay", low=0.0, below=1.0)
    beta1: float = setting(0.9, "averaging of gradients", low=0.0, below=1.0)
    beta2: float = setting(0.999, "averaging of squared gradients", low=0.0, below=1.0)
    grad_clip: float = setting(1.0, "largest norm of the gradient; longer ones are scaled down", above=0.0)

    def __post_init__(self) -> None:
        check(self)

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of step 0..steps-1."""
        import math

        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        share = min(1.0, max(0.0, (step - self.warmup) / max(1, steps - self.warmup)))
        fall = {"none": 1.0, "linear": 1.0 - share, "cosine": 0.5 * (1.0 + math.cos(math.pi * share))}[self.decay]
        return self.lr * warm * fall


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
    log_every: int = setting(50, "steps between lines of metrics.jsonl", low=1, group="run")
    evaluate_every: int = setting(500, "steps between measurements of the held-out loss", low=1, group="run")
    preview: int = setting(16, "samples drawn at each checkpoint; 0: none", low=0, high=4096, group="run")
    init: str | None = setting(None, "run folder or .safetensors file whose weights training starts from", group="run")
    accept_data_change: bool = setting(False, "resume although the data are not those the run began with", group="run")

    schedule: Schedule = setting(Cosine(), "noise schedule", group="model")
    parameterization: Parameterization = setting(V(), "what the network predicts", group="model")
    clock: Clock | None = setting(None, "how the network is told the noise level; none: what suits the schedule", group="model")
    loss: LossSettings = setting(Denoising(), "what is minimised", group="model")
    network: UNetConfig | MLPConfig | None = setting(
        None, "network; none: UNet for pictures, signals and volumes, MLP for tables", group="model"
    )
    conditional: bool = setting(True, "learn from labels and vectors where the data have them", group="model")
    cond_dropout: float = setting(
        0.1, "share of samples whose condition is hidden, so that guidance works", low=0.0, high=1.0, group="model"
    )

    optimizer: OptimizerSettings = setting(OptimizerSettings(), "", flat=True, group="optimizer")
    ema: float = setting(0.05, "width of the weight average, as a share of the run so far", above=0.0, below=0.28, group="optimizer")
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "where to compute", group="machine")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto", "of the network; the process is always float32 or better", group="machine"
    )
    threads: int | None = setting(None, "CPU threads; none: all cores, one for a small network", low=1, high=4096, group="machine")

    def __post_init__(self) -> None:
        reason = legal(self.schedule, self.parameterization)
        problems = [f"parameterization: {reason}"] if reason else []
        if self.schedule.T is None and isinstance(self.loss, Hybrid | VariationalBound | Stepwise):
            problems.append(f"loss: {type(self.loss).__name__} sums over the steps of a chain; give the schedule a T, or use Denoising")
        if isinstance(self.parameterization, PosteriorMean) and self.loss.learned_variance:
            problems.append("loss: a learned variance with PosteriorMean prediction is not supported; predict eps, x0 or v")
        check(self, problems)

    def problems(self) -> list[str]:
        """What the nested settings have to say; found before torch is imported."""
        out = ["out: empty; name a folder, or leave it out"] if self.out is not None and not self.out.strip() else []
        network = [f"network.{line}" for line in self.network.problems()] if self.network is not None else []
        return [*out, *self.data.problems(), *network]


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """What the noisy classifier of a run is asked for; what is left out is the run's own, or has a default."""

    data: DataSettings = setting(DataSettings(), "", flat=True, group="data")
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
    ema: float = setting(0.1, "width of the weight average, as a share of the training so far", above=0.0, below=0.28, group="optimizer")
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "where to compute", group="machine")
    threads: int | None = setting(None, "CPU threads; none: all cores, one for a small network", low=1, high=4096, group="machine")

    def __post_init__(self) -> None:
        check(self)

    def problems(self) -> list[str]:
        """What the nested settings have to say; found before torch is imported."""
        network = [f"network.{line}" for line in self.network.problems()] if self.network is not None else []
        return [*self.data.problems(), *network]
