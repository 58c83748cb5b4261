"""CIFAR-10 as its authors publish it: the binary and the Python archive, or the folder that either unpacks to.

https://www.cs.toronto.edu/~kriz/cifar.html. The Python archive holds pickles; they are read by an unpickler that knows arrays and nothing
else, so that no code in them can run. The 10,000 test pictures are held out.
"""

from __future__ import annotations

import io
import itertools
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy._core.multiarray import _reconstruct  # pyright: ignore[reportAttributeAccessIssue]
from numpy._core.numeric import _frombuffer  # pyright: ignore[reportAttributeAccessIssue]
from numpy.typing import NDArray

from ddpm.data.found import Found
from ddpm.data.sources import TAR_SUFFIXES, Member, members
from ddpm.errors import DataError

BATCH = re.compile(r"(?:data_batch_[1-5]|test_batch)(\.bin)?")
NAMES = re.compile(r"batches\.meta(?:\.txt)?")
SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32  # a label, then a picture: its red, green and blue planes
LABELS = range(256)  # that are a byte
PEEK = 12  # members that are looked at

Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]  # pictures (n, 3, 32, 32) and labels (n,)


def is_cifar(path: Path) -> bool:
    """Whether a folder, or a tar by its first members, holds CIFAR-10's batches."""
    if not path.is_dir() and not path.name.lower().endswith(TAR_SUFFIXES):
        return False
    if path.is_dir():
        return any(BATCH.fullmatch(file.name) and file.is_file() for file in path.glob("*_batch*"))
    return any(BATCH.fullmatch(Path(member.name).name) for member in itertools.islice(members(path), PEEK))


def read_cifar(path: Path) -> Found:
    """Training pictures first, batch by batch, then the test pictures, which are held out; classes by their names.

    Raises: DataError for a file that is damaged, or holds anything but arrays, numbers and text.
    """
    batches: dict[str, Batch] = {}
    classes: tuple[str, ...] = ()
    for member in members(path):
        name = Path(member.name).name
        if found := BATCH.fullmatch(name):
            batches[name.removesuffix(".bin")] = (binary if found[1] else pickled)(_bytes(member), f"{path}: {member.name}")
        elif NAMES.fullmatch(name):
            classes = class_names(_bytes(member), name.endswith(".txt"), f"{path}: {member.name}")
    ordered = [batches[name] for name in sorted(batches)]  # data_batch_1 .. 5, test_batch
    labels = np.concatenate([labels for _, labels in ordered])
    if not len(labels):
        raise DataError(f"{path}: its batches hold no pictures")
    classes = classes or tuple(str(number) for number in range(int(labels.max()) + 1))
    if labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(f"{path}: labels {labels.min()} to {labels.max()}, but {len(classes)} classes are named")
    held = len(batches["test_batch"][1]) if "test_batch" in batches else 0
    return Found(
        name=path.name,
        kind="image",
        samples=np.concatenate([pictures for pictures, _ in ordered]),
        cond={"class": labels},
        classes=classes,
        bins=(0.0, 255.0),
        held=np.arange(len(labels) - held, len(labels), dtype=np.int64) if 0 < held < len(labels) else None,
    )


def _bytes(member: Member) -> bytes:
    data = member.open()
    if isinstance(data, bytes):
        return data
    with data:
        return data.read()


def binary(data: bytes, where: str) -> Batch:
    """A .bin file: records of 3,073 bytes."""
    if not data or len(data) % RECORD:
        raise DataError(f"{where}: {len(data):,} bytes, not a whole number of records of {RECORD:,}; it is damaged or cut short")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, RECORD)
    return records[:, 1:].reshape(-1, *SHAPE).copy(), records[:, 0].astype(np.int64)


def pickled(data: bytes, where: str) -> Batch:
    """A Python batch: `data` (n, 3072) uint8 and `labels`, a list."""
    found = arrays_only(data, where)
    pictures, labels = (found.get(key) for key in (b"data", b"labels"))
    if not isinstance(pictures, np.ndarray) or pictures.dtype != np.uint8 or pictures.shape[1:] != (RECORD - 1,):
        raise DataError(f"{where}: holds no pictures of 3x32x32; it is not a batch of CIFAR-10")
    if not isinstance(labels, list) or len(labels) != len(pictures) or not all(type(label) is int for label in labels):
        raise DataError(f"{where}: {len(pictures):,} pictures without as many labels")
    if wrong := [number for number, label in enumerate(labels) if label not in LABELS]:
        raise DataError(f"{where}: label number {wrong[0]} is no class; allowed are {LABELS[0]} to {LABELS[-1]}")
    return pictures.reshape(-1, *SHAPE), np.array(labels, dtype=np.int64)


def class_names(data: bytes, text: bool, where: str) -> tuple[str, ...]:
    """Of batches.meta.txt, a name a line; or of batches.meta, the list `label_names`."""
    if text:
        return tuple(data.decode("ascii", "replace").split())
    names = arrays_only(data, where).get(b"label_names")
    return tuple(name.decode("ascii", "replace") for name in names if isinstance(name, bytes)) if isinstance(names, list) else ()


def _latin1(text: str, encoding: str) -> bytes:
    """`_codecs.encode` with the one encoding by which pickles before protocol 3 write bytes."""
    if encoding != "latin1":
        raise ValueError(encoding)
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """`bytes` without arguments, as these write no bytes at all."""
    return b""


class ArraysOnly(pickle.Unpickler):
    """Builds numbers, text, lists, mappings and arrays of numbers; refuses the name of anything else, which is never imported."""

    KNOWN: ClassVar[Mapping[tuple[str, str], Callable[..., Any]]] = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy.core.numeric", "_frombuffer"): _frombuffer,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,
        ("__builtin__", "bytes"): _no_bytes,
    }

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """What a pickle may name."""
        known = self.KNOWN.get((module_name.replace("numpy._core", "numpy.core"), global_name))
        if known is None:
            raise DataError(f"names {module_name}.{global_name}: it contains code; refused")
        return known


def arrays_only(data: bytes, where: str) -> dict[Any, Any]:
    """The mapping a pickle holds, its text as bytes; DataError for anything else."""
    try:
        found = ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise DataError(f"{where}: cannot be read ({type(error).__name__}); it is damaged") from error
    if not isinstance(found, dict):
        raise DataError(f"{where}: is no batch of CIFAR-10")
    return found
