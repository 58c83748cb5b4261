"""A mask of a person's own: which entries of a sample are to be filled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.data.decode import Unreadable, decode, strict_pillow
from ddpm.data.fit import fit
from ddpm.data.names import is_picture
from ddpm.data.settings import DataSettings
from ddpm.errors import DataError


def read_mask(path: Path, shape: Sequence[int]) -> NDArray[np.bool_]:
    """(*shape), true where `path` says that a sample of this shape is to be filled: white in a picture, 1, 255 or true in a .npy array.

    Pictures are of the sample's height and width, and white means the lighter half of the levels. Arrays have the sample's shape, or that
    of its axes without the channels, and hold two values.

    Raises:
        DataError: nothing there, not a picture or .npy array, another size, other values, nothing to be filled, or nothing else.
    """
    shape = tuple(shape)
    if is_picture(path.name):
        if len(shape) != 3:
            raise DataError(f"{path}: this model's samples have shape {shape}; give the mask as a .npy array, not as a picture")
        pixels = decoded(path, "grey")[0]
        fill = pixels >= (np.iinfo(pixels.dtype).max + 1) // 2
    elif path.suffix == ".npy":
        fill = _of_array(path)
    else:
        raise DataError(f"{path}: a mask is a picture, white where it is to be filled, or a .npy array")
    if fill.shape not in (shape, shape[1:], (1, *shape[1:])):
        raise DataError(f"{path}: the mask has shape {_size(fill.shape)}, this model's samples {_size(shape[1:])}; make it that size")
    fill = np.broadcast_to(fill, shape)
    if fill.all() or not fill.any():
        what = "nothing is to be filled: no entry is white (1)" if not fill.any() else "everything is to be filled: use ddpm sample"
        raise DataError(f"{path}: {what}")
    return fill


def refuse_other_size(path: Path, shape: Sequence[int]) -> None:
    """DataError for a picture of another size or number of channels than samples of this shape: the rest would be refitted, so not kept."""
    if len(shape) != 3 or shape[0] not in (1, 3):
        return  # refused by the reader, with its own words
    found = decoded(path, "keep").shape
    if found[1:] != tuple(shape[1:]):
        raise DataError(f"{path}: the picture is {_size(found[1:])}, this model's samples {_size(shape[1:])}; bring it to that size")
    if found[0] != shape[0]:
        words = {1: "grey", 3: "in colour"}
        raise DataError(f"{path}: the picture is {words[found[0]]}, this model's samples are {words[shape[0]]}; convert it")


def decoded(path: Path, channels: Any) -> NDArray[Any]:
    """The picture of a file (C, H, W) as it is, or made "grey"; DataError where it cannot be read."""
    limit = DataSettings().max_pixels
    try:
        with strict_pillow(), path.open("rb") as file:
            picture = decode(file, path.stat().st_size, max_pixels=limit, background=(255, 255, 255))
        return fit(picture.pixels, None, "none", channels, limit)
    except Unreadable as error:
        raise DataError(f"{path}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or 'cannot be read'}") from error


def _of_array(path: Path) -> NDArray[np.bool_]:
    try:
        with path.open("rb") as file:
            values = np.load(file, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or 'cannot be read'}") from error
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npy file of numbers") from error
    found = set(np.unique(values).tolist()) if values.dtype.kind in "buif" and values.size else {None}
    if not (found <= {0, 1} or found <= {0, 255}):
        raise DataError(f"{path}: a mask holds 0 (keep) and 1 or 255 (fill), or false and true; this one holds other values")
    return values != 0


def _size(axes: Sequence[int]) -> str:
    """Axes as pictures are spoken of: width x height."""
    return f"{axes[1]}x{axes[0]}" if len(axes) == 2 else str(tuple(axes))
