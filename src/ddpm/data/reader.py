"""`open_data`: picks the reader that `--data` asks for, draws the split and fills the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.data.arrays import SUFFIXES, found_arrays, read_arrays
from ddpm.data.beside import with_beside
from ddpm.data.dataset import Dataset
from ddpm.data.doctor import check_lengths, examine
from ddpm.data.fields import is_fields, read_fields, refuse_field_settings
from ddpm.data.found import Found
from ddpm.data.settings import DataSettings, Layout, Normalise
from ddpm.data.split import split
from ddpm.data.watch import watched
from ddpm.errors import ConfigError, DataError

HUB = "hf:"


def open_data(settings: DataSettings, *, bad_files: Path | None = None) -> Dataset:
    """Reads the data named by `settings.data`, checks all of them, and returns them with their card.

    `digits` is embedded; `hf:NAME` is a Hugging Face data set or a folder written by `save_to_disk`; a .npy, .npz or .safetensors file
    holds arrays; a .nc, .zarr or .grib file fields on a grid (see `fields`); a folder, .zip or .tar(.gz/.bz2/.xz) holds pictures, which are
    read in place; a pattern such as `train-{000000..000127}.tar`, or a folder of tars, is data in shards. Shards, and folders, tars and
    Hugging Face data sets of pictures larger than `memory_share`, stay in their files (see `demand`); what was found in them is kept (see
    `cache`) and not looked for again while they do not change. Where pictures are unreadable the complete list is written to `bad_files`,
    if that is given.

    Raises:
        ConfigError: settings out of range, or that do not apply to these data.
        DataError: data that are missing, damaged or not allowed; the message names the files.
    """
    if problems := settings.problems():
        raise ConfigError.of(problems)
    if settings.data.startswith(HUB) or not is_fields(Path(settings.data)):
        refuse_field_settings(settings, settings.data)
    if settings.data == "digits":
        return finish(_read(settings, bad_files), settings)
    from ddpm.data.cache import Index

    index = Index.of(settings)
    if index is not None and (kept := index.load(settings)) is not None:
        return kept
    dataset = finish(_read(settings, bad_files), settings)
    if index is not None:
        index.save(dataset)
    return dataset


def from_arrays(
    samples: NDArray[Any],
    cond: Mapping[str, NDArray[Any] | Sequence[str]] | None = None,
    *,
    name: str = "arrays",
    classes: Sequence[str] = (),
    bins: tuple[float, float] | None = None,
    holdout: float | NDArray[np.int64] = 0.1,
    normalise: Normalise = "auto",
    flip: bool = False,
    layout: Layout = "first",
) -> Dataset:
    """A data set of a person's own arrays: samples (N, C, *axes) or a table (N, F), in their own units.

    `cond` may hold "class" (N,) ids from 0, "vector" (N, V), "image" (N, Ci, *axes), "text", N captions, and "mask" (N, 1 or C, *axes), 0
    where an entry is not there: it may be NaN then. `classes` names the ids; `bins` are the lowest and highest level of integer data;
    `holdout` is the share to hold out, or the very rows. `layout` is as in `DataSettings`.

    Raises:
        ConfigError: a setting out of range.
        DataError: arrays that disagree in length, hold NaN or infinity, or types other than numbers.
    """
    share = holdout if isinstance(holdout, int | float) else 0.0
    settings = DataSettings(data=name, holdout=share, normalise=normalise, flip=flip, layout=layout)
    if problems := settings.problems():
        raise ConfigError.of(problems)
    found = found_arrays(samples, cond, name=name, classes=classes, bins=bins, layout=layout)
    if not isinstance(holdout, int | float):
        found = replace(found, held=_rows(holdout, len(found.samples), name))
    return finish(found, settings)


def finish(found: Found, settings: DataSettings) -> Dataset:
    """The data set: the split is drawn (or taken from the data's own validation set) and the card filled."""
    if len(found.samples) == 0:
        raise DataError(f"{found.name}: no samples found")
    found = _set_classes(found, settings)
    if settings.flip and len(found.samples.shape) < 4:
        raise ConfigError(f"flip: set, but samples of {found.name} have shape {tuple(found.samples.shape[1:])}; only pictures are mirrored")
    check_lengths(found)
    count = len(found.samples)
    if found.held is None:
        train, held = split(count, settings.holdout, found.cond.get("class"))
    else:
        held = np.sort(found.held)
        train = np.setdiff1d(np.arange(count, dtype=np.int64), held)
    if len(train) == 0:
        raise DataError(f"{found.name}: nothing is left to train on, all {count} samples are held out")
    card, keys = examine(found, train, held, settings.normalise)
    files = watched([found.samples, *found.cond.values()])
    return Dataset(
        card=card,
        samples=found.samples,
        cond=found.cond,
        train_rows=train,
        held_rows=held,
        flip=settings.flip,
        keys=keys,
        watched=files,
        names=found.names,
        texts=found.texts,
    )


def _read(settings: DataSettings, bad_files: Path | None) -> Found:
    """What the settings name, with what is laid beside it."""
    return with_beside(_alone(settings, bad_files), settings, lambda other: _alone(other, None))


def _alone(settings: DataSettings, bad_files: Path | None) -> Found:
    name = settings.data
    if name == "digits":
        from ddpm.data.digits import read_digits

        return _without_picture_settings(read_digits(), settings)
    if name.startswith(HUB):
        from ddpm.data.hub import read_hub

        return read_hub(name.removeprefix(HUB), settings, bad_files)
    from ddpm.data.hub import is_saved, read_hub
    from ddpm.data.shards import find_shards, read_shards

    path = Path(name).expanduser()
    if (shards := find_shards(name)) is not None:
        return read_shards(shards, path.name, settings, bad_files)
    if not path.exists():
        raise DataError(f"{name}: no such file or folder; --data takes digits, a folder, an archive, an array file, or hf:NAME")
    if path.is_file() and path.suffix in SUFFIXES:
        return _without_picture_settings(read_arrays(path, settings.layout), settings)
    from ddpm.data.cifar import is_cifar, read_cifar

    if is_fields(path):
        return _without_picture_settings(read_fields(path, settings), settings)
    if is_cifar(path):
        return _without_picture_settings(read_cifar(path), settings)
    if is_saved(path):
        return read_hub(name, settings, bad_files)
    from ddpm.data.pictures import read_pictures

    return read_pictures(path, settings, bad_files)


def _set_classes(found: Found, settings: DataSettings) -> Found:
    """The labels dropped where the settings say so, and held to the number of classes they name."""
    labels = found.cond.get("class")
    if settings.labels == "none":
        return replace(found, cond={key: values for key, values in found.cond.items() if key != "class"}, classes=(), texts=None)
    if settings.classes is None:
        return found
    if labels is None:
        raise DataError(f"{found.name}: no class labels, but classes is {settings.classes}")
    if len(found.classes) > settings.classes:
        last = len(found.classes) - 1
        raise DataError(f"{found.name}: {last + 1} classes (0-{last}), the setting classes allows {settings.classes}")
    return replace(found, classes=(*found.classes, *(str(i) for i in range(len(found.classes), settings.classes))))


def _without_picture_settings(found: Found, settings: DataSettings) -> Found:
    """Refuses settings that only folders and archives of pictures can obey, so that none is ignored in silence."""
    asked = {"size": settings.size is not None, "crop": settings.crop != "none", "channels": settings.channels != "auto"}
    asked["labels"] = settings.labels not in (None, "none")
    wrong = [f"{key}: does not apply to {found.name}: it is not a folder or archive of pictures" for key, is_set in asked.items() if is_set]
    if wrong:
        raise ConfigError.of(wrong)
    return found


def _rows(rows: NDArray[np.int64], count: int, name: str) -> NDArray[np.int64]:
    held = np.asarray(rows)
    whole = held.ndim == 1 and held.dtype.kind in "ui" and len(np.unique(held)) == len(held)
    if not whole or (len(held) and (held.min() < 0 or held.max() >= count)):
        raise DataError(f"{name}: held-out rows must be different whole numbers in 0..{count - 1}")
    return held.astype(np.int64)
