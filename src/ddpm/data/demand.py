"""Samples that stay in their files and are decoded anew at each visit: same results as from the memory, in hardly any of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from ddpm.data.dataset import Rows
from ddpm.data.decode import Unreadable
from ddpm.data.fit import Misfit
from ddpm.data.names import Names
from ddpm.data.ragged import cut
from ddpm.errors import DataError

Arrays = Mapping[str, NDArray[Any]]
Stamp = tuple[str, int, int]  # of a file: name, bytes, time of the last change in ns


def stamp(root: Path, name: str) -> Stamp:
    """What says whether the file `name` in a folder is still the same; DataError where there is none."""
    try:
        now = (root / name).stat()
    except OSError as error:
        raise DataError(f"{root / name}: {error.strerror or 'cannot be read'}") from error
    return name, now.st_size, now.st_mtime_ns


class Files(Protocol):
    """Encoded samples by number: a folder's files, the members of tars, the rows of a column."""

    def read(self, numbers: Rows) -> Iterator[tuple[int, bytes]]:
        """The bytes of each of the numbers (n,), with its place among them, in whatever order is quickest; DataError where gone."""
        ...

    def name(self, number: int) -> str:
        """What messages call a sample."""
        ...

    def arrays(self) -> Arrays:
        """All that must be kept to find the samples again."""
        ...


class Decoder(Protocol):
    """Bytes to a sample (C, *axes), a pure function of them; Unreadable or Misfit where that cannot be."""

    def __call__(self, data: bytes, /) -> NDArray[Any]: ...


class FolderFiles:
    """The files of a folder, by their names within it."""

    def __init__(self, root: Path, names: Names) -> None:
        self.root, self.names = root, names

    def read(self, numbers: Rows) -> Iterator[tuple[int, bytes]]:
        """The bytes of each file, in the order asked for."""
        for place, number in enumerate(numbers):
            path = self.root / self.names[int(number)]
            try:
                yield place, path.read_bytes()
            except OSError as error:
                raise DataError(f"{path}: {error.strerror or 'cannot be read'}; it was there when training began") from error

    def name(self, number: int) -> str:
        """The file's name within the folder."""
        return self.names[number]

    def arrays(self) -> Arrays:
        """The names."""
        return {"names": self.names.block, "ends": self.names.ends}


class TarFiles:
    """Members of plain tar archives, by archive, offset and size (n,); each archive must be as it was when they were found."""

    def __init__(self, root: Path, stamps: list[Stamp], shard: Rows, offset: Rows, size: Rows, names: Names) -> None:
        self.root, self.stamps, self.shard, self.offset, self.size, self.names = root, stamps, shard, offset, size, names

    def read(self, numbers: Rows) -> Iterator[tuple[int, bytes]]:
        """The bytes of each member, archive by archive and from front to back; an archive is opened once a call."""
        order = np.lexsort((self.offset[numbers], self.shard[numbers]))
        for shard, places in groupby(order, key=lambda place: int(self.shard[numbers[place]])):
            with self._open(shard) as file:
                for place in places:
                    number = int(numbers[place])
                    file.seek(int(self.offset[number]))
                    yield int(place), file.read(int(self.size[number]))

    def _open(self, shard: int) -> BinaryIO:
        name, size, changed = self.stamps[shard]
        path = self.root / name
        try:
            file = path.open("rb")
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or 'cannot be read'}; it was there when training began") from error
        now = os.fstat(file.fileno())
        if (now.st_size, now.st_mtime_ns) != (size, changed):
            file.close()
            raise DataError(f"{path}: changed since it was read first; start again to read it anew")
        return file

    def name(self, number: int) -> str:
        """Archive and member."""
        return self.names[number]

    def arrays(self) -> Arrays:
        """Where each member is."""
        return {"names": self.names.block, "ends": self.names.ends, "shard": self.shard, "offset": self.offset, "size": self.size}


class OnDemand:
    """N samples (C, *axes) of one shape, decoded when they are asked for; see `ddpm.data.dataset.Samples`.

    numbers (N,): the file of each row. A slice, as a pass over all the data asks for, is decoded by several threads.
    """

    def __init__(
        self, files: Files, numbers: Rows, decoder: Decoder, shape: tuple[int, ...], dtype: np.dtype[Any], title: str, window: int = 0
    ) -> None:
        self.files, self.numbers, self.decoder, self.title = files, numbers, decoder, title
        self.shape: tuple[int, ...] = (len(numbers), *shape)
        self.dtype = dtype
        self.window = window

    @property
    def shards(self) -> Rows:
        """The shard (N,) of each row; for data in shards only."""
        return self.files.arrays()["shard"][self.numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: Any, /) -> NDArray[Any]:
        index = np.arange(len(self))[rows]
        if index.ndim == 0:
            return self[index[None]][0]
        out = np.empty((len(index), *self.shape[1:]), dtype=self.dtype)
        threads = min(os.cpu_count() or 1, 8) if isinstance(rows, slice) else 1
        if threads == 1 or len(index) < 2 * threads:
            self._fill(out, index)
            return out
        with ThreadPoolExecutor(threads) as pool:
            parts = zip(np.array_split(index, threads), np.array_split(np.arange(len(index)), threads), strict=True)
            list(pool.map(lambda part: self._fill(out[part[1][0] : part[1][-1] + 1], part[0]), parts))
        return out

    def _fill(self, out: NDArray[Any], index: Rows) -> None:
        for place, picture in self.pictures(index):
            out[place] = picture

    def name(self, row: int) -> str:
        """The file of a row."""
        return self.files.name(int(self.numbers[row]))

    def pictures(self, rows: Rows) -> Iterator[tuple[int, NDArray[Any]]]:
        """The whole sample of each of the rows (n,), with its place among them.

        Raises:
            DataError: a file that is gone, damaged or another one than when the data were read first.
        """
        numbers = self.numbers[rows]
        for place, data in self.files.read(numbers):
            try:
                picture = self.decoder(data)
            except (Unreadable, Misfit) as error:
                raise self._changed(int(numbers[place]), str(error)) from error
            if picture.dtype != self.dtype or not self._fits(picture.shape):
                raise self._changed(int(numbers[place]), f"{picture.dtype} of shape {picture.shape}")
            yield place, picture

    def _fits(self, shape: tuple[int, ...]) -> bool:
        return shape == self.shape[1:]

    def _changed(self, number: int, now: str) -> DataError:
        return DataError(f"{self.title}: {self.files.name(number)}: {now}; it was not so when the data were read first. Put the file back")


class OnDemandCrops(OnDemand):
    """Pictures (C, H_i, W_i), each at least (C, h, w): indexing gives their centres, `crops` random parts, as `Ragged` does."""

    def _fill(self, out: NDArray[Any], index: Rows) -> None:
        for place, picture in self.pictures(index):
            out[place] = cut(picture, self.shape[2:], 0.5, 0.5)

    def _fits(self, shape: tuple[int, ...]) -> bool:
        return shape[0] == self.shape[1] and all(side >= least for side, least in zip(shape[1:], self.shape[2:], strict=True))

    def crops(self, rows: Rows, generator: np.random.Generator) -> NDArray[Any]:
        """A part (B, C, h, w) of each row, its corner uniform over all places; two numbers are drawn for each row."""
        places = generator.random((len(rows), 2))
        out = np.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        for place, picture in self.pictures(rows):
            out[place] = cut(picture, self.shape[2:], *places[place])
        return out

    def row_bytes(self, row: int) -> memoryview:
        """All of a picture, borders that no crop has shown included, for its digest."""
        return next(np.ascontiguousarray(picture).data for _, picture in self.pictures(np.array([row])))
