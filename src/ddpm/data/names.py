"""Names of files in a data set: which are allowed, how they are sorted, and what they say about split and class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddpm.errors import DataError

# The second row is refused by `decode` with a reason each; a picture that is silently passed over is worse.
PICTURES = (".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
REFUSED = (".eps", ".ps", ".svg", ".heic", ".heif", ".avif", ".jp2", ".psd", ".tga", ".ico", ".exr", ".hdr", ".dng", ".cr2", ".nef")
LABEL_FILES = ("labels.csv", "metadata.csv", "metadata.jsonl", "dataset.json")
_HELD = ("validation", "valid", "val")
SPLITS = ("train", *_HELD, "test")


def is_picture(name: str) -> bool:
    """Whether a file is taken for a picture, by its ending; hidden files and macOS's resource copies never are."""
    parts = name.lower().split("/")
    return parts[-1].endswith(PICTURES + REFUSED) and not any(part.startswith(".") or part == "__macosx" for part in parts)


def is_labels(name: str) -> bool:
    """Whether a file is one of the label files that are looked for."""
    return name.rsplit("/", 1)[-1].lower() in LABEL_FILES


def safe_name(name: str, archive: str) -> str:
    """The member's name with / between parts and no `.` parts.

    Raises:
        DataError: names that point out of the data set: absolute, with a drive, with `..`, or with a NUL.
    """
    shown = f"{archive}: member {name!r}"
    if "\0" in name:
        raise DataError(f"{shown} has a NUL in its name; refused")
    plain = name.replace("\\", "/")
    if plain.startswith("/") or re.match(r"[A-Za-z]:", plain):
        raise DataError(f"{shown} has an absolute path; refused")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise DataError(f"{shown} points out of the archive with '..'; refused")
    return "/".join(parts)


def natural(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """A sort key that puts 2.jpg before 10.jpg, and never calls two different names equal."""
    runs = (run for run in re.split(r"([0-9]+)", name) if run)
    return tuple((0, int(run), "") if run.isascii() and run.isdigit() else (1, 0, run) for run in runs), name


@dataclass(frozen=True, kw_only=True)
class Places:
    """What the folders say of each picture: its path within its split, its class (None: none), whether it is held out or left out."""

    names: tuple[str, ...]
    inner: tuple[str, ...]
    classes: tuple[str | None, ...]
    held: tuple[bool, ...]
    left_out: tuple[bool, ...]


def places(names: Sequence[str]) -> Places:
    """Reads split and class from paths.

    Folders that all pictures share are ignored. If the top folders then are train, validation (valid, val) and test and nothing else, they
    are splits: validation is held out, test is left out, and the rest of the path counts. The top folder of what remains is the
    class, if every picture is in one and there are two or more.
    """
    inner = _strip([tuple(name.split("/")) for name in names])
    tops = {parts[0].lower() for parts in inner if len(parts) > 1}
    held = left_out = [False] * len(inner)
    if tops and tops <= set(SPLITS) and all(len(parts) > 1 for parts in inner):
        held = [parts[0].lower() in _HELD for parts in inner]
        left_out = [parts[0].lower() == "test" for parts in inner]
        inner = _strip([parts[1:] for parts in inner])
    used = [parts for parts, out in zip(inner, left_out, strict=True) if not out]
    is_class = all(len(parts) > 1 for parts in used) and len({parts[0] for parts in used}) > 1
    return Places(
        names=tuple(names),
        inner=tuple("/".join(parts) for parts in inner),
        classes=tuple(parts[0] if is_class and len(parts) > 1 else None for parts in inner),
        held=tuple(held),
        left_out=tuple(left_out),
    )


def _strip(paths: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The paths without the folders that all of them are in; a lone split folder goes the same way."""
    while paths and all(len(parts) > 1 for parts in paths) and len({parts[0] for parts in paths}) == 1:
        paths = [parts[1:] for parts in paths]
    return paths


class Names:
    """Texts in one block: a few bytes each, where a list of strings takes about a hundred."""

    def __init__(self, block: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.block, self.ends = block, ends

    @classmethod
    def of(cls, names: list[str]) -> Names:
        """The names, packed."""
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> str:
        start = int(self.ends[i - 1]) if i else 0
        return self.block[start : int(self.ends[i])].tobytes().decode("utf-8", "surrogateescape")
