"""Pictures of different sizes in one flat store, of which parts of one size are cut."""

from __future__ import annotations

import math
import os
import tempfile
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.data.dataset import Rows


class Ragged:
    """N pictures (C, H_i, W_i), each at least (C, h, w): indexing gives their centres (.., C, h, w), `crops` random parts."""

    def __init__(self, pictures: Sequence[NDArray[Any]], size: tuple[int, int]) -> None:
        self._pictures = pictures
        self.shape: tuple[int, ...] = (len(pictures), pictures[0].shape[0], *size)
        self.dtype: np.dtype[Any] = pictures[0].dtype

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, rows: Any, /) -> NDArray[Any]:
        index = np.arange(len(self))[rows]
        if index.ndim == 0:
            return self._cut(int(index), 0.5, 0.5)
        cut = np.empty((len(index), *self.shape[1:]), dtype=self.dtype)
        for i, row in enumerate(index):
            cut[i] = self._cut(int(row), 0.5, 0.5)
        return cut

    def crops(self, rows: Rows, generator: np.random.Generator) -> NDArray[Any]:
        """A part (B, C, h, w) of each row, its corner uniform over all places; two numbers are drawn for each row."""
        places = generator.random((len(rows), 2))
        cut = np.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        for i, (row, (down, right)) in enumerate(zip(rows, places, strict=True)):
            cut[i] = self._cut(int(row), down, right)
        return cut

    def row_bytes(self, row: int) -> memoryview:
        """All of a picture, borders that no crop has shown included, for its digest."""
        return np.ascontiguousarray(self._pictures[row]).data

    def _cut(self, row: int, down: float, right: float) -> NDArray[Any]:
        """A view (C, h, w); `down` and `right` in [0, 1) choose among the H - h + 1 and W - w + 1 places."""
        picture, (height, width) = self._pictures[row], self.shape[2:]
        top = int(down * (picture.shape[1] - height + 1))
        left = int(right * (picture.shape[2] - width + 1))
        return picture[:, top : top + height, left : left + width]


class Pile:
    """Pictures laid end to end as they come: in memory up to half of the machine's, then in an unnamed temporary file."""

    def __init__(self, limit: int | None = None) -> None:
        self._limit = memory() // 2 if limit is None else limit
        self._bytes = bytearray()
        self._file: Any = None
        self._map: NDArray[np.uint8] | None = None
        self._ends: list[int] = [0]
        self._shapes: list[tuple[int, ...]] = []
        self._types: list[np.dtype[Any]] = []

    def __len__(self) -> int:
        return len(self._shapes)

    @property
    def on_disk(self) -> bool:
        """Whether the memory was too small."""
        return self._file is not None

    def add(self, picture: NDArray[Any]) -> None:
        """Puts a picture at the end."""
        if self._file is None and len(self._bytes) + picture.nbytes > self._limit:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with this object
            weakref.finalize(self, self._file.close)  # a map keeps the bytes; an error before it is made must not keep the file
            self._file.write(self._bytes)
            self._bytes = bytearray()
        if self._file is None:
            self._bytes += picture.data
        else:
            self._file.write(picture.data)
        self._ends.append(self._ends[-1] + picture.nbytes)
        self._shapes.append(picture.shape)
        self._types.append(picture.dtype)

    def pictures(self) -> list[NDArray[Any]]:
        """A view of each picture."""
        flat = self._flat()
        return [
            flat[start:end].view(kind).reshape(shape)
            for start, end, kind, shape in zip(self._ends, self._ends[1:], self._types, self._shapes, strict=False)
        ]

    def stacked(self) -> NDArray[Any]:
        """All pictures as one array (N, *shape) without a copy; they must be of one shape and type."""
        return self._flat().view(self._types[0]).reshape(-1, *self._shapes[0])

    def _flat(self) -> NDArray[np.uint8]:
        if self._file is None:
            return np.frombuffer(self._bytes, dtype=np.uint8)
        if self._map is None:
            self._file.flush()
            self._map = np.memmap(self._file, dtype=np.uint8, mode="r")
        return self._map


def empty(shape: tuple[int, ...], dtype: np.dtype[Any], limit: int | None = None) -> NDArray[Any]:
    """An array to fill: in memory, or in an unnamed temporary file where it would take more than half of the machine's."""
    if math.prod(shape) * dtype.itemsize <= (memory() // 2 if limit is None else limit):
        return np.empty(shape, dtype=dtype)
    with tempfile.TemporaryFile() as file:  # the map keeps the bytes
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)


def memory() -> int:
    """Bytes of the machine's memory; 8 GiB where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 8 << 30
