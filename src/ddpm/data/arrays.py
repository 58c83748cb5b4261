"""Arrays: .npy, .npz and .safetensors files, and a person's own arrays."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.data.captions import TEXT, captions_of
from ddpm.data.found import Found
from ddpm.data.settings import Layout
from ddpm.errors import DataError

SUFFIXES = (".npy", ".npz", ".safetensors")
_KEYS = {
    "samples": ("x", "samples", "arr_0"),
    "class": ("y", "labels", "label", "arr_1", "class"),
    "vector": ("vector",),
    "image": ("image",),
    "mask": ("mask",),
    TEXT: (TEXT,),
}
_DAMAGE = (ValueError, OSError, EOFError, KeyError, SyntaxError, RuntimeError, zipfile.BadZipFile, zlib.error)
_MAP_FROM = 2 << 30  # bytes; larger files are memory maps
_MOST_LEVELS = 65_536
_PICTURE_CHANNELS = (1, 3, 4)


def read_arrays(path: Path, layout: Layout = "auto") -> Found:
    """The samples and conditions of a .npy, .npz or .safetensors file.

    Convention: the first axis counts the samples and channels come second, (N, C, *axes). Two exceptions under `layout="auto"`: three
    axes (N, H, W) are one channel, and 8-bit arrays (N, H, W, C) with C = 1, 3 or 4 and no such number in second place are pictures,
    channels last. `layout="first"` or `"last"` says it outright, so (N, C, L) signals need "first". (N, F) is a table of F columns.
    Names in .npz and .safetensors: samples `x`, `samples` or `arr_0`; class ids `y`, `label`, `labels`, `arr_1` or `class`; conditions
    `vector` and `image`; which entries are there: `mask`; captions `text`, of .npz, a unicode array.
    A .npy or .safetensors file above 2 GiB is mapped, not read. Pickled objects are never loaded.

    Raises:
        DataError: a file that is damaged, holds objects or other types than numbers, has no samples, or arrays that disagree.
    """
    try:
        stored = _load(path)
    except _DAMAGE as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise DataError(f"{path}: {error.strerror or 'cannot be opened'}") from error
        raise DataError(f"{path}: not a readable {path.suffix} file of numbers (damaged, cut short, or it holds Python objects)") from error
    except MemoryError as error:
        raise DataError(f"{path}: larger than the memory; save the samples as .npy, which is mapped instead of read") from error
    picked: dict[str, NDArray[Any]] = {}
    for role, names in _KEYS.items():
        present = [name for name in names if name in stored]
        if len(present) > 1:
            raise DataError(f"{path}: holds {' and '.join(present)}, all of which mean {role}; keep one")
        if present:
            picked[role] = stored[present[0]]
    if "samples" not in picked:
        raise DataError(f"{path}: no samples; expected a key {', '.join(_KEYS['samples'])}, found {', '.join(sorted(stored)) or 'nothing'}")
    known = {name for names in _KEYS.values() for name in names}
    notices = tuple(f"{path.name}: key {name!r} is not used" for name in sorted(set(stored) - known))
    return found_arrays(picked.pop("samples"), picked, name=path.name, layout=layout, notices=notices)


def found_arrays(
    samples: NDArray[Any],
    cond: Mapping[str, NDArray[Any] | Sequence[str]] | None = None,
    *,
    name: str,
    classes: Sequence[str] = (),
    bins: tuple[float, float] | None = None,
    layout: Layout = "auto",
    notices: tuple[str, ...] = (),
) -> Found:
    """Samples (N, ...) and conditions ("class" (N,), "vector" (N, V), "image" (N, Ci, *axes), "mask" (N, 1 or C, *axes), or (N, *axes), of
    0 and 1, "text" N captions) as found data; see `read_arrays`.

    `bins` are the lowest and highest level of integer data; unset, 8-bit data have (0, 255), 16-bit unsigned data (0, 65535), and other
    integers their smallest and largest value, unless these lie more than 65,536 levels apart (then the data count as continuous).
    """
    samples, said = channels_second(numbers_of(np.asanyarray(samples), name), layout, name)
    given = dict(cond or {})
    texts = captions_of(given.pop(TEXT), len(samples), name) if TEXT in given else None
    conditions, names = _conditions(given, samples.shape, tuple(classes), name)
    vector = conditions.get("vector")
    return Found(
        name=name,
        kind="image" if is_pictures(samples.dtype, samples.shape) else "array",
        samples=samples,
        cond=conditions,
        classes=names,
        vector=() if vector is None else tuple(f"v{i}" for i in range(vector.shape[1])),
        bins=bins_of(samples, bins, name),
        notices=(*notices, *said),
        texts=texts,
    )


def is_pictures(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
    """Whether arrays (N, C, *axes) count as pictures: 8 bits, height and width, and 1, 3 or 4 channels."""
    return dtype == np.uint8 and len(shape) == 4 and shape[1] in _PICTURE_CHANNELS


def _load(path: Path) -> dict[str, NDArray[Any]]:
    large = path.stat().st_size > _MAP_FROM
    if path.suffix == ".npy" and large:
        return {"x": np.load(path, mmap_mode="r", allow_pickle=False)}
    if path.suffix in (".npy", ".npz"):
        with path.open("rb") as file:  # given a path, NumPy leaves a damaged file open
            stored = np.load(file, allow_pickle=False)
            return {"x": stored} if isinstance(stored, np.ndarray) else {name: stored[name] for name in stored.files}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as tensors:
            names = list(tensors.keys())
            if not large:
                return {name: tensors.get_tensor(name) for name in names}
    except (SafetensorError, TypeError, AttributeError) as error:  # the last two: types NumPy does not have, such as bfloat16
        raise ValueError("damaged, or a type NumPy does not know") from error
    return _map_safetensors(path)


def _map_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    """Memory maps of the tensors of a file whose header `safe_open` has already checked."""
    types = {"BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8"}
    types |= {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: np.memmap(
            path, dtype=types[entry["dtype"]], mode="r", offset=8 + length + entry["data_offsets"][0], shape=tuple(entry["shape"])
        )
        for name, entry in header.items()
    }


def numbers_of(array: NDArray[Any], name: str) -> NDArray[Any]:
    """The array, booleans as 0 and 1. Raises DataError for any other type than integers and real floats of at most 64 bits."""
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype.kind not in "uif":
        raise DataError(f"{name}: the samples are of type {array.dtype}; allowed are integers and real floats")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        raise DataError(f"{name}: the samples are of type {array.dtype}; save them as float32 or float64")
    return array


def channels_second(array: NDArray[Any], layout: Layout, name: str) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Samples (N, ...) with channels second, see `read_arrays`, and what was done to them. Raises DataError for empty axes."""
    if array.ndim == 0 or 0 in array.shape:
        raise DataError(f"{name}: the array of samples has shape {array.shape}; expected (N, ...) with no empty axis")
    if array.ndim == 1:
        return array[:, None], (f"{name}: one number per sample, read as a table of one column",)
    if array.ndim == 2 or layout == "first":
        return array, ()
    if layout == "last":
        return np.moveaxis(array, -1, 1), ()
    if array.ndim == 3:
        return array[:, None], (f"{name}: shape {array.shape} read as one channel; signals (N, channels, length) need --layout first",)
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] in _PICTURE_CHANNELS and array.shape[1] not in _PICTURE_CHANNELS:
        return np.moveaxis(array, -1, 1), (f"{name}: shape {array.shape} read as channels last; if not so, use --layout first",)
    return array, ()


def _conditions(
    cond: Mapping[str, Any], shape: tuple[int, ...], classes: tuple[str, ...], name: str
) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]]:
    count, axes = shape[0], len(shape)
    unknown = sorted(set(cond) - {"class", "vector", "image", "mask"})
    if unknown:
        raise DataError(f"{name}: unknown condition {unknown[0]!r}; allowed are class, vector, image, mask and text")
    done: dict[str, NDArray[Any]] = {}
    for key, given in cond.items():
        values = np.asanyarray(given)
        if values.dtype == bool:
            values = values.astype(np.uint8)
        if values.dtype.kind not in "uif" or (key == "class" and values.dtype.kind == "f"):
            expected = "whole" if key == "class" else "real"
            raise DataError(f"{name}: the condition {key!r} is of type {values.dtype}; expected {expected} numbers")
        if len(values.shape) == 0 or len(values) != count:
            raise DataError(f"{name}: {count} samples but the condition {key!r} has shape {values.shape}; the first axis must agree")
        done[key] = values
    if "class" in done:
        done["class"], classes = _class_ids(done["class"], classes, name)
    if "vector" in done:
        vector = done["vector"][:, None] if done["vector"].ndim == 1 else done["vector"]
        if vector.ndim != 2:
            raise DataError(f"{name}: the condition 'vector' has shape {vector.shape}; expected (N, V)")
        done["vector"] = vector.astype(np.float32)
    if "image" in done and done["image"].ndim != axes:
        raise DataError(f"{name}: the condition 'image' has {done['image'].ndim} axes; expected {axes}, as the samples have")
    if "mask" in done:
        done["mask"] = _mask(done["mask"], shape, name)
    return done, classes


def _mask(mask: NDArray[Any], shape: tuple[int, ...], name: str) -> NDArray[np.uint8]:
    """Which entries of samples of a shape (N, C, *axes) are there, (N, 1 or C, *axes)."""
    wide = mask[:, None] if mask.ndim == len(shape) - 1 and mask.ndim > 1 else mask
    if wide.ndim != len(shape) or wide.shape[1] not in (1, shape[1]) or wide.shape[2:] != shape[2:]:
        each = ", ".join(map(str, (shape[0], 1, *shape[2:])))
        raise DataError(f"{name}: the condition 'mask' has shape {mask.shape}; expected {shape}, or ({each}) for all channels alike")
    if not bool(((wide == 0) | (wide == 1)).all()):
        raise DataError(f"{name}: the condition 'mask' holds other values than 0 (not there) and 1 (there)")
    empty = np.flatnonzero(~wide.reshape(len(wide), -1).any(axis=1))
    if len(empty):
        raise DataError(f"{name}: row {int(empty[0])} has no entry that is there; leave such samples out")
    return wide.astype(np.uint8)


def _class_ids(labels: NDArray[Any], classes: tuple[str, ...], name: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    if labels.ndim != 1:
        raise DataError(f"{name}: class ids have shape {labels.shape}; expected (N,)")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0:
        raise DataError(f"{name}: row {int(labels.argmin())} has class {lowest}; class ids start at 0")
    limit = len(classes) or 1_000_000
    if highest >= limit:
        raise DataError(f"{name}: row {int(labels.argmax())} has class {highest}, there may be {limit} (0-{limit - 1})")
    return labels.astype(np.int64), classes or tuple(str(i) for i in range(highest + 1))


def bins_of(samples: NDArray[Any], given: tuple[float, float] | None, name: str) -> tuple[float, float] | None:
    """Lowest and highest level of samples, see `found_arrays`; None for continuous ones. Raises DataError for bins that do not fit."""
    if samples.dtype.kind == "f":
        if given is not None:
            raise DataError(f"{name}: bins {given} were given for {samples.dtype} samples; only integers have bins")
        return None
    if given is None and samples.dtype in (np.uint8, np.uint16):
        return 0.0, float(np.iinfo(samples.dtype).max)
    lowest, highest = int(samples.min()), int(samples.max())
    if given is None:
        return (float(lowest), float(highest)) if 0 < highest - lowest < _MOST_LEVELS else None
    if not given[0] < given[1] or lowest < given[0] or highest > given[1]:
        raise DataError(f"{name}: samples lie in {lowest}..{highest}, outside the bins {given}")
    return float(given[0]), float(given[1])
