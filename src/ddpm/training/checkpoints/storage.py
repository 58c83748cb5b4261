"""Files that are whole or absent: written aside, flushed to the disk, verified, and only then given their name.

Nothing in here knows what a checkpoint is. Every step that a crash could fall between is announced to `boundary`, which does nothing; tests
replace it to end the process there. Directories are flushed where the system can do so (not on Windows).
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import pickletools
import re
import secrets
import shutil
import stat
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ddpm.errors import CheckpointError, DiskError, NonFiniteError

CHUNK = 16 * 2**20  # bytes written between two boundaries
HEAD = 2**16  # bytes looked at to tell what a file is
MAX_JSON = 64 * 2**20  # no document of ours comes near; a larger file is not one
NO_ROOM = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})


class Record(NamedTuple):
    """What a manifest says of one file: its length in bytes and the SHA-256 of its content in lower-case hexadecimal."""

    size: int
    sha256: str


def boundary(name: str) -> None:
    """Called after every step of a save with the step's name; does nothing (fault injection replaces it)."""


def size_text(count: float) -> str:
    """A number of bytes as people read it: "12 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def aside(path: Path, why: str = "tmp") -> Path:
    """A fresh name beside `path` for something that is not, or no longer, it: "step-0000200.tmp-1f3a9c02"."""
    return path.with_name(f"{path.name}.{why}-{secrets.token_hex(4)}")


def free_space(folder: Path) -> int:
    """Bytes that may still be written in a folder. Raises: OSError."""
    return shutil.disk_usage(folder).free


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a loss of power, where the system offers that."""
    if os.name == "nt":  # a directory cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # some network file systems: "not for directories"
            raise
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes) -> Record:
    """Write a new file and flush it to the disk; the mode obeys the umask.

    Raises: OSError; FileExistsError where the name is taken.
    """
    view = memoryview(content)
    with path.open("xb") as file:
        boundary(f"open {path.name}")
        for start in range(0, max(len(view), 1), CHUNK):
            file.write(view[start : start + CHUNK])
            boundary(f"write {path.name}")
        file.flush()
        os.fsync(file.fileno())
    boundary(f"fsync {path.name}")
    return Record(len(view), hashlib.sha256(view).hexdigest())


def replace_text(path: Path, text: str | bytes) -> None:
    """Give `path` this content in one step: a reader sees the old text or the new one, never a part. Raises: OSError."""
    fresh = aside(path)
    try:
        write_file(fresh, text.encode() if isinstance(text, str) else text)
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    boundary(f"rename {path.name}")
    sync_folder(path.parent)
    boundary(f"fsync folder of {path.name}")


def write_text(path: Path, text: str | bytes) -> None:
    """`replace_text` for a file of a run. Raises: DiskError naming it."""
    try:
        replace_text(path, text)
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror or error}") from error


def discard(path: Path) -> None:
    """Delete a folder that readers may look for, renamed first so that none meets half of it. Raises: OSError."""
    doomed = aside(path, "pruned")
    os.replace(path, doomed)
    boundary("prune rename")
    remove(doomed)
    boundary("prune remove")


def remove(path: Path) -> None:
    """Delete a file, a link (never what it points to) or a folder; what is gone already is fine. Raises: OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def digest(path: Path) -> Record:
    """Length and SHA-256 of a file, read from start to end. Raises: OSError."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return Record(file.tell(), sha256)


def is_plain_file(path: Path) -> bool:
    """True for a regular file; False for links, folders, pipes and devices, none of which is ever opened."""
    return stat.S_ISREG(path.lstat().st_mode)


# JSON ----------------------------------------------------------------------------------------------


def to_json(document: Mapping[str, Any], what: str) -> bytes:
    """A mapping as JSON text that reads back equal (tuples come back as lists).

    Raises: NonFiniteError for a NaN or an infinity, TypeError for a value or a key JSON would alter; both name the entry.
    """
    _check_value(document, what)
    return (json.dumps(document, allow_nan=False, indent=1) + "\n").encode()


def _check_value(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where}: key {key!r} is {type(key).__name__}, JSON keeps only text keys")
            _check_value(entry, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, entry in enumerate(value):
            _check_value(entry, f"{where}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise NonFiniteError(f"{where} is {value}; a checkpoint holds finite numbers only, nothing was written")
    elif not (value is None or isinstance(value, (bool, int, float, str))):
        raise TypeError(f"{where}: {type(value).__name__} cannot be written as JSON")


def from_json(content: bytes, what: str) -> dict[str, Any]:
    """The mapping in a JSON text; stricter than the standard library.

    Raises: CheckpointError for text that is not UTF-8 or not JSON, a duplicate key, a NaN, an infinity (1e999 too), nesting without end, or
    no mapping.
    """
    try:
        value = json.loads(content.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} holds a JSON {type(value).__name__}, expected an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate key {next(name for name in names if names.count(name) > 1)!r}")
    return result


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number JSON knows")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is out of range")
    return value


# content that could run ----------------------------------------------------------------------------

_CALLS = frozenset({"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD", "EXT1", "EXT2", "EXT4"})
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_ZIP = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")


def holds_code(path: Path) -> bool:
    """Whether a file is a pickle, or a zip or tar archive (how pickled weights travel) rather than safetensors or JSON.

    Looks at the first 64 KiB only, and runs and unpacks nothing. Raises: OSError.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
        size = file.seek(0, os.SEEK_END)
    safetensors = head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8
    if not head or head[:1] == b"{" or safetensors:
        return False
    return bool(_PICKLE.match(head)) or head.startswith(_ZIP) or _is_tar(head) or _is_old_pickle(head)


def _is_tar(head: bytes) -> bool:
    if head[257:262] == b"ustar":
        return True
    try:
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")  # the oldest tars have a checksum only
    except tarfile.TarError:
        return False
    return True


def _is_old_pickle(head: bytes) -> bool:
    """Protocols 0 and 1 have no mark; their instructions can be listed without being followed."""
    try:
        return any(opcode.name in _CALLS for opcode, _, _ in pickletools.genops(head))
    except Exception:  # whatever the reader trips on: not a pickle
        return False
