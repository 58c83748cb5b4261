"""Checkpoints: one fresh folder a step, verified by SHA-256 before its name is given and before any tensor of it is used.

    run/step-0002000/   model.safetensors, ema-0.999.safetensors, ..., config.json, state.json, ... and manifest.json, written last
    run/latest          the name of the newest folder, for people and scripts; nothing here depends on it

A save writes beside the final name, flushes, reads back and compares, and only then renames, so that a process killed at any moment leaves
the earlier checkpoint whole. Tensors are safetensors, the rest is JSON: no file of a checkpoint can carry code, and one that does is
refused unopened. The hashes guard against damage, not against a forger, who can write a manifest too.

This module writes; `verified` reads, `tensors` flattens states, `lock` keeps a second writer out, `sharded` has many processes write their
parts. All public names are here.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

import ddpm
from ddpm.errors import CheckpointError, DiskError
from ddpm.training.checkpoints import storage
from ddpm.training.checkpoints.lock import RunLock
from ddpm.training.checkpoints.retention import best, ranked
from ddpm.training.checkpoints.storage import size_text
from ddpm.training.checkpoints.tensors import flatten, load_into, snapshot, to_bytes, unflatten
from ddpm.training.checkpoints.verified import (
    FILE,
    FORMAT,
    MANIFEST,
    PART,
    PARTED,
    Checkpoint,
    candidates,
    newest,
    open_checkpoint,
    sealed,
    to_stderr,
    verify,
)

__all__ = [
    "Checkpoint",
    "RunLock",
    "best",
    "clean",
    "flatten",
    "latest_name",
    "load_into",
    "newest",
    "open_checkpoint",
    "save",
    "unflatten",
]

LATEST = "latest"

_LEFTOVER = re.compile(r"(?P<name>(?P<save>step-\d+|latest)|(README|[a-z_]+)\.(md|jsonl?|toml|npy))\.(?P<why>tmp|old|pruned)-[0-9a-f]+")


def save(
    run: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    documents: Mapping[str, Mapping[str, Any]],
    keep: int | None = None,
    notice: Callable[[str], None] = to_stderr,
    keep_best: int = 0,
) -> Path:
    """Write `run/step-<step>/` with a safetensors file for each entry of `tensors` and a JSON file for each of `documents`, and return its
    path.

    It takes its name only once it has been read back and compared; then `latest` moves, and with `keep` all but the newest `keep` folders
    go, save the `keep_best` of lowest held-out loss (never the one just written, nor the one `latest` names). The caller holds
    the `RunLock`. A folder of the same step is replaced. When this returns the save is finished: nothing is left to a background thread.

    Raises: NonFiniteError naming the tensor that holds NaN or infinity, and DiskError where it cannot be written; in both cases what was on
    the disk is intact. ValueError, TypeError for names, a step or values that cannot be stored.
    """
    check_request(step, [f"{name}.safetensors" for name in tensors] + [f"{name}.json" for name in documents], keep)
    run = Path(run)
    folder = run / f"step-{step:07d}"
    ready = {name: snapshot(group, f"step {step}, {name}") for name, group in tensors.items()}
    texts = {f"{name}.json": storage.to_json(document, f"{name}.json") for name, document in documents.items()}
    need = sum(map(len, texts.values())) + sum(t.nbytes + 256 for group in ready.values() for t in group.values())
    staged = storage.aside(folder)
    with attempt(staged, run, step, need):
        begin(staged, run, step, need, notice)
        files = {
            f"{name}.safetensors": storage.write_file(staged / f"{name}.safetensors", to_bytes(group)) for name, group in ready.items()
        }
        commit(staged, folder, step, files, texts)
    publish(run, step, folder, keep, keep_best, notice)
    return folder


@contextmanager
def attempt(staged: Path, run: Path, step: int, need: int) -> Iterator[None]:
    """Around the writing of a checkpoint: where that fails the staged folder goes, an OSError becomes the DiskError that explains it."""
    try:
        yield
    except BaseException as error:
        with suppress(OSError):
            storage.remove(staged)
        if isinstance(error, OSError):
            raise _cannot_write(run, step, need, error) from error
        raise


def begin(staged: Path, run: Path, step: int, need: int, notice: Callable[[str], None]) -> None:
    """Make the provisional folder, if `need` bytes fit on the disk. Raises: OSError."""
    run.mkdir(parents=True, exist_ok=True)
    _preflight(run, step, need, notice)
    staged.mkdir()
    storage.boundary("folder")


def publish(run: Path, step: int, folder: Path, keep: int | None, keep_best: int, notice: Callable[[str], None]) -> None:
    """Let `latest` name a checkpoint that is committed, and remove those beyond `keep` and `keep_best`. Raises: DiskError."""
    try:
        storage.replace_text(run / LATEST, folder.name + "\n")
    except OSError as error:
        raise DiskError(f"step {step} is saved and whole, but {run / LATEST} cannot be written: {error.strerror}") from error
    if keep is not None:
        _prune(run, keep, keep_best, folder, notice)


def check_request(step: int, files: list[str], keep: int | None) -> None:
    """ValueError for a step, file names or a number of checkpoints to keep that cannot be meant."""
    if type(step) is not int or step < 0:
        raise ValueError(f"step is {step!r}, expected a whole number >= 0")
    if keep is not None and keep < 1:
        raise ValueError(f"keep is {keep}, expected at least 1 checkpoint (or None to keep all)")
    for file in files:
        if not FILE.fullmatch(file) or file.lower() == MANIFEST or PART.fullmatch(file):
            raise ValueError(f"{file!r} cannot be a file of a checkpoint; names are letters, digits, '.', '_' and '-', {MANIFEST} is taken")
    if len({file.lower() for file in files}) < len(files):  # one file on macOS and Windows
        raise ValueError(f"names differ in upper and lower case only: {', '.join(sorted(files))}")


def commit(staged: Path, folder: Path, step: int, tensors: Mapping[str, storage.Record], texts: Mapping[str, bytes]) -> None:
    """Add documents and, last, the manifest to the tensor files in a staged folder, check what the disk gives back, and give it its name.

    Raises: OSError.
    """
    files = {**tensors, **{name: storage.write_file(staged / name, text) for name, text in texts.items()}}
    listed = {name: record._asdict() for name, record in files.items()}
    manifest = {"format": PARTED if any(map(PART.fullmatch, files)) else FORMAT, "ddpm": ddpm.__version__, "step": step, "files": listed}
    storage.write_file(staged / MANIFEST, sealed(manifest))
    storage.sync_folder(staged)
    storage.boundary("fsync folder")
    try:
        verify(staged)
    except CheckpointError as error:
        raise OSError(errno.EIO, f"what was read back is not what was written ({error})") from error
    storage.boundary("verify")
    _rename(staged, folder)


def _rename(staged: Path, folder: Path) -> None:
    """Give a staged folder its name. One of that name is set aside first; `clean` brings it back should the process end in between."""
    former = storage.aside(folder, "old") if os.path.lexists(folder) else None
    if former:
        os.replace(folder, former)
        storage.boundary("set aside")
    try:
        os.replace(staged, folder)
    except OSError:
        if former:
            os.replace(former, folder)
        raise
    storage.boundary("rename")
    storage.sync_folder(folder.parent)
    storage.boundary("fsync run")
    if former:
        with suppress(OSError):  # `clean` tries again
            storage.remove(former)
        storage.boundary("remove former")


def check_room(run: Path, step: int, need: int, notice: Callable[[str], None]) -> None:
    """Before a start: whether the checkpoint of `step`, about `need` bytes, fits on the disk of a run. Raises: DiskError."""
    try:
        _preflight(run, step, need, notice)
    except OSError as error:
        advice = "Nothing was trained; free some space, or name an --out on another disk, and give the same command again"
        raise DiskError(f"{_cannot_write(run, step, need, error)}. {advice}") from error


def _preflight(run: Path, step: int, need: int, notice: Callable[[str], None]) -> None:
    free = storage.free_space(run)
    if free < need:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if free < 2 * need:
        notice(f"disk nearly full: step {step} takes {size_text(need)}, {size_text(free)} free in {run}")


def intact(run: Path) -> str:
    """What is left where a run cannot be written to, as a sentence: "Step 100 is intact"."""
    with suppress(CheckpointError):
        for _, path in candidates(run):
            with suppress(CheckpointError):
                return f"Step {verify(path).step} is intact"
    return "No earlier checkpoint of this run exists"


def _cannot_write(run: Path, step: int, need: int, error: OSError) -> DiskError:
    left = intact(run)
    if error.errno == errno.EFBIG:
        return DiskError(f"cannot write step {step}: need {size_text(need)}, more than the system lets one file hold in {run}. {left}")
    if error.errno in storage.NO_ROOM:
        with suppress(OSError):
            free = size_text(storage.free_space(run))
            return DiskError(f"cannot write step {step}: need {size_text(need)}, {free} free in {run}. {left}")
    return DiskError(f"cannot write step {step} in {run}: {error.strerror or error}. {left}")


def _prune(run: Path, keep: int, keep_best: int, saved: Path, notice: Callable[[str], None]) -> None:
    """Remove the oldest folders but `keep` and the `keep_best` best."""
    spared = {saved.name, latest_name(run), *(path.name for _, path, _ in (ranked(run)[:keep_best] if keep_best else ()))}
    for step, path in reversed(candidates(run)[keep:]):
        if path.name in spared:
            continue
        try:
            storage.discard(path)
        except OSError as error:
            notice(f"step {step} could not be pruned: {error.strerror or error}")


def latest_name(run: Path) -> str | None:
    """The folder name in `run/latest`; None where there is none to be read. It may name a folder that is gone."""
    with suppress(OSError, ValueError):
        return (Path(run) / LATEST).read_text(encoding="utf-8").strip()
    return None


def clean(run: Path, notice: Callable[[str], None] = to_stderr) -> int:
    """Remove what saves that were cut short left in a run, and return how many those were; for the owner of the `RunLock` only.

    Raises: DiskError where something cannot be removed.
    """
    run = Path(run)
    unfinished = 0
    try:
        for path in sorted(run.iterdir()) if run.is_dir() else []:
            leftover = _LEFTOVER.fullmatch(path.name)
            if not leftover:
                continue
            whole = run / leftover["name"]
            if leftover["why"] == "old" and not os.path.lexists(whole):
                os.replace(path, whole)  # cut short between two renames
                continue
            storage.remove(path)
            unfinished += leftover["why"] == "tmp" and leftover["save"] is not None
    except OSError as error:
        raise DiskError(f"cannot remove what an unfinished save left in {run}: {error.strerror or error}") from error
    if unfinished:
        notice(f"removed {unfinished} unfinished save{'s' if unfinished > 1 else ''}")
    return unfinished
