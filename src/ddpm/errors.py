"""The errors a user can meet, each with the exit code the command line returns for it.

A message says what went wrong, where, what was found, what is allowed, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class DDPMError(Exception):
    """Any failure this package explains in a sentence; `exit_code` is what `ddpm` returns for it."""

    exit_code: ClassVar[int] = 1
    rank: int | None = None  # of many processes, which met it, where all raise it


class ConfigError(DDPMError):
    """Settings that cannot be used: an unknown key, a value out of range, an illegal combination."""

    exit_code = 2
    count: int = 1  # of the problems the message lists, a line each

    @classmethod
    def of(cls, problems: Sequence[str]) -> ConfigError:
        """One error that lists every problem found, so that all are mended in one go."""
        error = cls("\n".join(problems))
        error.count = len(problems)
        return error


class MissingLibraryError(ConfigError):
    """A library of an extra that is asked for and not installed; the message names the command that installs it."""


class DataError(DDPMError):
    """Data that cannot be read, or that do not fit the settings or the model."""

    exit_code = 3


class CheckpointError(DDPMError):
    """A checkpoint that is missing, damaged, of another shape, or that contains code."""

    exit_code = 4


class DiskError(DDPMError):
    """A file that cannot be written; what was there before is intact."""

    exit_code = 5


class NonFiniteError(DDPMError):
    """Loss or gradients stayed NaN or infinite; the last good checkpoint is intact."""

    exit_code = 6


class LockedError(DDPMError):
    """The run folder is in use by another process."""

    exit_code = 7


class DistributedError(DDPMError):
    """Another process of the run died, fell silent or could not be reached."""

    exit_code = 8


class ShortOfMemoryError(DDPMError):
    """The machine or device has too little memory for what was asked; files are as they were, and smaller requests still work."""
