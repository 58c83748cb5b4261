"""One sample of a person's own, in the units of a model that exists already: a picture, or a row of anything `--data` reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.data.arrays import SUFFIXES
from ddpm.data.names import is_picture
from ddpm.data.pictures import assemble, scan_pictures
from ddpm.data.reader import open_data
from ddpm.data.settings import DataSettings
from ddpm.data.sources import Member
from ddpm.denoiser import Codec
from ddpm.errors import DataError

Bins = tuple[float, float]


def read_one(text: str, shape: Sequence[int], codec: Codec) -> NDArray[Any]:
    """The sample that `text` names, (*shape) channels first, in the data's units of the model that `codec` belongs to.

    `text` is a picture file, or anything `--data` reads with :ROW behind it (row 0 when left out): `digits:900`, `samples.npz:3`,
    `photos/:12`. Pictures are cropped about their centre to the model's shape, brought to its channels, and their levels mapped onto the
    model's (0..255 onto 0..16 for the digits). Arrays are taken as they are: their values must be in the model's units.

    Raises:
        DataError: nothing there, no such row, another shape than the model's, values outside the model's levels, or a picture for a
            model whose data have no levels.
    """
    shape = tuple(shape)
    name, row = _place(text)
    if Path(name).expanduser().suffix in SUFFIXES:
        return _row(text, row, _array(name, shape), shape, codec)
    picked, bins = read_picture(text, shape)
    if bins == codec.bins:
        return picked
    if bins is None or codec.bins is None:
        raise DataError(f"{text}: a picture, but this model's data are no pictures with levels; give an array in their units instead")
    (low, high), (first, last) = bins, codec.bins
    mapped = first + (picked.astype(np.float64) - low) * ((last - first) / (high - low))
    return np.rint(mapped).astype(codec.dtype)


def read_picture(text: str, shape: Sequence[int]) -> tuple[NDArray[Any], Bins | None]:
    """The picture that `text` names, as `read_one` does, (*shape) in the levels of its own file, and the first and last of these."""
    name, row = _place(text)
    samples, bins = _pictures(text, name, tuple(shape))
    return _row(text, row, samples, tuple(shape), None), bins


def _place(text: str) -> tuple[str, int]:
    """PATH:ROW -> path and row."""
    name, colon, row = text.rpartition(":")
    return (name, int(row)) if colon and name and row.isdecimal() and not Path(text).exists() else (text, 0)


def _settings(name: str, **options: Any) -> DataSettings:
    return DataSettings(data=name, holdout=0.0, labels="none", **options)


def _array(name: str, shape: tuple[int, ...]) -> Any:
    """The samples of an array file, under the layout that gives the wanted shape, where one does."""
    first = None
    for layout in ("auto", "first", "last"):
        samples = open_data(_settings(name, layout=layout)).samples
        if tuple(samples.shape[1:]) == shape:
            return samples
        first = samples if first is None else first
    return first


def _pictures(text: str, name: str, shape: tuple[int, ...]) -> tuple[Any, Bins | None]:
    """The pictures of a file, folder, archive or data set, fitted to the shape, with the levels of their format."""
    if name == "digits":
        data = open_data(_settings(name))
        return data.samples, data.card.bins
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise DataError(f"{text}: this model's samples have shape {shape}; give them as .npy, .npz or .safetensors, not as a picture")
    settings = _settings(name, size=shape[1:], crop="centre", channels="grey" if shape[0] == 1 else "rgb")
    path = Path(name).expanduser()
    if path.is_file() and is_picture(path.name):
        found = assemble(scan_pictures([Member(path.name, path.stat().st_size, lambda: _bytes(path))], settings), name, settings, None)
        return found.samples, found.bins
    data = open_data(settings)
    return data.samples, data.card.bins


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or 'cannot be read'}") from error


def _row(text: str, row: int, samples: Any, shape: tuple[int, ...], codec: Codec | None) -> NDArray[Any]:
    """One row, once it exists, has the shape, and (codec given) holds nothing but the model's levels."""
    if tuple(samples.shape[1:]) != shape:
        raise DataError(f"{text}: its samples have shape {tuple(samples.shape[1:])}, this model's {shape}")
    if row >= len(samples):
        raise DataError(f"{text}: there is no row {row}, it holds {len(samples)} (0-{len(samples) - 1})")
    picked = np.array(samples[np.array([row])])[0]
    if codec is not None and codec.bins is not None and (picked.min() < codec.bins[0] or picked.max() > codec.bins[1]):
        raise DataError(
            f"{text}: row {row} holds values from {picked.min():g} to {picked.max():g}, this model's data run from {codec.bins[0]:g} to "
            f"{codec.bins[1]:g}; give the array in those units, or a picture"
        )
    return picked
