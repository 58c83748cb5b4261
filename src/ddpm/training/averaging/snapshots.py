"""Averages kept on the way, so that one of another length can be made afterwards: `RUN/snapshots/step-0000100/ema-0.050.safetensors`.

A snapshot is a folder like a checkpoint's, whole or absent and verified by SHA-256. It holds the averaged parameters in the precision of
training: short lengths are differences of long ones, in which half precision would be lost a hundredfold.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ddpm.errors import CheckpointError, DiskError
from ddpm.training.averaging.ema import PowerEMA, name_of
from ddpm.training.averaging.posthoc import Profile
from ddpm.training.checkpoints import checkpoint, storage
from ddpm.training.checkpoints.checkpoint import Checkpoint
from ddpm.training.checkpoints.verified import candidates
from ddpm.training.distributed import sharded
from ddpm.training.distributed.world import World

FOLDER = "snapshots"


class Kept(NamedTuple):
    """An average that was kept: its profile, and how to read its parameters."""

    profile: Profile
    read: Callable[[], dict[str, Tensor]]


def save_snapshot(
    run: Path, step: int, good_steps: int, averages: Sequence[PowerEMA], notice: Callable[[str], None], world: World, *, parts: bool = False
) -> Path:
    """Keep the averages as they are after `step` steps, `good_steps` of which changed the weights; called by all ranks.

    parts: each rank writes what it holds. Raises DiskError.
    """
    document = {"snapshot": {"step": step, "good_steps": good_steps, "widths": [average.width for average in averages]}}
    groups = {average.name: average.weights for average in averages}
    try:
        return sharded.save(run / FOLDER, step, groups, document, world=world, parts=parts, notice=notice)
    except DiskError as error:
        reason = error.__cause__.strerror if isinstance(error.__cause__, OSError) else None
        raise DiskError(
            f"cannot write the snapshot of step {step} in {run / FOLDER}: {reason or error}. The run's checkpoints are intact; "
            "free some space, or resume with a larger --snapshots or with 0"
        ) from error


def drop_after(run: Path, step: int, notice: Callable[[str], None]) -> int:
    """Remove the snapshots after a step, which the run has not reached yet, and return how many; for the owner of the `RunLock` only."""
    folder = run / FOLDER
    checkpoint.clean(folder, notice)
    later = [(number, path) for number, path in candidates(folder) if number > step]
    try:
        for _, path in later:
            storage.discard(path)
    except OSError as error:
        raise DiskError(f"cannot remove the snapshots after step {step} in {folder}: {error.strerror}") from error
    if later:
        notice(f"removed {len(later)} snapshots after step {step}; the run makes them again")
    return len(later)


def kept(saved: Checkpoint, parameters: Collection[str], notice: Callable[[str], None]) -> list[Kept]:
    """The averages of a checkpoint and of the snapshots before it, no profile twice; a damaged snapshot is told and left out.

    parameters: the names of those a model trains; they alone are read, buffers are not averaged.
    """
    state = saved.document("state")
    found: dict[Profile, Kept] = {}

    def add(folder: Checkpoint, end: int, widths: Sequence[float]) -> None:
        for width in widths:
            found.setdefault(Profile(end, float(width)), Kept(Profile(end, float(width)), partial(_read, folder, float(width), parameters)))

    widths = state["config"]["ema"]
    add(saved, int(state["good_steps"]), widths if isinstance(widths, list) else [widths])
    for _, path in candidates(saved.path.parent / FOLDER):
        try:
            snapshot = checkpoint.open_checkpoint(path)
            document = snapshot.document("snapshot")
            add(snapshot, int(document["good_steps"]), document["widths"])
        except (CheckpointError, KeyError, TypeError, ValueError) as error:
            notice(f"a snapshot is left out: {error}")
    return [one for one in found.values() if 0 < one.profile.end <= int(state["good_steps"])]


def _read(folder: Checkpoint, width: float, parameters: Collection[str]) -> dict[str, Tensor]:
    tensors = folder.tensors(name_of(width))
    missing = [name for name in parameters if name not in tensors]
    if missing:
        raise CheckpointError(f"{folder.path}: {name_of(width)} lacks {len(missing)} of the model's tensors, {missing[0]} first")
    return {name: tensors[name] for name in parameters}
