"""`Dataset`: samples, conditions and the split, and how a batch is taken from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ddpm.denoiser.card import Card

Rows = NDArray[np.int64]


class Samples(Protocol):
    """What a store of samples must offer: an array in memory, a memory map, or `ddpm.data.ragged.Ragged`."""

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


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Samples in their own units, channels first, with their conditions, their split and their card.

    `samples` is (N, *card.shape): an array in memory, a memory map, or a store of larger pictures whose centre is shown.
    `cond` may hold "class" (N,) int64, "vector" (N, V) float32 and "image" (N, C, *axes); `train_rows` and `held_rows` are int64.
    """

    card: Card
    samples: Samples
    cond: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    train_rows: Rows
    held_rows: Rows
    flip: bool = False

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, rows: Rows, generator: np.random.Generator | None = None) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        """The samples (B, *shape) and conditions of the rows (B,), as copies.

        With a generator, and only then, the samples are augmented: a random part of each larger picture where the settings say
        `crop="random"`, then half of them mirrored along the last axis where they say `flip` (the image condition with them).
        The result is a pure function of the rows and of the generator's state; without one the same rows always give the same batch.
        """
        rows = np.asarray(rows, dtype=np.int64)
        crops = getattr(self.samples, "crops", None)
        raw = np.array(self.samples[rows]) if generator is None or crops is None else crops(rows, generator)
        if raw.dtype.byteorder not in "=|":
            raw = raw.astype(raw.dtype.newbyteorder("="))
        cond = {key: np.array(values[rows]) for key, values in self.cond.items()}
        if generator is not None and self.flip:
            mirrored = generator.random(len(rows)) < 0.5
            raw[mirrored] = raw[mirrored][..., ::-1]
            if "image" in cond:
                cond["image"][mirrored] = cond["image"][mirrored][..., ::-1]
        return raw, cond
