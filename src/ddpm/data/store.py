"""Bringing decoded pictures to one number of channels, one depth and one size, in the order asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.data.dataset import Samples
from ddpm.data.ragged import Pile, Ragged, empty
from ddpm.data.settings import DataSettings
from ddpm.errors import DataError


def arrange(pile: Pile, order: Sequence[int], title: str, settings: DataSettings) -> tuple[Samples, tuple[str, ...]]:
    """The pictures of a pile at the positions `order`, as (N, C, h, w), and what was done to them.

    Grey pictures among coloured ones get three channels; 16-bit ones among 8-bit ones are reduced to 8 bits, v -> round(v / 257).
    With `crop="random"` the sizes may differ; otherwise they must be equal.

    Raises:
        DataError: different sizes, with the commonest ones and what to do; a picture smaller than what is to be cut from it.
    """
    pictures = pile.pictures()
    chosen = [pictures[i] for i in order]
    depth, channels = (Counter(p.dtype.itemsize for p in chosen), Counter(p.shape[0] for p in chosen))
    notices: list[str] = []
    if len(channels) > 1:
        notices.append(f"{channels[1]:,} grey pictures given three channels, as the others have")
    if len(depth) > 1:
        notices.append(f"{depth[2]:,} pictures of 16 bits reduced to 8, as the others are")
    if pile.on_disk:
        notices.append("the pictures are larger than half of the memory; they are kept in a temporary file")
    target = settings.height_width
    sizes = Counter(p.shape[1:] for p in chosen)
    if settings.crop == "random" and target is not None and set(sizes) != {target}:
        return Ragged([_alike(p, max(channels), min(depth)) for p in chosen], target), tuple(notices)
    if len(sizes) > 1:
        common = ", ".join(f"{count:,} of {height}x{width}" for (height, width), count in sizes.most_common(5))
        raise DataError(
            f"{title}: pictures of {len(sizes):,} sizes (height x width: {common}); give --size and --crop centre or --crop random, "
            f"such as --size {min(sizes.most_common(1)[0][0])} --crop centre"
        )
    if len(channels) == len(depth) == 1 and list(order) == list(range(len(pictures))):
        return pile.stacked(), tuple(notices)
    first = _alike(chosen[0], max(channels), min(depth))
    stacked = empty((len(chosen), *first.shape), first.dtype)
    for i, picture in enumerate(chosen):
        stacked[i] = _alike(picture, max(channels), min(depth))
    return stacked, tuple(notices)


def _alike(picture: NDArray[Any], channels: int, itemsize: int) -> NDArray[Any]:
    if picture.dtype.itemsize > itemsize:
        picture = ((picture.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return picture if picture.shape[0] == channels else np.repeat(picture, channels, axis=0)
