"""`ddpm plan`: what to train with on these data and this machine, why, and what it will cost."""

from __future__ import annotations

import argparse
import json
import math
import shlex

from ddpm.config import Parser, add_flags
from ddpm.errors import ConfigError
from ddpm.training.config import FAMILIES, TrainConfig
from ddpm.training.recipes import names

HELP = """Read the data and the machine, propose network, batch, average, steps and checkpoints, and estimate time, memory and disk.

  ddpm plan                                          for the bundled digits
  ddpm plan --data photos/ --size 64 --crop centre   any flag of `ddpm train`: what is given stays, the rest is proposed
  ddpm plan --data photos/ --hours 3                 as many steps as fit into three hours
  ddpm plan --data photos/ --out runs/photos         keeps the plan there; `ddpm train` then says how good the estimate was

A rehearsal of a few steps of the planned run, in a temporary folder, is timed and measured. Nothing else is written without --out.
"""


def add(parser: Parser) -> None:
    """The command's arguments."""
    add_flags(parser, TrainConfig, FAMILIES)
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help="TOML file of settings, as for ddpm train")
    parser.add_argument("--recipe", default="auto", metavar="NAME", help=f"as for ddpm train: auto, none, {', '.join(names())}")
    parser.add_argument("--hours", metavar="X", help="time there is for the run; steps are cut to fit")
    parser.add_argument("--rehearse", metavar="SECONDS", default="20", help="about how long the rehearsal may take (default 20)")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def number(flag: str, text: str | None, high: float) -> float | None:
    """A number above 0, ConfigError for anything else."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value <= high:
        raise ConfigError(f"{flag} is {text}; allowed: a number > 0 and <= {high:g}")
    return value


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Plan, print, and keep the plan where a run folder was named."""
    from ddpm.cli.train import layers

    stack = layers(args, extra)
    hours, seconds = number("--hours", args.hours, 1e6), number("--rehearse", args.rehearse, 3600.0)
    from ddpm.evaluation.planning.plan import flags_of, make_plan, table, typed_flags
    from ddpm.evaluation.planning.record import save_plan
    from ddpm.training.run import run_folder

    plan = make_plan(stack, seconds=seconds or 20.0, hours=hours)
    words = ["ddpm", "train", *typed_flags(stack[-1]), *flags_of(plan.choices)]
    words += [word for file in args.config for word in ("--config", file)]
    words += ["--recipe", args.recipe] if args.recipe != "auto" else []
    command = shlex.join(words)
    if args.json:
        print(json.dumps({**plan.to_dict(), "command": command}, indent=1))
    else:
        print(table(plan))
        print(f"\n  {command}")
    if plan.config.out is not None:
        path = save_plan(run_folder(plan.config), plan)
        if not args.json:
            print(f"kept in {path}")
    return 0
