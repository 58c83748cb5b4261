"""Tiles of a decoder that sees only its neighbourhood make the whole, in one, two and three dimensions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from ddpm.denoiser.tiles import spans, tiled
from ddpm.errors import ConfigError

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Local(nn.Module):
    """Convolutions only, three times as large on the way out; an output sees latents up to `reach` (1 + 1/3 or more) away."""

    def __init__(self, axes: int, reach: int = 1) -> None:
        super().__init__()
        kind = CONVOLUTIONS[axes]
        self.first, self.last = kind(2, 4, 2 * reach + 1, padding=reach), kind(4, 3, 3, padding=1)
        self.sizes: list[int] = []  # of what it was asked for, along its longest axis

    def forward(self, z: Tensor) -> Tensor:
        self.sizes.append(max(z.shape[2:]))
        return self.last(F.interpolate(torch.tanh(self.first(z)), scale_factor=3))


def made(axes: int, *sizes: int, reach: int = 1) -> tuple[Local, Tensor]:
    """A decoder and two latents, in float64."""
    torch.manual_seed(0)
    return Local(axes, reach).double(), torch.randn(2, 2, *sizes, dtype=torch.float64)


@pytest.mark.parametrize("sizes", [(97,), (33, 70), (70, 9), (33, 8, 37)], ids=str)
@torch.no_grad()
def test_a_local_decoder_s_tiles_are_the_whole(sizes: tuple[int, ...]) -> None:
    """Everywhere, corners and seams included; and it never sees more than a tile."""
    decoder, z = made(len(sizes), *sizes)
    whole = decoder(z)
    decoder.sizes.clear()
    found = tiled(decoder, z, 32)
    assert found.shape == whole.shape == (2, 3, *(3 * size for size in sizes)) and max(decoder.sizes) <= 32 and len(decoder.sizes) > 1
    assert_close(found, whole, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_one_that_sees_further_differs_near_the_seams_only() -> None:
    """So the law above would notice a tile's border; and the difference is a blend's, without a step."""
    decoder, z = made(1, 97, reach=6)
    error = (tiled(decoder, z, 32) - decoder(z)).abs().amax((0, 1))
    seams = torch.tensor([span.after for span in spans(97, 32)[:-1]]) * 3
    near = (torch.arange(len(error))[:, None] - seams).abs().amin(1) < 3 * (2 + 6)  # half the blend, and what it sees
    assert error.max() > 1e-3 and error[~near].max() < 1e-12


@torch.no_grad()
def test_what_fits_into_a_tile_has_the_same_bits() -> None:
    """Nothing is blended, nothing is added."""
    decoder, z = made(2, 16, 12)
    assert torch.equal(tiled(decoder, z, 16), decoder(z)) and decoder.sizes == [16, 16]
    with pytest.raises(ConfigError, match="tile: got 7"):
        tiled(decoder, z, 7)


@pytest.mark.parametrize("tile", [8, 9, 20, 64])
def test_weights_are_one_in_all_and_never_three(tile: int) -> None:
    """Of every entry of every size; a neighbour's border, o / 4 deep, weighs nothing."""
    like, blend, margin = torch.zeros((), dtype=torch.float64), tile // 4 / 2, tile // 4 / 4
    for size in range(1, 5 * tile):
        total, many = torch.zeros(4 * size, dtype=torch.float64), torch.zeros(4 * size)
        for span in spans(size, tile):
            weight = span.weight(4, blend, like)
            assert 0 <= span.first and span.last <= size and span.last - span.first == min(tile, size)
            total[4 * span.first : 4 * span.last] += weight
            many[4 * span.first : 4 * span.last] += weight > 0
            depth = (torch.arange(len(weight)) + 0.5) / 4
            for edge, cut in ((depth, span.first > 0), (depth.flip(0), span.last < size)):
                assert not cut or not bool(weight[edge < margin].any())
        assert_close(total, torch.ones_like(total))
        assert int(many.max()) <= 2 and int(many.min()) >= 1
