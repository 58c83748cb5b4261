"""`ddpm merge`: a checkpoint that many processes wrote in parts, as one file for each set of weights."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass

from ddpm.config import Parser, add_flags, check, flags_layer, resolve, setting

HELP = """Put a checkpoint together that `ddpm train --parallel fsdp --sharded-save` wrote in parts.

  ddpm merge runs/large --to runs/large-whole            the newest checkpoint, as a run folder of its own
  ddpm merge runs/large --to runs/large-whole --step 2000

The result is what one process would have saved: smaller to hand on, and easier to read with other tools. Nothing needs it: `ddpm sample`
and a resumed training, on any number of processes, read the parts as they are. One process holds the whole checkpoint meanwhile.
What `ddpm ema` chose goes along, so that both sample alike; snapshots stay where they are. A folder that is not empty is refused, unless
this command made it from the same run; a step that is there is never replaced by another.
"""


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Which checkpoint, and where it goes."""

    to: str | None = setting(None, "folder for the result: a new one, or one made by this command", group="what")
    step: int | None = setting(None, "training step of the checkpoint; none: the newest", low=0, group="what")

    def __post_init__(self) -> None:
        check(self, ["to: say where the result goes, such as --to runs/whole"] if not (self.to or "").strip() else [])


def add(parser: Parser) -> None:
    """The command's arguments."""
    parser.add_argument("run_folder", metavar="RUN", help="run folder, or one of its step folders")
    add_flags(parser, MergeConfig)


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Read, write, say where."""
    config = resolve(MergeConfig, [flags_layer(args, extra, args.parser, MergeConfig)])
    from ddpm.training.distributed.merging import merge

    assert config.to is not None  # `MergeConfig` has seen to it
    folder = merge(args.run_folder, config.to, config.step, lambda line: print(f"ddpm merge: {line}", file=sys.stderr))
    print(folder)
    print(f"next: ddpm sample {shlex.quote(config.to)} --n 64")
    return 0
