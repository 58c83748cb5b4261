"""Checkpoints as they are read: verified file by file before anything is used; a bad one gives way to the one before it."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import safetensors
import torch
from safetensors.torch import load as safetensors_load

import ddpm
from ddpm.errors import CheckpointError
from ddpm.lazy import at_least
from ddpm.training.checkpoints import storage
from ddpm.training.checkpoints.storage import Record, size_text
from ddpm.training.checkpoints.tensors import join

at_least(torch)
at_least(safetensors)

FORMAT = 1  # raised when an older version could not read, or would misread, what is written now
PARTED = 2  # the same with tensors in parts, one for each process that wrote
MANIFEST = "manifest.json"

FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.(safetensors|json)")
PART = re.compile(r"(?P<name>.+)\.part-(?P<part>\d{5})-of-(?P<parts>\d{5})\.safetensors")
_FOLDER = re.compile(r"step-(\d+)(\.old-[0-9a-f]+)?")  # .old-: set aside while its successor of the same step takes the name
_DESKTOP = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})  # what file managers leave behind; never read
_RELISTS = 5  # times the run is looked through again when pruning overtakes a reader


def to_stderr(message: str) -> None:
    """Where notices go unless the caller takes them."""
    print(message, file=sys.stderr)


@dataclass(frozen=True)
class Checkpoint:
    """A folder every file of which has been verified; its content is checked once more as it is read."""

    path: Path
    step: int  # training steps done when it was written
    written_by: str  # version of ddpm
    files: Mapping[str, Record]

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """What `tensors` accepts: "model", "ema-0.999", "optimizer", ..."""
        files = (name for name in self.files if name.endswith(".safetensors"))
        return tuple(sorted({match["name"] if (match := PART.fullmatch(name)) else name.removesuffix(".safetensors") for name in files}))

    @property
    def document_names(self) -> tuple[str, ...]:
        """What `document` accepts: "config", "state", ..."""
        return tuple(sorted(name.removesuffix(".json") for name in self.files if name.endswith(".json")))

    def parts(self, name: str) -> list[str]:
        """The files of the parts in which many processes saved these tensors, in order; empty where one file holds them."""
        return sorted(file for file in self.files if (match := PART.fullmatch(file)) and match["name"] == name)

    def sha256(self, name: str) -> str:
        """SHA-256 of the file of these tensors; of parts, that of their hashes one after the other. Raises: KeyError."""
        parts = self.parts(name)
        if not parts:
            return self.files[f"{name}.safetensors"].sha256
        return hashlib.sha256("".join(self.files[part].sha256 for part in parts).encode()).hexdigest()

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors saved under a name, on the CPU, parts put together. Raises: CheckpointError."""
        if parts := self.parts(name):
            try:
                return join(map(self._read, parts))
            except CheckpointError as error:
                raise CheckpointError(f"{self.path}: the parts of {name} cannot be put together: {error}") from error
        content = self._read(f"{name}.safetensors")
        try:
            return safetensors_load(content)
        except Exception as error:  # the library raises a handful of unrelated types
            raise CheckpointError(f"{self.path}: {name}.safetensors is not a safetensors file: {error}") from error

    def document(self, name: str) -> dict[str, Any]:
        """The document saved under a name. Raises: CheckpointError."""
        return storage.from_json(self._read(f"{name}.json"), f"{self.path}: {name}.json")

    def _read(self, file: str) -> bytes:
        if file not in self.files:
            raise CheckpointError(f"{self.path} has no {file}; it holds {', '.join(sorted(self.files))}")
        try:
            content = (self.path / file).read_bytes()
        except OSError as error:
            if self.path.is_dir():
                raise CheckpointError(f"{self.path}: {file} cannot be read: {error.strerror}") from error
            left = [step for step, _ in candidates(self.path.parent)]
            advice = f"use step {left[0]}" if left else "no other is left"
            raise CheckpointError(f"{self.path} was pruned while it was read; {advice}") from error
        if Record(len(content), hashlib.sha256(content).hexdigest()) != self.files[file]:
            raise CheckpointError(f"{self.path}: {file} was changed after it was verified")
        return content


def open_checkpoint(folder: Path) -> Checkpoint:
    """Verify a checkpoint folder (a link to one may be given) and open it; see `newest` for the usual way in.

    Raises: CheckpointError where anything is missing, added, damaged, a link, of a newer format, or a pickle, zip or tar file.
    """
    try:
        return verify(Path(folder).resolve())
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def newest(run: Path, step: int | None = None, notice: Callable[[str], None] = to_stderr) -> Checkpoint | None:
    """The newest good checkpoint of a run, by step; a bad one is reported through `notice` and the one before it used.

    None only where the run holds no checkpoint at all. With `step`, that one or an error.

    Raises: CheckpointError where checkpoints exist but none can be used (each is listed with the reason), or `step` is missing or bad.
    """
    run = Path(run)
    for _ in range(_RELISTS):
        held = candidates(run)
        wanted = [(number, path) for number, path in held if step in (None, number)]
        refused: list[tuple[int, Path, str]] = []
        for number, path in wanted:
            try:
                found = verify(path)
            except CheckpointError as error:
                refused.append((number, path, str(error)))
                continue
            for bad, _, reason in refused:
                notice(f"step {bad}: {reason}; using step {number}")
            return found
        if all(os.path.lexists(path) for _, path, _ in refused):  # else pruned under our eyes: something newer is there
            break
    if step is not None:
        reasons = "".join(f"\n  {path.name}: {reason}" for _, path, reason in refused)
        others = ", ".join(str(number) for number, _ in held if number != step) or "none"
        what = "cannot be used" if refused else "does not exist"
        raise CheckpointError(f"step {step} of {run} {what}; other steps there: {others}{reasons}")
    if not held:
        return None
    title = f"no checkpoint of {run} can be used; to start anew choose another folder, or move these away"
    raise CheckpointError("\n".join([title, *(f"  {path.name}: {reason}" for _, path, reason in refused)]))


def candidates(run: Path) -> list[tuple[int, Path]]:
    """Everything in a run that has a checkpoint's name, newest step first."""
    try:
        names = sorted(os.listdir(run))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{run} cannot be searched for checkpoints: {error.strerror}") from error
    found = [(int(match[1]), run / name, match[2] is not None) for name in names if (match := _FOLDER.fullmatch(name))]
    whole = {step for step, _, set_aside in found if not set_aside}
    return sorted(((step, path) for step, path, set_aside in found if not (set_aside and step in whole)), reverse=True)


def peek(folder: Path, name: str) -> dict[str, Any]:
    """The document saved under a name, itself checked by SHA-256 and the other files of the folder not looked at.

    For choosing among folders; what is chosen must still be verified. Raises: CheckpointError.
    """
    try:
        step, written_by, files = _manifest(folder)
        return Checkpoint(folder, step, written_by, files).document(name)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror or error}") from error


def verify(folder: Path) -> Checkpoint:
    """Open a folder, or raise a CheckpointError that is the bare reason, without the folder's name."""
    try:
        return _verified(folder)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror or error}") from error
    except RecursionError as error:
        raise CheckpointError(f"{MANIFEST} is nested without end") from error


def _verified(folder: Path) -> Checkpoint:
    if not folder.is_dir() or folder.is_symlink():
        code = folder.is_file() and storage.holds_code(folder)
        raise CheckpointError("contains code, refused" if code else "is not a folder" if os.path.lexists(folder) else "does not exist")
    present = set(os.listdir(folder))
    for name in sorted(present):
        if not storage.is_plain_file(folder / name):
            raise CheckpointError(f"{name} is a link, a folder or a device, expected a file; refused")
        if storage.holds_code(folder / name):
            raise CheckpointError(f"{name} contains code, refused (pickle, zip or tar; checkpoints are safetensors and JSON only)")
    step, written_by, files = _manifest(folder)
    extra = sorted(present - files.keys() - _DESKTOP - {MANIFEST})
    if extra:
        raise CheckpointError(f"{', '.join(extra)} not in {MANIFEST}, refused")
    for name, record in files.items():
        if name not in present:
            raise CheckpointError(f"{name} is missing")
        size = (folder / name).stat().st_size
        if size != record.size:
            raise CheckpointError(f"{name} has {size} bytes, {MANIFEST} says {record.size}")
        if storage.digest(folder / name) != record:
            raise CheckpointError(f"{name} fails SHA-256")
    named = _FOLDER.fullmatch(folder.name)
    if named and int(named[1]) != step:
        raise CheckpointError(f"is step {step} by its {MANIFEST}, not {int(named[1])}")
    return Checkpoint(folder, step, written_by, MappingProxyType(files))


def _manifest(folder: Path) -> tuple[int, str, dict[str, Record]]:
    """Step, version and files by a manifest that is whole."""
    path = folder / MANIFEST
    if not path.exists():
        raise CheckpointError(f"{MANIFEST} is missing: an unfinished save, or not a checkpoint of ddpm")
    if path.stat().st_size > storage.MAX_JSON:
        raise CheckpointError(f"{MANIFEST} has {size_text(path.stat().st_size)}, at most {size_text(storage.MAX_JSON)} expected")
    content = path.read_bytes()
    manifest = storage.from_json(content, MANIFEST)
    form, written_by = manifest.get("format"), manifest.get("ddpm")
    if type(form) is int and form > PARTED:
        here = f"this is ddpm {ddpm.__version__} (format {PARTED})"
        raise CheckpointError(f"written by ddpm {written_by} (format {form}), {here}; upgrade ddpm")
    manifest.pop("seal", None)
    if content != sealed(manifest):  # to the last byte, though a space more would change nothing
        raise CheckpointError(f"{MANIFEST} fails its own SHA-256")
    step, listed = manifest.get("step"), manifest.get("files")
    if not (form in (FORMAT, PARTED) and type(step) is int and step >= 0 and isinstance(written_by, str) and isinstance(listed, dict)):
        raise CheckpointError(f"{MANIFEST} is not of format {FORMAT} or {PARTED}")
    files: dict[str, Record] = {}
    for name, entry in listed.items():
        if not FILE.fullmatch(name) or name == MANIFEST:
            raise CheckpointError(f"{MANIFEST} names {name!r}, which is not a file name of a checkpoint; refused")
        match entry:
            case {"size": int(size), "sha256": str(sha256)}:
                files[name] = Record(size, sha256)
            case _:
                raise CheckpointError(f"{MANIFEST} has no size and SHA-256 for {name}")
    _check_parts(files, form == PARTED)
    return step, written_by, files


def _check_parts(files: Mapping[str, Record], parted: bool) -> None:
    """Tensors are all whole, or all in parts of one number: anything else was mixed from two saves."""
    tensors = [name for name in files if name.endswith(".safetensors")]
    parts = [match for match in map(PART.fullmatch, tensors) if match]
    if len(parts) != (len(tensors) if parted else 0):
        raise CheckpointError(f"{MANIFEST} names both whole files and parts, or parts in a format without; refused")
    if len({match["parts"] for match in parts}) > 1 or any(not 1 <= int(match["part"]) <= int(match["parts"]) for match in parts):
        raise CheckpointError(
            f"{MANIFEST} names parts of different saves ({', '.join(sorted(match[0] for match in parts)[:4])}, ...); refused"
        )


def sealed(manifest: Mapping[str, Any]) -> bytes:
    """The text of a manifest, ended by `seal`: the SHA-256 of the text without it."""
    seal = hashlib.sha256(storage.to_json(manifest, MANIFEST)).hexdigest()
    return storage.to_json({**manifest, "seal": seal}, MANIFEST)
