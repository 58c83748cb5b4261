"""Twice and half the size by one convolution each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm.networks.blocks import Part, conv, repeat
from ddpm.networks.periodic import around

TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
ENOUGH = 256  # positions (batch times sizes) from which the transposed convolution pays for making its weights


class Upsample(Part):
    """Twice the size: each entry repeated, then a convolution with 3 taps an axis.

    The fast way is one transposed convolution with stride 2 and 4 taps, `stretched(weight)`: the same sums, without multiplying each
    repeated entry again (2D: 4/9 of the products). Used on the CPU, when the batch is large enough to pay for making the weights.
    On a circle (`circular`) an entry of either end is laid behind the other, and what is made of these two is cut off.
    """

    def __init__(self, axes: int, channels: int, *, circular: bool = False) -> None:
        super().__init__()
        self.conv = conv(axes, channels, channels)
        self.circular = circular

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """x (B, C, *axes) to (B, C, *2 axes); the embedding is not used."""
        return self._on_circle(self._doubled, x) if self.circular else self._doubled(x)

    def _doubled(self, x: Tensor) -> Tensor:
        if self.plain or x.device.type != "cpu" or x.numel() < ENOUGH * x.shape[1]:
            return self.conv(repeat(x))
        return TRANSPOSED[x.ndim - 3](x, stretched(self.conv.weight), self.conv.bias, stride=2, padding=1)

    @staticmethod
    def _on_circle(double: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return double(around(x, 1, 1))[..., 2:-2]

    def packed(self) -> Callable[[Tensor], Tensor]:
        """x -> the same in bfloat16, by a transposed convolution whose weight is made once; where nothing needs a gradient."""
        bias = None if self.conv.bias is None else self.conv.bias.detach().bfloat16()
        weight = stretched(self.conv.weight.detach()).bfloat16().contiguous()

        def doubled(x: Tensor) -> Tensor:
            return TRANSPOSED[x.ndim - 3](x.bfloat16(), weight, bias, stride=2, padding=1)

        return partial(self._on_circle, doubled) if self.circular else doubled


def stretched(weight: Tensor) -> Tensor:
    """The weight (in, out, 4, ...) whose transposed convolution (stride 2, padding 1) equals repeating, then convolving with `weight`.

    Along each axis (w0, w1, w2) becomes (w2, w1 + w2, w0 + w1, w0): output 2i + d, d = -1..2, meets input i through every tap that
    lands on one of its two copies.
    """
    for axis in range(2, weight.ndim):
        first, second, third = weight.split(1, dim=axis)
        weight = torch.cat([third, second + third, first + second, first], dim=axis)
    return weight.transpose(0, 1)


class Downsample(Part):
    """Half the size: a convolution with stride 2, padded by one zero at the end of each axis only; a circle by its first entry."""

    def __init__(self, axes: int, channels: int, *, circular: bool = False) -> None:
        super().__init__()
        self.conv = conv(axes, channels, channels, stride=2, padding=0)
        self.circular = circular

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """x (B, C, *axes) to (B, C, *axes / 2); the embedding is not used."""
        if self.circular:
            return self.conv(F.pad(around(x, 0, 1), (0, 0) + (0, 1) * (x.ndim - 3)))
        return self.conv(F.pad(x, (0, 1) * (x.ndim - 2)))
