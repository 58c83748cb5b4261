"""Hugging Face data sets: a name on the hub, or a folder written by `save_to_disk`; needs the optional package `datasets`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.data.arrays import found_arrays
from ddpm.data.found import Found
from ddpm.data.pictures import assemble, scan_pictures
from ddpm.data.settings import DataSettings
from ddpm.data.sources import Member
from ddpm.errors import ConfigError, DataError

_TRAIN, _HELD = ("train",), ("validation", "valid", "val")
_LABELS = ("label", "labels", "class", "fine_label")


def read_hub(name: str, settings: DataSettings, bad_files: Path | None = None) -> Found:
    """The data set `NAME`, `NAME:CONFIG` or a local folder; its split train, with validation held out where there is one.

    The first column of pictures gives the samples, decoded by our own policy; without one, all columns of single numbers make a table.
    The first column of class labels gives the classes. Code that comes with a data set is never run.

    Raises:
        ConfigError: the package `datasets` is missing, or a labels file was asked for.
        DataError: no such data set, no split train, or no column that can be used.
    """
    if settings.labels not in (None, "none"):
        raise ConfigError(f"labels: {settings.labels} does not apply to hf:{name}; its labels are a column")
    splits = _splits(name)
    parts = {role: next((splits[key] for key in keys if key in splits), None) for role, keys in (("train", _TRAIN), ("held", _HELD))}
    if parts["train"] is None:
        raise DataError(f"hf:{name}: no split 'train'; found {', '.join(map(str, splits))}")
    used = {role: part for role, part in parts.items() if part is not None}
    title = f"hf:{name}"
    features = parts["train"].features
    kinds = {key: type(feature).__name__ for key, feature in features.items()}
    labels = next((key for key, kind in kinds.items() if kind == "ClassLabel"), None) or next((k for k in _LABELS if k in kinds), None)
    image = next((key for key, kind in kinds.items() if kind == "Image"), None)
    if image is not None:
        return _pictures(used, title, image, labels, settings, bad_files)
    columns = [key for key, feature in features.items() if key != labels and _is_number(feature)]
    if not columns:
        raise DataError(f"{title}: no column of pictures or numbers; found {', '.join(f'{key} ({kind})' for key, kind in kinds.items())}")
    return _table(used, title, columns, labels, settings)


def _splits(name: str) -> Mapping[str, Any]:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(f"data: hf:{name} needs the package datasets; install it with  pip install 'ddpm[datasets]'") from error
    path = Path(name).expanduser()
    try:
        if path.is_dir() and any((path / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
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
    from datasets import Image  # pyright: ignore[reportMissingImports]

    numbers: dict[str, int] = {}

    def offer() -> Iterator[Member]:
        for role, part in used.items():
            folder = "train" if role == "train" else "validation"
            for i, row in enumerate(part.cast_column(image, Image(decode=False))):
                name = f"{folder}/{i:09d}.png"  # the ending only marks it as a picture: its content says which
                if labels is not None and row[labels] is not None:
                    numbers[name] = int(row[labels])
                data = _bytes(row[image])
                yield Member(name, len(data), lambda data=data: data)

    found = assemble(scan_pictures(offer(), settings), title, settings, bad_files)
    if labels is None or settings.labels == "none":
        return found
    # the same order as `assemble`: names sort as they were made, unreadable ones are gone
    bad = {line.split(":", 1)[0] for line in found.unreadable}
    ids = [number for name, number in sorted(numbers.items()) if name not in bad]
    cond, classes = _classes(np.array(ids, dtype=np.int64), used["train"].features[labels], len(found.samples), title)
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
