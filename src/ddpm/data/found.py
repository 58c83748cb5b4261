"""`Found`: what a reader hands on, before the split is drawn and the card is filled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ddpm.data.dataset import Named, Samples
from ddpm.denoiser.fields import Fields

if TYPE_CHECKING:
    from ddpm.data.names import Names


@dataclass(frozen=True, kw_only=True)
class Found:
    """Samples (N, *shape) channels first, their conditions, and what was noticed while reading them."""

    name: str
    kind: Literal["image", "array"]
    samples: Samples
    cond: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    vector: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()  # those of the vector's names that are tags
    bins: tuple[float, float] | None = None
    held: NDArray[np.int64] | None = None  # rows of a validation set that came with the data; None: draw one
    unreadable: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    names: Named | None = None  # the file of each row, where the samples are in memory
    fields: Fields | None = None  # of fields on a grid
    texts: Names | None = None  # the caption of each row; empty: none
