"""Checkpoints put together out of parts, in a run folder of their own that remembers which run and which steps they are of.

RUN/merged.json says where every step folder beside it came from; without it, or with a step it does not know, nothing is written there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ddpm.errors import CheckpointError, ConfigError
from ddpm.training.averaging.weights import FOLDER, save_chosen, weight_set
from ddpm.training.checkpoints import checkpoint, storage
from ddpm.training.checkpoints.checkpoint import Checkpoint
from ddpm.training.checkpoints.verified import candidates
from ddpm.training.same_data import CARD, read_keys, write_keys
from ddpm.training.state import open_run

MARK = "merged.json"


def _identity(saved: Checkpoint) -> str:
    """Which run a checkpoint is of; where an older version wrote it, the folder it is in."""
    return str(saved.document("state").get("run") or saved.path.parent.resolve())


def _refusal(home: Path, reason: str) -> ConfigError:
    return ConfigError(f"to: {home} {reason}; name another folder, nothing was changed")


def _steps(home: Path, identity: str) -> list[int]:
    """The steps of the run that this command has written into a folder before; ConfigError for a folder that holds anything else."""
    if home.exists() and not home.is_dir():
        raise _refusal(home, "is a file")
    if not home.is_dir() or all(path.name.startswith(".lock") for path in home.iterdir()):
        return []
    try:
        mark: dict[str, Any] = storage.from_json((home / MARK).read_bytes(), MARK)
        source, steps = mark["run"], [int(step) for step in mark["steps"]]
    except (OSError, CheckpointError, KeyError, TypeError, ValueError) as error:
        raise _refusal(home, f"is not empty and was not made by ddpm merge (its {MARK} would say so)") from error
    if source != identity:
        raise _refusal(home, "was merged from another run")
    strange = sorted({step for step, _ in candidates(home)} - set(steps))
    if strange:
        raise _refusal(home, f"holds step {strange[0]}, which ddpm merge did not write (was it trained further?)")
    return steps


def _same(home: Path, saved: Checkpoint) -> Path | None:
    """The step folder there with exactly the content of `saved`; None where there is no such step, ConfigError where it differs."""
    path = dict(candidates(home)).get(saved.step)
    if path is None:
        return None
    try:
        there = checkpoint.open_checkpoint(path)
    except CheckpointError as error:
        raise ConfigError(f"to: {error}; remove that folder, or name another") from error
    equal = (there.tensor_names, there.document_names) == (saved.tensor_names, saved.document_names)
    equal = equal and all(there.document(name) == saved.document(name) for name in saved.document_names)
    for name in saved.tensor_names if equal else ():
        ours, theirs = there.tensors(name), saved.tensors(name)
        equal = equal and ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
    if not equal:
        raise _refusal(home, f"holds another step {saved.step}")
    return path


def _choose(saved: Checkpoint, merged: Checkpoint, notice: Callable[[str], None]) -> None:
    """What `ddpm ema` chose for the source is what samples of the merged one are drawn with."""
    theirs, ours = weight_set(saved, "ema", notice), weight_set(merged, "ema")
    home = merged.path.parent / FOLDER
    if theirs.folder.path != saved.path:
        document = theirs.folder.document("ema")
        found = {key: value for key, value in document.items() if key not in ("length", "step", "model")}
        save_chosen(merged, float(document["length"]), theirs.tensors(), found, notice)
        notice(f"{theirs.told}: taken along")
    elif ours.folder.path != merged.path:
        notice(f"{home} holds a choice of ddpm ema that its source has not; remove {home} to sample with the same weights")
    if (saved.path.parent / "snapshots").is_dir():
        notice(f"the snapshots stay in {saved.path.parent}: ddpm ema compares lengths there; merge again to take its choice along")


def merge(run: str | Path, to: str | Path, step: int | None = None, notice: Callable[[str], None] = checkpoint.to_stderr) -> Path:
    """Write a checkpoint of a run, put together where it is in parts, into another run folder, and return the step folder there.

    The weights that `ddpm ema` chose for it go along, snapshots do not. A folder that is not empty must have been made by this function
    from the same run, and a step that is there is never replaced by another. Raises CheckpointError for a run that cannot be read,
    ConfigError for another folder, LockedError, DiskError.
    """
    saved, home = open_run(run, step, notice), Path(to)
    source = saved.path.parent
    if home.resolve().is_relative_to(source.resolve()):
        raise _refusal(home, f"is the run itself, or lies in it ({source})")
    identity = _identity(saved)
    _steps(home, identity)
    with checkpoint.RunLock(home):
        steps = _steps(home, identity)  # another process may have been quicker
        checkpoint.clean(home, notice)
        folder = _same(home, saved)
        if folder is None:
            mark = {"run": identity, "steps": sorted({*steps, saved.step})}
            storage.write_text(home / MARK, json.dumps(mark) + "\n")  # first: a step folder is never there without it
            tensors = {name: saved.tensors(name) for name in saved.tensor_names}
            documents = {name: saved.document(name) for name in saved.document_names}
            folder = checkpoint.save(home, saved.step, tensors, documents, notice=notice)
        if (source / CARD).is_file():
            storage.write_text(home / CARD, (source / CARD).read_bytes())
            write_keys(home, read_keys(source))
        _choose(saved, checkpoint.open_checkpoint(folder), notice)
    return folder
