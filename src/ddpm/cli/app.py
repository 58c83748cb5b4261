"""`ddpm COMMAND ...`: finds the command, runs it, and turns errors into one message and an exit code.

A command is a module of this package that is cheap to import and has `HELP: str` (what `--help` opens with, examples included),
`add(parser)` (adds its arguments) and `run(args, extra) -> int` (does the work; `extra` is what the parser did not know, `args.parser`
the parser; returns the exit code). It is imported only when it is asked for.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

import ddpm
from ddpm.cli.launch import inside, report, speaks
from ddpm.config import Parser, tidy
from ddpm.config.field_info import nearest
from ddpm.errors import ConfigError, DDPMError, DiskError, DistributedError
from ddpm.shortage import out_of_memory

COMMANDS = {
    "train": "train a model on your data; the same command again resumes",
    "plan": "what to train with on your data and machine, why, and what it will cost",
    "sample": "draw samples from a trained model",
    "interpolate": "show what lies between two samples, according to a trained model",
    "forecast": "draw ensembles of the fields to come, and score them",
    "inpaint": "fill the missing part of a picture, in several ways that fit the rest",
    "distill": "make a student of a trained model, which draws in a few steps or one",
    "tune": "find the sampler and noise levels that suit a trained model best at so many network calls",
    "ema": "find the length of the weight average that suits a trained model best, and use it",
    "autoencode": "train an autoencoder, whose latents are smaller than the samples, and say what it loses",
    "classifier": "train the classifier of a run that `ddpm sample --guidance-kind classifier` follows",
    "likelihood": "how probable data are under a trained model: bits per dimension, by three routes",
    "evaluate": "score a trained model against its data, with error bars, and write a report",
    "compare": "rank runs by their reports, and say which differences are more than chance",
    "merge": "put a checkpoint together that many processes wrote in parts",
    "schedule": "write the noise schedule a run has learned, to train other models with it",
    "inspect": "show what is in a data set, before training on it",
    "completion": "print the script that completes commands and flags in your shell",
}

HELP = """Denoising diffusion: from your data to a trained model to samples.

  ddpm train                                     train on the bundled digits: a first run, in minutes
  ddpm inspect photos/                           what a folder, archive or array holds, and what is wrong with it
  ddpm train --data photos/ --size 64 --crop centre --out runs/photos
  ddpm sample runs/photos --n 64                 uses the settings the model was trained with
"""
EPILOG = """`ddpm COMMAND --help` explains a command. Exit codes: 0 done, 1 failed, 2 settings, 3 data, 4 checkpoint, 5 disk,
6 training diverged, 7 run folder in use, 8 a process of the run was lost, 130 interrupted,
143 terminated."""


def command_module(name: str) -> ModuleType:
    """The module of a command, imported now."""
    return importlib.import_module(f"ddpm.cli.{name}")


def make_parser(commands: Sequence[str]) -> Parser:
    """The parser of `ddpm`, with the arguments of these commands only: the others are listed, not imported."""
    parser = Parser(prog="ddpm", description=HELP, epilog=EPILOG)
    parser.add_argument("-V", "--version", action="version", version=f"ddpm {ddpm.__version__}")
    parser.add_argument("--debug", action="store_true", help="show the full traceback of an error")
    choices = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=Parser)
    for name, summary in COMMANDS.items():
        module = command_module(name) if name in commands else None
        command = choices.add_parser(name, help=summary, description=module.HELP if module else summary)
        if module:
            module.add(command)
            command.set_defaults(parser=command, run=module.run)
            command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the full traceback of an error")
            plain = [(action, action.metavar or action.dest.upper()) for action in command._actions if not action.option_strings]
            command.usage = f"{command.prog} [flags]" + "".join(f" [{name}]" if one.nargs == "?" else f" {name}" for one, name in plain)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments after the program's name; `sys.argv` by default.

    Returns:
        The exit code: 0, that of the `DDPMError` met, 130 after Ctrl-C, 1 for anything else.
    """
    code = _main(argv)
    if inside():  # one of many processes: torch's threads are not waited for, they now and then abort an interpreter that ends
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _main(argv: Sequence[str] | None) -> int:
    if inside():
        from ddpm.training.distributed.parent import watch_parent

        watch_parent()  # before anything is imported that takes seconds
    argv = tidy(sys.argv[1:] if argv is None else argv)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")  # turns a waiting thread spins, about a millisecond: docs/decisions.md
    command = next((token for token in argv if not token.startswith("-")), None)
    prog = f"ddpm {command}" if command in COMMANDS else "ddpm"
    try:
        code = _run(command, argv)
        sys.stdout.flush()  # a closed pipe shows here, not while Python shuts down
        return code
    except BrokenPipeError:  # `ddpm ... | head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        if speaks():
            print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if "--debug" in argv:
            traceback.print_exc()
        return _tell(prog, error)


def _tell(prog: str, error: Exception) -> int:
    """Say what an error is, and return its exit code; as one of many processes, hand it to the launcher, which says what ended the run once
    and last.
    """
    message, code = explain(error)
    if inside():
        from ddpm.training.distributed.parent import LAUNCHED

        everywhere = isinstance(error, ConfigError)  # the settings of one are those of all
        if not everywhere and not isinstance(error, DistributedError):  # which names the one it is about
            kind, text = message.split(": ", 1)
            own = getattr(error, "rank", None)
            rank = os.environ.get("RANK", "?") if own is None else own
            message = message if text.startswith("rank ") else f"{kind}: rank {rank}: {text}"
        report(f"{prog}: {message}", code)
        if LAUNCHED in os.environ or (everywhere and not speaks()):
            return code
    print(f"{prog}: {message}", file=sys.stderr)
    return code


def _run(command: str | None, argv: Sequence[str]) -> int:
    if command is not None and command not in COMMANDS:
        near = nearest(command, COMMANDS)
        advice = f"did you mean '{near}'?" if near else f"commands: {', '.join(COMMANDS)}"
        raise ConfigError(f"unknown command '{command}'; {advice}")
    parser = make_parser([command] if command else [])
    try:
        args, extra = parser.parse_known_args(argv)
    except SystemExit as stop:  # --help, --version
        return stop.code if isinstance(stop.code, int) else 0
    if args.command is not None:
        return args.run(args, extra)
    if extra:
        raise ConfigError(f"unknown flag '{extra[0]}'; see ddpm --help")
    parser.print_help(sys.stderr)
    return ConfigError.exit_code


def explain(error: Exception) -> tuple[str, int]:
    """What to tell about an error, and the exit code."""
    if isinstance(error, DDPMError):
        lines = str(error).splitlines()
        count = error.count if isinstance(error, ConfigError) else 1
        text = "\n  ".join([f"{count} problems", *lines] if count > 1 else lines)
        return f"error: {text}", error.exit_code
    reason = out_of_memory(error)
    if reason is not None:
        return f"error: out of memory: {reason}\n  use a smaller batch or model, or a smaller --size", 1
    if isinstance(error, OSError) and error.errno is not None:
        full = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no quota error
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        return f"error: {reason}", DiskError.exit_code if error.errno in full else 1
    reason = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
    return f"internal error: {reason}\n  this is a bug, not something you did; --debug shows where", 1
