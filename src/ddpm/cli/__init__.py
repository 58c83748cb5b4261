"""The command line: parse, call, show."""

from ddpm.cli.app import main

__all__ = ["main"]
