"""Large latents decoded in overlapping tiles, so that what a decoder needs does not grow with the picture."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product
from typing import TYPE_CHECKING, NamedTuple

from ddpm.errors import ConfigError

if TYPE_CHECKING:
    import torch
else:
    from ddpm.lazy import torch

LEAST = 8  # entries of a tile
OVERLAP = 4  # neighbours share a tile's 1 / OVERLAP, or more where the last ones would stick out


class Span(NamedTuple):
    """A tile along one axis: entries first .. last - 1, and the middles of what it shares with the tile before and after it."""

    first: int
    last: int
    before: float | None
    after: float | None

    def weight(self, factor: int, blend: float, like: torch.Tensor) -> torch.Tensor:
        """Of every entry it decodes to: linear over `blend` around a middle, from 0 where the neighbour counts alone to 1, and back."""
        at = torch.arange(self.first * factor, self.last * factor, device=like.device, dtype=like.dtype)
        at, weight = (at + 0.5) / factor, torch.ones_like(at)
        for middle, falls in ((self.before, False), (self.after, True)):
            if middle is not None:
                share = ((at - middle) / blend + 0.5).clamp(0.0, 1.0)
                weight = weight * (1.0 - share if falls else share)
        return weight


def spans(size: int, tile: int) -> list[Span]:
    """Tiles that cover an axis of `size`, as few as overlap by tile // OVERLAP, evenly spread; never do three blend."""
    if size <= tile:
        return [Span(0, size, None, None)]
    count = -(-(size - tile) // (tile - tile // OVERLAP)) + 1
    firsts = [(size - tile) * number // (count - 1) for number in range(count)]
    middles = [(first + tile + second) / 2 for first, second in pairwise(firsts)]
    return [Span(*ends) for ends in zip(firsts, (first + tile for first in firsts), [None, *middles], [*middles, None], strict=True)]


def tiled(decode: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor, tile: int) -> torch.Tensor:
    """decode(z) of z (B, C, *axes), made of tiles of `tile` entries along each axis, at least 8, blended linearly where they overlap.

    decode: (B, C, *axes) -> (B, D, *factor axes), whatever the axes. Of an overlap o = tile // 4 the outer quarters are thrown away, where
    the tile's own border shows, and the half between is blended; so a decoder that sees no further than o / 4 entries gives what it gives
    of the whole, everywhere. One that takes statistics of all it sees (group norm, attention) gives something near it.

    Raises: ConfigError for a smaller tile.
    """
    if tile < LEAST:
        raise ConfigError(f"tile: got {tile}; allowed whole numbers >= {LEAST}, or none for the whole at once")
    axes = [spans(size, tile) for size in z.shape[2:]]
    whole: torch.Tensor | None = None
    factor = 1
    for place in product(*axes):
        part = decode(z[(..., *(slice(span.first, span.last) for span in place))])
        if whole is None:
            factor = part.shape[2] // (place[0].last - place[0].first)
            whole = part.new_zeros(*part.shape[:2], *(size * factor for size in z.shape[2:]))
        for axis, span in enumerate(place, start=2 - part.ndim):
            weight = span.weight(factor, tile // OVERLAP / 2, part)
            part = part * weight.reshape(-1, *[1] * (-1 - axis))
        whole[(..., *(slice(span.first * factor, span.last * factor) for span in place))] += part
    assert whole is not None  # there is a first tile
    return whole
