"""The noise schedule a run has learned, as a table other runs can be trained with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ddpm.config import dump_toml, from_dict, setting
from ddpm.errors import CheckpointError, ConfigError
from ddpm.objective import LearnedSchedule, LearnedScheduleLoss, LossSettings
from ddpm.process import LogSNRTable, Process, Schedule
from ddpm.training.checkpoints import checkpoint
from ddpm.training.checkpoints.storage import write_text
from ddpm.training.config import FAMILIES
from ddpm.training.state import open_run


@dataclass(frozen=True, kw_only=True)
class ScheduleFile:
    """What `ddpm train --config FILE` reads the schedule from."""

    schedule: Schedule = setting(LogSNRTable(), "noise schedule")


def learned_schedule(run: str | Path, *, step: int | None = None, knots: int = 1024) -> LogSNRTable:
    """The schedule inside the loss of a run that was trained with `--loss learned-schedule`.

    Raises:
        ConfigError: another loss, or too few knots.
        CheckpointError: no such run, or one that is damaged.
    """
    if knots < 2:
        raise ConfigError(f"knots: got {knots}, must be at least 2")
    saved = open_run(run, step)
    try:
        settings = from_dict(LossSettings, saved.document("state")["config"]["loss"], FAMILIES, "state.json")
        schedule = from_dict(Schedule, saved.document("config")["schedule"], FAMILIES, "config.json")
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{saved.path}: state.json does not describe a run: {type(error).__name__} {error}") from error
    if not isinstance(settings, LearnedSchedule):
        raise ConfigError(f"{run}: was trained with {type(settings).__name__}, which learns no schedule; use --loss learned-schedule")
    loss = LearnedScheduleLoss(settings)
    checkpoint.load_into(loss, saved.tensors("loss"), "loss")
    return loss.table(Process(schedule), knots)


def write_schedule(table: LogSNRTable, path: Path) -> Path:
    """The table as a settings file for `ddpm train --config`."""
    write_text(path, dump_toml(ScheduleFile(schedule=table)))
    return path
