"""A network that tells samples from their copies, patch by patch."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ddpm.networks.blocks import conv, group_norm

SLOPE = 0.2  # of the leaky ReLU, below zero


class PatchDiscriminator(nn.Module):
    """x (B, C, *axes) -> (B, 1, *axes / 4) numbers, one for each patch, above 0 for what looks real; with the features on the way.

    Two convolutions of 4 taps with stride 2 and two of 3 taps: each number sees 26 entries along each axis. Deviations from the published
    network: group norm instead of batch norm, so that a sample is judged by itself; two halvings, as samples may be small.

    Reference: Isola et al., 2017, arXiv:1611.07004, section 3.2.2.
    """

    def __init__(self, shape: tuple[int, ...], channels: int = 32) -> None:
        super().__init__()
        axes = len(shape) - 1
        self.layers = nn.ModuleList(
            [
                conv(axes, shape[0], channels, kernel=4, stride=2),
                nn.Sequential(conv(axes, channels, 2 * channels, kernel=4, stride=2), group_norm(2 * channels, 16)),
                nn.Sequential(conv(axes, 2 * channels, 4 * channels), group_norm(4 * channels, 32)),
            ]
        )
        self.head = conv(axes, 4 * channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(what is said of each patch, the features of each layer)."""
        features: list[Tensor] = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
            features.append(x)
        return self.head(x), features
