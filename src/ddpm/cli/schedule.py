"""`ddpm schedule`: the noise schedule a run has learned, as a settings file."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path

from ddpm.config import Parser, add_flags, check, flags_layer, resolve, setting

HELP = """Write the noise schedule that a run has learned as a settings file, to train other models with it.

  ddpm train --data photos/ --loss learned-schedule --out runs/learned
  ddpm schedule runs/learned                           writes runs/learned/schedule.toml
  ddpm train --data photos/ --config runs/learned/schedule.toml --out runs/next
"""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Which table, and where it goes."""

    knots: int = setting(1024, "log-SNRs in the table, at even times", low=2, high=100_000)
    step: int | None = setting(None, "training step of the checkpoint; none: the newest", low=0)
    out: str | None = setting(None, "file; none: schedule.toml in the run folder")

    def __post_init__(self) -> None:
        check(self)


def add(parser: Parser) -> None:
    """The command's arguments."""
    parser.add_argument("run_folder", metavar="RUN", help="run folder, or one of its step folders")
    add_flags(parser, ScheduleConfig)


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Read the network of the schedule, and write its table."""
    config = resolve(ScheduleConfig, [flags_layer(args, extra, args.parser, ScheduleConfig)])
    from ddpm.training.learned import learned_schedule, write_schedule

    table = learned_schedule(args.run_folder, step=config.step, knots=config.knots)
    folder = Path(args.run_folder)
    home = folder.resolve().parent if (folder / "manifest.json").is_file() else folder
    path = write_schedule(table, Path(config.out) if config.out else home / "schedule.toml")
    print(f"log-SNR from {table.log_snr[0]:.2f} to {table.log_snr[-1]:.2f} at {len(table.log_snr)} times")
    print(f"  {shlex.quote(str(path))}")
    return 0
