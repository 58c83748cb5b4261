"""`distill()`: from a trained run to a student that needs few steps; the same call again resumes it."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ddpm.config import check, from_dict, setting
from ddpm.denoiser import Index
from ddpm.distillation.methods import (
    METHODS,
    Consistency,
    Consistent,
    ContinuousConsistency,
    Distillation,
    Guidance,
    Matching,
    Progressive,
    jumping,
    off_circle,
)
from ddpm.errors import CheckpointError, ConfigError
from ddpm.objective import LOSSES, LossSettings
from ddpm.process import Process, Schedule
from ddpm.training.checkpoints.storage import replace_text
from ddpm.training.config import FAMILIES as TRAINED
from ddpm.training.config import OptimizerSettings, TrainConfig

if TYPE_CHECKING:
    from ddpm.data import Dataset
    from ddpm.training import Finished
    from ddpm.training.checkpoints.checkpoint import Checkpoint

SHORT = 100  # steps of a chain below which what lies between two of them is not what was trained on
FAINT = (
    "the teacher predicts noise: near t = 1 its x0 is off by 1/alpha times as much, and so is what the student learns there; "
    "a teacher that predicts v, x0 or flow is a better start"
)

OWN = "give the teacher's own, from Python by data=..., or --accept-data-change"

FAMILIES: dict[type, tuple[type, ...]] = {**TRAINED, Distillation: METHODS, LossSettings: (*LOSSES, *METHODS)}


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """What a distillation is asked for; what is left out is the teacher's own, or has a default."""

    method: Distillation = setting(Consistency(), "how to distil", group="what")
    steps: int | None = setting(
        None, "steps the student is made for, and takes (none: progressive 4, consistency and matching 1); a consistent one made for 1 "
        "takes any number, and so does a guidance student, for which this is left out", low=1, high=1024, group="what",
    )  # fmt: skip
    rounds: int | None = setting(
        None, "of progressive: times the number of steps is halved, ending at --steps; none: 4", low=1, high=12, group="what"
    )
    updates: int = setting(1000, "optimizer steps; of progressive: in each round", low=1, high=1_000_000_000, group="run")
    batch: int | None = setting(
        None, "samples a pass, of which a step has as many as the teacher's; none: the teacher's", low=1, high=1_000_000, group="run"
    )
    seed: int = setting(0, "all randomness follows from it", low=0, high=2**63 - 1, group="run")
    out: str | None = setting(None, "run folder of the student; none: beside the teacher's, named by the method", group="run")
    checkpoint_every: int = setting(1000, "optimizer steps between checkpoints", low=1, group="run")
    log_every: int = setting(50, "optimizer steps between lines of metrics.jsonl", low=1, group="run")
    preview: int = setting(16, "samples drawn at each checkpoint; 0: none", low=0, high=4096, group="run")
    accept_data_change: bool = setting(
        False, "distil although the data are not the teacher's, or resume although they changed", group="run"
    )
    dropout: float = setting(0.0, "share of activations the student's network drops in training", low=0.0, below=1.0, group="model")
    cond_dropout: float | None = setting(
        None, "share of samples whose condition is hidden; 0: the student is never asked without one; none: the teacher's",
        low=0.0, high=1.0, group="model",
    )  # fmt: skip
    optimizer: OptimizerSettings = setting(OptimizerSettings(lr=3e-4, decay="cosine", warmup=20), "", flat=True, group="optimizer")
    ema: float = setting(0.1, "width of the weight average, as a share of the run so far", above=0.0, below=0.28, group="optimizer")
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "where to compute", group="machine")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting("auto", "of the networks", group="machine")
    threads: int | None = setting(None, "CPU threads; none: all cores, at most two for a small network", low=1, high=4096, group="machine")

    def __post_init__(self) -> None:
        steps, problems = getattr(self.method, "steps", 1), list[str]()
        if self.steps is not None and steps not in (1, self.steps):
            problems.append(f"steps: got {self.steps}, and method.steps {steps}; leave one of them out")
        if self.rounds is not None and not isinstance(self.method, Progressive):
            problems.append(f"rounds: got {self.rounds}, but only progressive goes in rounds; leave it out")
        if self.steps is not None and isinstance(self.method, Guidance):
            problems.append(f"steps: got {self.steps}, but a guidance student takes any number; leave it out")
        check(self, problems)

    @property
    def halvings(self) -> int:
        """Rounds, one after another."""
        return (4 if self.rounds is None else self.rounds) if isinstance(self.method, Progressive) else 1

    @property
    def count(self) -> int | None:
        """Steps the student is made for, where the method can make it for some."""
        usual: int | None = 4 if isinstance(self.method, Progressive) else getattr(self.method, "steps", None)
        return usual if usual is None or self.steps is None else self.steps


def student_folder(teacher: str | Path, config: DistillConfig) -> Path:
    """`config.out`, or the teacher's folder with the method and, where they belong to it, the steps added to its name."""
    from ddpm.training.classifier import home_of

    if config.out is not None:
        return Path(config.out)
    home = home_of(teacher)
    home = home if home.name not in ("", "..") else home.resolve()
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(config.method).__name__).lower()
    made = "" if isinstance(config.method, Consistent) and config.count == 1 else config.count or ""  # a map takes any number
    return home.with_name(f"{home.name}-{kind}{made}")


def distill(
    teacher: str | Path,
    config: DistillConfig | None = None,
    *,
    data: Dataset | None = None,
    quiet: bool = False,
    command: str | None = None,
) -> Finished:
    """Distil a run into a student, a run like any other: it is loaded, sampled, evaluated and resumed as such.

    teacher: run folder, or a step folder, of which the student's folder gets a copy: once it has a checkpoint, it goes on with that copy.
    data: the teacher's data, where they were handed in from Python. command: what a person types to resume, for messages. Progressive runs
    a round after another, each the next one's teacher, in folders within the student's.

    Raises as `train`, and ConfigError for a method that does not suit the teacher.
    """
    from ddpm.data import open_data
    from ddpm.training import train
    from ddpm.training.classifier import check_run_data, run_data
    from ddpm.training.latents import diffused
    from ddpm.training.origin import find_origin

    def say(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    config = config or DistillConfig()
    if not isinstance(config, DistillConfig):  # pyright: ignore[reportUnnecessaryIsInstance]  (a method by itself is an easy slip)
        raise ConfigError(f"config: got {type(config).__name__}; a method goes into DistillConfig(method=...)")
    runs = _runs(teacher, config)
    if runs[-1].resolve() == Path(teacher).resolve():
        raise ConfigError(f"out: {runs[-1]} is the teacher itself; use another --out")
    origin = find_origin(runs[0], teacher, say)
    saved = origin.saved
    settled = _settled(saved, str(teacher), config)
    fine = _instants(saved, config) if isinstance(settled, Progressive) else ()
    data = diffused(open_data(run_data(saved)) if data is None else data, origin.denoiser)
    check_run_data(data.card, origin.card, own=not config.accept_data_change, advice=OWN)
    _same_rounds(runs[-1], fine, config)
    if saved.document("config")["parameterization"]["name"] in ("Eps", "Score"):
        say(FAINT)
    for here, following in zip(runs, [*runs[1:], None], strict=True):
        if isinstance(settled, Progressive):
            say(f"{len(fine)} steps -> {len(fine) // 2}: {here}")
            settled = replace(settled, fine=fine)
        finished = train(_training(saved, settled, config, here), data=data, quiet=quiet, command=command, origin=origin)
        if following is None or finished.code:
            break
        origin, settled, fine = find_origin(following, here, say), replace(settled, guidance=1.0), fine[::2]
    return finished


def _runs(teacher: str | Path, config: DistillConfig) -> list[Path]:
    """The folders of the runs a student is made by, its own last: one, or of progressive one a round."""
    folder, rounds = student_folder(teacher, config), config.halvings
    return [*(folder / "rounds" / f"{(config.count or 1) * 2**left:04d}-steps" for left in range(rounds - 1, 0, -1)), folder]


def kept_teacher(teacher: str | Path, config: DistillConfig) -> Path:
    """The copy of the teacher that a student's folder has."""
    from ddpm.training.origin import FOLDER

    return _runs(teacher, config)[0] / FOLDER


def _settled(saved: Checkpoint, teacher: str, config: DistillConfig) -> Distillation:
    """The method with what it must know of the teacher; ConfigError where they do not suit one another."""
    from ddpm.training.build import labelled

    document = saved.document("config")
    method, name = config.method, type(config.method).__name__
    meaning = (document.get("student") or {"meaning": "mean"})["meaning"]
    conditional = labelled(document)
    problems: list[str] = []
    if meaning != "mean":
        problems.append(f"teacher: {teacher} is itself a student that takes few steps; distil the model it came from")
    if (method.guidance != 1.0 or isinstance(method, Guidance)) and not conditional:
        problems.append(f"guidance: {teacher} was trained without conditions, so there is nothing to guide by")
    if (method.guidance != 1.0 or isinstance(method, Guidance)) and conditional and document["cond_dropout"] == 0.0:
        problems.append(f"guidance: {teacher} was trained with cond_dropout 0, so it knows no unconditional answer")
    kind, told = document["parameterization"]["name"], float((document.get("student") or {}).get("guidance", 1.0))
    filled = {"teacher": "", "variance": False, "told": 1.0, **({"fine": ()} if isinstance(method, Progressive) else {})}
    problems += [
        f"method.{key}: is filled in from the teacher; leave it out" for key, usual in filled.items() if getattr(method, key) != usual
    ]
    if told > 1.0 and not isinstance(method, Progressive):
        problems.append(f"teacher: {teacher} is told a guidance scale, which only progressive passes on; distil the model it came from")
    if told > 1.0 and method.guidance != 1.0:
        problems.append(f"guidance: got {method.guidance:g}, but {teacher} is told its scale, as the student will be; leave it at 1")
    length = Process(_schedule(saved)).schedule.T
    if length is not None and length < SHORT and not isinstance(method, Progressive | Guidance):
        problems.append(
            f"method: {name} asks between the steps of the chain, of which this one has only {length}; use progressive, or guidance"
        )
    if not isinstance(method, Progressive | Guidance) and kind in ("X0", "PosteriorMean"):
        problems.append(
            f"method: {name} wants a prediction of x0 that is x where there is no noise, which {kind} does not give; use progressive, or "
            "guidance"
        )
    if isinstance(method, ContinuousConsistency) and (why := off_circle(Process(_schedule(saved)), kind)):
        problems.append(why)
    if "own" in document["network"]:
        problems.append(f"teacher: {teacher} has a network of your own; distilling such runs is not supported")
    if problems:
        raise ConfigError.of(problems)
    settled = replace(method, variance=bool(document["learned_variance"]), told=told)
    if not isinstance(settled, Matching | Consistent):
        return settled
    settled = replace(settled, steps=config.count or 1)
    if isinstance(settled, Matching) and len(settled.instants(Process(_schedule(saved)))) < settled.steps:
        raise ConfigError(f"steps: got {settled.steps}, more than this chain of {length} has below noise over signal {settled.begin:g}")
    return settled


def _schedule(saved: Checkpoint) -> Schedule:
    return from_dict(Schedule, saved.document("config")["schedule"], FAMILIES, "config.json")


def _same_rounds(folder: Path, fine: tuple[float, ...], config: DistillConfig) -> None:
    """Note what rounds were begun with, before the first; ConfigError where that was something else: a round's teacher would change."""
    if not fine:
        return
    path, wanted = folder / "rounds" / "asked.json", {"instants": list(fine), "updates": config.updates}
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(wanted))
        return
    begun = json.loads(path.read_text(encoding="utf-8"))  # a single round is nobody's teacher, and may be made longer
    if begun["instants"] != wanted["instants"] or (config.halvings > 1 and begun["updates"] != wanted["updates"]):
        before = f"{len(begun['instants'])} instants and {begun['updates']} updates a round"
        raise ConfigError(
            f"{folder}: was begun with {before}, not {len(fine)} and {config.updates}; every round is the next one's teacher, so none can "
            "change; use another --out"
        )


def _instants(saved: Checkpoint, config: DistillConfig) -> tuple[float, ...]:
    """The teacher's instants of the first round, 2^rounds times the student's."""
    process, steps = Process(_schedule(saved)), config.count or 1
    count = steps * 2**config.halvings
    length = process.schedule.T
    if length is not None and count > length:
        raise ConfigError(
            f"rounds: {steps} steps after {config.halvings} halvings begin with {count}, this chain has {length}; use fewer rounds"
        )
    return jumping(process, count)


def _training(saved: Checkpoint, loss: Distillation, config: DistillConfig, out: Path) -> TrainConfig:
    """The teacher's own settings, with the loss of the method and what the student is asked for."""
    from ddpm.training.origin import FOLDER

    try:
        base = from_dict(TrainConfig, saved.document("state")["config"], FAMILIES, "state.json")
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{saved.path}: state.json does not describe a run: {type(error).__name__} {error}") from error
    usual, clock, copy = TrainConfig(), base.clock, str(out / FOLDER)
    if isinstance(loss, ContinuousConsistency) and not (isinstance(clock, Index) and clock.scale <= loss.clock):
        clock = Index(scale=loss.clock)
    return replace(
        usual, data=base.data, autoencoder=base.autoencoder, schedule=base.schedule, parameterization=base.parameterization,
        clock=clock, network=base.network and replace(base.network, dropout=config.dropout), conditional=base.conditional,
        cond_dropout=base.cond_dropout if config.cond_dropout is None else config.cond_dropout, tricks=base.tricks,
        cascade=base.cascade, text=base.text, given=base.given, loss=replace(loss, teacher=copy),
        init=copy, out=str(out), steps=config.updates, batch=config.batch or base.batch, accumulate=base.accumulate, seed=config.seed,
        checkpoint_every=config.checkpoint_every, log_every=config.log_every, evaluate_every=config.checkpoint_every,
        preview=config.preview, accept_data_change=config.accept_data_change, optimizer=config.optimizer, ema=config.ema,
        device=config.device, precision=config.precision, threads=config.threads, gradient_checkpointing=base.gradient_checkpointing,
        monitor=False,
    )  # fmt: skip
