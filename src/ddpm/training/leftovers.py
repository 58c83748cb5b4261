"""What a run that ended has left on the disk, for messages."""

from __future__ import annotations

from pathlib import Path

from ddpm.errors import CheckpointError
from ddpm.training.checkpoints.verified import candidates


def last_checkpoint(run: Path) -> str:
    """The newest checkpoint of a run by its step, as half a sentence; that it is whole is found out when it is opened."""
    try:
        held = candidates(run)
    except CheckpointError as error:
        return str(error)
    return f"{held[0][1].name} is the last checkpoint" if held else "no checkpoint had been written yet"
