"""`distill()`: from a trained run to a student that needs few steps; the same call again resumes it."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ddpm.config import check, from_dict, setting
from ddpm.denoiser import Index
from ddpm.distillation.methods import METHODS, Consistency, ContinuousConsistency, Distillation, Guidance, Matching, Progressive
from ddpm.errors import CheckpointError, ConfigError
from ddpm.objective import LOSSES, LossSettings
from ddpm.process import Process, default_grid
from ddpm.training.config import FAMILIES as TRAINED
from ddpm.training.config import OptimizerSettings, TrainConfig

if TYPE_CHECKING:
    from ddpm.data import Dataset
    from ddpm.training import Finished
    from ddpm.training.checkpoints.checkpoint import Checkpoint

FAMILIES: dict[type, tuple[type, ...]] = {**TRAINED, Distillation: METHODS, LossSettings: (*LOSSES, *METHODS)}


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """What a distillation is asked for; what is left out is the teacher's own, or has a default."""

    method: Distillation = setting(Consistency(), "how to distil", group="what")
    steps: int = setting(4, "steps of the student, of progressive and matching; the others take any number", low=1, high=1024, group="what")
    rounds: int = setting(4, "of progressive: times the number of steps is halved, ending at --steps", low=1, high=12, group="what")
    updates: int = setting(1000, "optimizer steps; of progressive: in each round", low=1, high=1_000_000_000, group="run")
    batch: int | None = setting(None, "samples a step; none: the teacher's", low=1, high=1_000_000, group="run")
    seed: int = setting(0, "all randomness follows from it", low=0, high=2**63 - 1, group="run")
    out: str | None = setting(None, "run folder of the student; none: beside the teacher's, named by the method", group="run")
    checkpoint_every: int = setting(1000, "optimizer steps between checkpoints", low=1, group="run")
    log_every: int = setting(50, "optimizer steps between lines of metrics.jsonl", low=1, group="run")
    preview: int = setting(16, "samples drawn at each checkpoint; 0: none", low=0, high=4096, group="run")
    optimizer: OptimizerSettings = setting(OptimizerSettings(lr=3e-4, decay="cosine", warmup=20), "", flat=True, group="optimizer")
    ema: float = setting(0.1, "width of the weight average, as a share of the run so far", above=0.0, below=0.28, group="optimizer")
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "where to compute", group="machine")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting("auto", "of the networks", group="machine")
    threads: int | None = setting(None, "CPU threads; none: all cores, at most two for a small network", low=1, high=4096, group="machine")

    def __post_init__(self) -> None:
        check(self)


def student_folder(teacher: str | Path, config: DistillConfig) -> Path:
    """`config.out`, or the teacher's folder with the method and, where they belong to it, the steps added to its name."""
    if config.out is not None:
        return Path(config.out)
    home = Path(teacher)
    home = home.parent if (home / "manifest.json").is_file() else home
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(config.method).__name__).lower()
    return home.with_name(f"{home.name}-{kind}{config.steps if isinstance(config.method, Progressive | Matching) else ''}")


def distill(
    teacher: str | Path,
    config: DistillConfig | None = None,
    *,
    data: Dataset | None = None,
    quiet: bool = False,
    command: str | None = None,
) -> Finished:
    """Distil a run into a student, a run like any other: it is loaded, sampled, evaluated and resumed as such.

    teacher: run folder, or a step folder. data: the teacher's data, where they were handed in from Python. command: what a person types to
    resume, for messages. Progressive runs a round after another, each the next one's teacher, in folders within the student's.

    Raises as `train`, and ConfigError for a method that does not suit the teacher.
    """
    from ddpm.training.state import open_run

    config = config or DistillConfig()
    saved = open_run(teacher)
    settled = _settled(saved, str(teacher), config)
    folder = student_folder(teacher, config)

    def one(loss: Distillation, out: Path) -> Finished:
        from ddpm.training import train

        return train(_training(saved, loss, config, out), data=data, quiet=quiet, command=command)

    if not isinstance(settled, Progressive):
        return one(settled, folder)
    fine = _instants(saved, config)
    while True:
        left = len(fine) // 2 // config.steps
        here = folder if left == 1 else folder / "rounds" / f"{len(fine) // 2:04d}-steps"
        if not quiet:
            print(f"{len(fine)} steps -> {len(fine) // 2}: {here}", file=sys.stderr, flush=True)
        finished = one(replace(settled, fine=fine), here)
        if left == 1 or finished.code:
            return finished
        settled, fine = replace(settled, teacher=str(here), guidance=1.0), fine[::2]


def _settled(saved: Checkpoint, teacher: str, config: DistillConfig) -> Distillation:
    """The method with what it must know of the teacher; ConfigError where they do not suit one another."""
    document = saved.document("config")
    method, name = config.method, type(config.method).__name__
    meaning = (document.get("student") or {"meaning": "mean"})["meaning"]
    conditional = bool(document["classes"] or document["vector"])
    problems: list[str] = []
    if meaning != "mean":
        problems.append(f"teacher: {teacher} is itself a student that takes few steps; distil the model it came from")
    if (method.guidance != 1.0 or isinstance(method, Guidance)) and not conditional:
        problems.append(f"guidance: {teacher} was trained without conditions, so there is nothing to guide by")
    if (method.guidance != 1.0 or isinstance(method, Guidance)) and conditional and document["cond_dropout"] == 0.0:
        problems.append(f"guidance: {teacher} was trained with cond_dropout 0, so it knows no unconditional answer")
    kind = document["parameterization"]["name"]
    if not isinstance(method, Progressive | Guidance) and kind in ("X0", "PosteriorMean"):
        problems.append(
            f"method: {name} wants a prediction of x0 that is x where there is no noise, which {kind} does not give; use progressive"
        )
    if "own" in document["network"]:
        problems.append(f"teacher: {teacher} has a network of your own; distilling such runs is not supported")
    if problems:
        raise ConfigError.of(problems)
    told = bool(document["cond"].get("guidance"))
    settled = replace(method, teacher=teacher, variance=bool(document["learned_variance"]), told=told or isinstance(method, Guidance))
    return replace(settled, steps=config.steps) if isinstance(settled, Matching) else settled


def _instants(saved: Checkpoint, config: DistillConfig) -> tuple[float, ...]:
    """The teacher's instants of the first round, 2^rounds times the student's."""
    from ddpm.process import Schedule

    process = Process(from_dict(Schedule, saved.document("config")["schedule"], FAMILIES, "config.json"))
    count = config.steps * 2**config.rounds
    length = process.schedule.T
    if length is not None and count > length:
        raise ConfigError(
            f"rounds: {config.steps} steps after {config.rounds} halvings begin with {count}, this chain has {length}; use fewer rounds"
        )
    times: list[float] = default_grid(process, count).times(process, count).tolist()
    return tuple(times)


def _training(saved: Checkpoint, loss: Distillation, config: DistillConfig, out: Path) -> TrainConfig:
    """The teacher's own settings, with the loss of the method and what the student is asked for."""
    try:
        base = from_dict(TrainConfig, saved.document("state")["config"], FAMILIES, "state.json")
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{saved.path}: state.json does not describe a run: {type(error).__name__} {error}") from error
    usual, clock = TrainConfig(), base.clock
    if isinstance(loss, ContinuousConsistency) and not (isinstance(clock, Index) and clock.scale <= loss.clock):
        clock = Index(scale=loss.clock)
    return replace(
        usual, data=base.data, schedule=base.schedule, parameterization=base.parameterization, clock=clock, network=base.network,
        conditional=base.conditional, cond_dropout=base.cond_dropout, tricks=base.tricks, loss=loss, init=loss.teacher, out=str(out),
        steps=config.updates, batch=config.batch or base.batch, seed=config.seed, checkpoint_every=config.checkpoint_every,
        log_every=config.log_every, evaluate_every=config.checkpoint_every, preview=config.preview, optimizer=config.optimizer,
        ema=config.ema, device=config.device, precision=config.precision, threads=config.threads, monitor=False,
    )  # fmt: skip
