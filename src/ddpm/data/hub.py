"""Hugging Face data sets: a name on the hub, or a folder written by `save_to_disk`; needs the optional package `datasets`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.data.arrays import found_arrays
from ddpm.data.captions import TEXT, packed
from ddpm.data.dataset import Rows
from ddpm.data.demand import Arrays, OnDemand, Stamp, stamp
from ddpm.data.found import Found
from ddpm.data.pictures import assemble, scan_pictures
from ddpm.data.settings import DataSettings
from ddpm.data.sources import Member
from ddpm.errors import ConfigError, DataError

_TRAIN, _HELD = ("train",), ("validation", "valid", "val")
_LABELS = ("label", "labels", "class", "fine_label")


class HubFiles:
    """The pictures of a column, by row, the parts one after another; Arrow's files are mapped, so a row costs no more than its bytes."""

    def __init__(self, parts: Sequence[Any], image: str, title: str) -> None:
        from datasets import Image  # pyright: ignore[reportMissingImports]

        self._parts = [part.select_columns([image]).cast_column(image, Image(decode=False)) for part in parts]
        self._ends, self._image, self._title = np.cumsum([len(part) for part in parts]), image, title

    @classmethod
    def of(cls, name: str) -> HubFiles:
        """The pictures of the data set that `--data` names, as `read_hub` finds them."""
        used, title = _used(name.removeprefix("hf:"))
        return cls(list(used.values()), next(key for key, kind in _kinds(used["train"]).items() if kind == "Image"), title)

    def members(self) -> Iterator[Member]:
        """All pictures, one after another."""
        for number, row in enumerate(itertools.chain.from_iterable(self._parts)):
            data = _bytes(row[self._image])
            yield Member(self.name(number), len(data), lambda data=data: data)

    def read(self, numbers: Rows) -> Iterator[tuple[int, bytes]]:
        """The bytes of each picture, in the order asked for; none where a row has no picture."""
        for place, number in enumerate(numbers):
            part, row = self._at(int(number))
            yield place, _bytes(self._parts[part][row][self._image])

    def name(self, number: int) -> str:
        """Part and row."""
        part, row = self._at(number)
        return f"{'validation' if part else 'train'}/{row:09d}.png"  # the ending only marks it as a picture: its content says which

    def arrays(self) -> Arrays:
        """Nothing: the number is the row."""
        return {}

    def _at(self, number: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._ends, number, side="right"))
        return part, number - (int(self._ends[part - 1]) if part else 0)


def is_saved(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return path.is_dir() and any((path / mark).is_file() for mark in ("dataset_dict.json", "state.json"))


def hub_files(data: str) -> list[Stamp] | None:
    """The Arrow files behind `--data` where it is a Hugging Face data set, as they are now; None where it is anything else.

    Raises ConfigError or DataError as `read_hub` does.
    """
    path = Path(data).expanduser()
    if not data.startswith("hf:") and not is_saved(path):
        return None
    used, _ = _used(data.removeprefix("hf:"))
    files = [Path(file["filename"]) for part in used.values() for file in part.cache_files]
    prints = [(str(getattr(part, "_fingerprint", "")), len(part), 0) for part in used.values()]
    return [*prints, *(stamp(file.parent, file.name) for file in files)] if files else None


def read_hub(name: str, settings: DataSettings, bad_files: Path | None = None) -> Found:
    """The data set `NAME`, `NAME:CONFIG` or a local folder; its split train, with validation held out where there is one.

    The first column of pictures gives the samples, decoded by our own policy, and at each visit where they are larger than the settings'
    share of the memory; without one, all columns of single numbers make a table.
    The first column of class labels gives the classes, a column `text` the captions of pictures. Code that comes with a data
    set is never run.

    Raises:
        ConfigError: the package `datasets` is missing, or a labels file was asked for.
        DataError: no such data set, no split train, or no column that can be used.
    """
    if settings.labels not in (None, "none"):
        raise ConfigError(f"labels: {settings.labels} does not apply to hf:{name}; its labels are a column")
    used, title = _used(name)
    features, kinds = used["train"].features, _kinds(used["train"])
    labels = next((key for key, kind in kinds.items() if kind == "ClassLabel"), None) or next((k for k in _LABELS if k in kinds), None)
    image = next((key for key, kind in kinds.items() if kind == "Image"), None)
    if image is not None:
        return _pictures(used, title, image, labels, settings, bad_files)
    columns = [key for key, feature in features.items() if key != labels and _is_number(feature)]
    if not columns:
        raise DataError(f"{title}: no column of pictures or numbers; found {', '.join(f'{key} ({kind})' for key, kind in kinds.items())}")
    return _table(used, title, columns, labels, settings)


def _used(name: str) -> tuple[dict[str, Any], str]:
    """The parts that are read, "train" and perhaps "held", and what messages call the data."""
    splits = _splits(name)
    parts = {role: next((splits[key] for key in keys if key in splits), None) for role, keys in (("train", _TRAIN), ("held", _HELD))}
    if parts["train"] is None:
        raise DataError(f"hf:{name}: no split 'train'; found {', '.join(map(str, splits))}")
    return {role: part for role, part in parts.items() if part is not None}, f"hf:{name}"


def _kinds(part: Any) -> dict[str, str]:
    return {key: type(feature).__name__ for key, feature in part.features.items()}


def _splits(name: str) -> Mapping[str, Any]:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(f"data: hf:{name} needs the package datasets; install it with  pip install 'ddpm[datasets]'") from error
    path = Path(name).expanduser()
    try:
        if is_saved(path):
            read: Any = datasets.load_from_disk(str(path))
        elif path.is_dir():
            read = datasets.load_dataset(str(path))
        else:
            base, _, config = name.partition(":")
            read = datasets.load_dataset(base, config or None)
    except Exception as error:  # the package raises its own, Arrow's, fsspec's and the network's errors
        said = f"cannot be loaded ({type(error).__name__}); check the name and the network, or HF_HOME for a copy"
        raise DataError(f"hf:{name}: {said}") from error
    return read if isinstance(read, Mapping) else {"train": read}


def _pictures(used: Mapping[str, Any], title: str, image: str, labels: str | None, settings: DataSettings, bad_files: Path | None) -> Found:
    files = HubFiles(list(used.values()), image, title)
    scan = scan_pictures(files.members(), settings, again=True)
    found = assemble(scan, title, settings, bad_files, files)
    if settings.labels != "none" and _kinds(used["train"]).get(TEXT) == "Value":
        texts = [str(text or "") for part in used.values() for text in part[TEXT]]
        found = replace(found, texts=packed([texts[row] for row in scan.kept], title))
    good = np.array(scan.kept, dtype=np.int64)  # rows, in the order of their names, as `assemble` leaves them
    if isinstance(found.samples, OnDemand):
        found.samples.numbers = good[found.samples.numbers]
    if labels is None or settings.labels == "none":
        return found
    ids = np.concatenate(
        [np.array([-1 if value is None else int(value) for value in part[labels]], dtype=np.int64) for part in used.values()]
    )
    cond, classes = _classes(ids[good], used["train"].features[labels], len(found.samples), title)
    return Found(**{**vars(found), "cond": cond, "classes": classes})


def _table(used: Mapping[str, Any], title: str, columns: list[str], labels: str | None, settings: DataSettings) -> Found:
    parts = [part.with_format("numpy") for part in used.values()]
    counts = [len(part) for part in parts]
    values = np.stack([np.concatenate([np.asarray(part[key], dtype=np.float32) for part in parts]) for key in columns], axis=1)
    cond: dict[str, NDArray[Any]] = {}
    classes: tuple[str, ...] = ()
    if labels is not None and settings.labels != "none":
        ids = np.concatenate([np.asarray(part[labels]) for part in parts])
        if ids.dtype.kind in "ui":
            cond, classes = _classes(ids.astype(np.int64), used["train"].features[labels], sum(counts), title)
    found = found_arrays(values, cond, name=title, classes=classes, notices=(f"table of the columns {', '.join(columns)}",))
    held = np.arange(counts[0], sum(counts), dtype=np.int64) if len(counts) > 1 else None
    return Found(**{**vars(found), "held": held})


def _classes(ids: NDArray[np.int64], feature: Any, count: int, title: str) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]]:
    names = tuple(getattr(feature, "names", ()) or ())
    if len(ids) != count or (len(ids) and ids.min() < 0):
        raise DataError(f"{title}: some samples have no class; use --labels none to train without classes")
    return {"class": ids}, names or tuple(str(i) for i in range(int(ids.max()) + 1))


def _bytes(value: Any) -> bytes:
    if value is None:
        return b""
    if value.get("bytes") is not None:
        return value["bytes"]
    try:
        return Path(value["path"]).read_bytes()
    except (OSError, TypeError):
        return b""


def _is_number(feature: Any) -> bool:
    kind = str(getattr(feature, "dtype", ""))
    return type(feature).__name__ == "Value" and (kind.startswith(("int", "uint", "float")) or kind == "bool")
