"""`ddpm completion SHELL`: the script that completes commands and flags."""

from __future__ import annotations

import argparse
import sys

from ddpm.config import unknown_arguments
from ddpm.errors import ConfigError

SHELLS = ("bash", "zsh", "tcsh")

HELP = """Print the script that completes commands and flags in your shell.

  bash   ddpm completion bash > ~/.local/share/bash-completion/completions/ddpm
  zsh    ddpm completion zsh > ~/.zfunc/_ddpm      with `fpath+=~/.zfunc; autoload -Uz compinit; compinit` in ~/.zshrc
  tcsh   ddpm completion tcsh > ~/.ddpm.tcsh       with `source ~/.ddpm.tcsh` in ~/.tcshrc
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the one argument, the shell."""
    parser.add_argument("shell", metavar="SHELL", help=f"one of {', '.join(SHELLS)}")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Print the script.

    Raises:
        ConfigError: for another shell.
    """
    import shtab

    from ddpm.cli.app import COMMANDS, make_parser

    problems = unknown_arguments(extra, args.parser)
    if args.shell not in SHELLS:
        problems.append(f"SHELL is {args.shell}; allowed: {', '.join(SHELLS)}")
    if problems:
        raise ConfigError.of(problems)
    sys.stdout.write(shtab.complete(make_parser(list(COMMANDS)), shell=args.shell) + "\n")
    return 0
