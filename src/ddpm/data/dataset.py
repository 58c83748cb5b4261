"""`Dataset`: samples, conditions and the split, and how a batch is taken from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ddpm.data.rows import Keys
from ddpm.data.watch import Watched
from ddpm.denoiser.codec import Codec
from ddpm.errors import DataError
from ddpm.random import generator as stream

if TYPE_CHECKING:
    from ddpm.denoiser.card import Card

Rows = NDArray[np.int64]
Derived = Callable[[NDArray[Any], np.random.Generator | None], Mapping[str, NDArray[Any]]]


class Samples(Protocol):
    """What a store of samples must offer: an array in memory, a memory map, `ddpm.data.ragged.Ragged` or `ddpm.data.demand.OnDemand`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, *shape of one sample), channels first."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of one entry."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


class Croppable(Protocol):
    """A store whose samples are larger than the model's, of which a part is cut at each visit."""

    def crops(self, rows: Rows, generator: np.random.Generator) -> NDArray[Any]:
        """One random part of each of the rows (B,), as (B, *shape)."""
        ...


class Named(Protocol):
    """Texts by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> str: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Samples in their own units, channels first, with their conditions, their split and their card.

    `samples` is (N, *card.shape): an array in memory, a memory map, or a store of larger pictures whose centre is shown.
    `cond` may hold "class" (N,) int64, "vector" (N, V) float32, "image" (N, Ci, *axes), "tokens" (N, L, E) float32, what an encoder made of
    the captions `texts` (see `ddpm.training.tokens`), and "mask" (N, 1 or C, *axes), 0 where an entry of a sample is not there, whatever
    `samples` hold there; `train_rows` and `held_rows` are int64.
    `keys` tell this reading of the data from another one (see `rows`); `watched` are the files that are mapped; `derived` makes further
    conditions of a batch's samples.
    """

    card: Card
    samples: Samples
    cond: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    train_rows: Rows
    held_rows: Rows
    flip: bool = False
    keys: Keys | None = None
    watched: tuple[Watched, ...] = ()
    derived: Derived | None = None
    names: Named | None = None  # the file of each row, where samples in memory came from files
    texts: Named | None = None  # the caption of each row, where the data have them; empty: none

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, row: int) -> str | None:
        """The file a row was read from, within the data set's folder or archive; None where there is none to name."""
        if self.names is not None:
            return self.names[row]
        named = getattr(self.samples, "name", None)
        return None if named is None else named(row)

    def order(self, seed: int, epoch: int) -> Rows:
        """The order of an epoch (n,): places in `train_rows`, each once; a pure function of (seed, epoch) and the data.

        A permutation drawn uniformly; for data in shards the shards are shuffled, and then the samples within each `window` of them, so
        that never more than a window's shards are being read.
        """
        draw = stream(seed, "order", epoch)
        window = int(getattr(self.samples, "window", 0))
        if not window:
            return draw.permutation(len(self.train_rows))
        shards: Rows = getattr(self.samples, "shards")[self.train_rows]  # noqa: B009 - not every store has it
        present, which = np.unique(shards, return_inverse=True)
        return np.lexsort((draw.random(len(shards)), draw.permutation(len(present))[which] // window))

    def batch(self, rows: Rows, generator: np.random.Generator | None = None) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        """The samples (B, *shape) and conditions of the rows (B,), as copies.

        With a generator, and only then, the samples are augmented: a random part of each larger picture where the settings say
        `crop="random"`, then half of them mirrored along the last axis where they say `flip` (the image condition with them).
        Where a mask says that nothing is there the samples hold the middle of their channel. The result is a pure function of the rows and
        of the generator's state; without one the same rows always give the same batch.

        Raises: DataError naming the file where samples that stay in their files can no longer be read.
        """
        rows = np.asarray(rows, dtype=np.int64)
        crops = getattr(self.samples, "crops", None)
        for file in self.watched:
            file.check()
        try:
            raw = np.array(self.samples[rows]) if generator is None or crops is None else crops(rows, generator)
        except OSError as error:  # from a person's own store
            where = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            raise DataError(f"{self.card.name}: {where}; it could be read when training began") from error
        if raw.dtype.byteorder not in "=|":
            raw = raw.astype(raw.dtype.newbyteorder("="))
        cond = {key: np.array(values[rows]) for key, values in self.cond.items()}
        if generator is not None and self.flip:
            mirrored = generator.random(len(rows)) < 0.5
            raw[mirrored] = raw[mirrored][..., ::-1]
            for key in cond.keys() & {"image", "mask"}:
                cond[key][mirrored] = cond[key][mirrored][..., ::-1]
        if "mask" in cond:
            raw = np.where(cond["mask"] != 0, raw, self._nothing(raw.ndim)).astype(raw.dtype)
        if self.derived is not None:
            cond |= self.derived(raw, generator)
        return raw, cond

    def _nothing(self, axes: int) -> NDArray[Any]:
        """What samples hold where nothing is there: the value of each channel that is 0 in the space diffused in."""
        middle = np.asarray(Codec.of(self.card).shift).reshape(1, -1, *[1] * (axes - 2))
        return middle if np.dtype(self.card.dtype).kind == "f" else np.rint(middle)

    def conditions(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """The conditions of the rows (B,), without the samples where they can be had without."""
        if self.derived is not None:
            return self.batch(rows)[1]
        return {key: np.array(values[np.asarray(rows)]) for key, values in self.cond.items()}


def evenly(rows: Rows, most: int) -> Rows:
    """At most so many of the rows, evenly: data may be sorted."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]
