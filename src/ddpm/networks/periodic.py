"""A last axis that is a circle, as longitudes are: what lies beyond its ends is its other end."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def around(x: Tensor, before: int, after: int) -> Tensor:
    """x (B, C, *axes) with so many entries of the last axis' other end laid before its first and behind its last, in the layout of x."""
    parts = [*([x[..., -before:]] if before else []), x, *([x[..., :after]] if after else [])]
    layout = torch.channels_last if x.ndim == 4 and not x.is_contiguous() else torch.contiguous_format
    return torch.cat(parts, dim=-1).contiguous(memory_format=layout)


class Circular(nn.Module):
    """A convolution with 3 taps that is not padded along its last axis: there it sees the circle's other end."""

    def __init__(self, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """x (B, inputs, *axes); returns (B, outputs, *axes)."""
        return self.conv(around(x, 1, 1))
