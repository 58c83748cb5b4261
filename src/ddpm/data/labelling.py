"""Joining pictures and labels: from a labels file beside them, one given by the user, or the names of folders."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.data.label_files import Labels, Line, match, read_lines
from ddpm.data.names import Places, natural
from ddpm.data.settings import DataSettings
from ddpm.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The conditions of the pictures, in their order."""

    cond: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    vector: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    texts: tuple[str, ...] | None = None


def label(files: Mapping[str, bytes], where: Places, order: Sequence[int], unused: Collection[str], settings: DataSettings) -> Labelled:
    """Conditions of the pictures at the positions `order` of `where`.

    `files` are the labels files found among the pictures, by name. One given in the settings is read instead of them; "none" means no
    labels at all. Where a labels file holds no classes, folders still give them. Lines of `unused` pictures (skipped, or of a test split)
    are passed over.

    Raises:
        DataError: two labels files in one folder, or any fault that `labels` names.
    """
    if settings.labels == "none":
        return Labelled()
    from_folders = _from_folders([where.classes[i] for i in order])
    lines, source = _lines(files, settings)
    if not source:
        mixed = any("/" in where.inner[i] for i in order) and any("/" not in where.inner[i] for i in order)
        said = ("some pictures are in folders and some beside them: folder names are not used as classes",) if mixed else ()
        return Labelled(cond=from_folders.cond, classes=from_folders.classes, notices=said)
    read: Labels = match(lines, [where.names[i] for i in order], [where.inner[i] for i in order], source, settings.classes, unused)
    cond: dict[str, NDArray[Any]] = dict(from_folders.cond) if read.ids is None else {"class": read.ids}
    if read.vector is not None:
        cond["vector"] = read.vector
    classes = from_folders.classes if read.ids is None else read.classes
    return Labelled(cond=cond, classes=classes, vector=read.vector_names, tags=read.tags, notices=read.notices, texts=read.texts)


def _lines(files: Mapping[str, bytes], settings: DataSettings) -> tuple[list[Line], str]:
    if settings.labels is not None:
        path = Path(settings.labels).expanduser()
        try:
            return read_lines(path.read_bytes(), path.name), path.name
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or 'cannot be read'}") from error
    read: dict[str, str] = {}
    lines: list[Line] = []
    for name in sorted(files, key=natural):
        folder, _, file = name.rpartition("/")
        if file.lower() == "dataset.json" and not _holds_labels(files[name]):
            continue
        if folder in read:
            raise DataError(
                f"{folder or 'the data'}: holds {read[folder].rpartition('/')[2]} and {file}; keep one, or name it with --labels"
            )
        read[folder] = name
        lines += read_lines(files[name], name, folder)
    return lines, ", ".join(read.values())


def _holds_labels(data: bytes) -> bool:
    """Whether a dataset.json is EDM's and has labels: EDM writes null where there are none, and other tools use the name too."""
    _, key, rest = data.partition(b'"labels"')
    return bool(key) and not rest.lstrip(b" \t\r\n:").startswith(b"null")


def _from_folders(of_each: Sequence[str | None]) -> Labelled:
    if not of_each or any(name is None for name in of_each):
        return Labelled()
    classes = sorted({name for name in of_each if name is not None}, key=natural)
    position = {name: i for i, name in enumerate(classes)}
    ids = np.array([position[name] for name in of_each if name is not None], dtype=np.int64)
    return Labelled(cond={"class": ids}, classes=tuple(classes))
