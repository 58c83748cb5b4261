"""Parts the U-Net is built of, for 1, 2 or 3 spatial axes, with the initialisation of Ho et al. 2020.

Each part has a plain way and, where it pays, a fast one, which gives the same numbers up to rounding; `reference` chooses the plain way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ddpm.errors import ConfigError
from ddpm.networks import fused
from ddpm.networks.periodic import Circular

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
POOLS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
WIDE, LARGE = 16, 1024  # channels a group and positions a channel from which group norm is as quick on channels-last tensors
SHORT = 1024  # positions up to which a whole table of attention weights is cheaper on the CPU than the fused kernel
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Layer = TypeVar("Layer", bound=nn.Linear | Convolution)


class Part(nn.Module):
    """A part with a fast way and a plain one; `plain` is set by `reference`, `again` by `checkpoint_activations`."""

    plain: bool = False
    again: bool = False

    def __call__(self, *inputs: Any, **named: Any) -> Tensor:
        """The part's forward; with `again` nothing inside it is kept for the gradient, but computed once more when that is asked for."""
        if self.again and not self.plain and torch.is_grad_enabled():
            return checkpoint(partial(super().__call__, **named), *inputs, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return super().__call__(*inputs, **named)


class Block(Part):
    """A part that may be computed again for its gradient."""


@contextmanager
def reference(network: nn.Module) -> Iterator[None]:
    """Within this context `network` computes by the textbook: softmax attention spelled out, repeat then convolve, nothing in place,
    nothing computed twice, nothing compiled.
    """
    parts = [(part, part.plain) for part in network.modules() if isinstance(part, Part)]
    try:
        for part, _ in parts:
            part.plain = True
        with uncompiled(network):
            yield
    finally:
        for part, before in parts:
            part.plain = before


@contextmanager
def uncompiled(network: nn.Module) -> Iterator[None]:
    """Within this context what `network.compile()` was called on runs as if it had not been."""
    found = [(part, vars(part).pop("_compiled_call_impl")) for part in network.modules() if "_compiled_call_impl" in vars(part)]
    try:
        yield
    finally:
        for part, call in found:
            vars(part)["_compiled_call_impl"] = call


def checkpoint_activations(network: nn.Module, wanted: bool) -> None:
    """Whether residual blocks and attentions are computed again for their gradients, instead of keeping what is inside them.

    The numbers are the same, dropout included. Memory for activations falls to the blocks' inputs and outputs; a step takes up to a third
    longer. ConfigError for a network without such parts.

    Reference: Chen, Xu, Zhang, Guestrin 2016, arXiv 1604.06174.
    """
    for part in checkpointable(network) if wanted else network.modules():
        if isinstance(part, Block):
            part.again = wanted


@contextmanager
def checkpointed(network: nn.Module, wanted: bool) -> Iterator[None]:
    """Within this context `checkpoint_activations(network, True)` where wanted; afterwards every part is as it was before."""
    before = [(part, part.again) for part in network.modules() if isinstance(part, Part)]
    if wanted:
        checkpoint_activations(network, True)
    try:
        yield
    finally:
        for part, again in before:
            part.again = again


def checkpointable(network: nn.Module) -> list[nn.Module]:
    """The parts that can be computed twice; ConfigError where there are none."""
    parts: list[nn.Module] = [part for part in network.modules() if isinstance(part, Block)]
    if not parts:
        raise ConfigError(f"gradient_checkpointing: {type(network).__name__} has no blocks it could be done for; it is for the UNet")
    return parts


def dense(inputs: int, outputs: int, *, zero: bool = False) -> nn.Linear:
    """A linear layer that starts as `start` says."""
    return start(nn.Linear(inputs, outputs), zero)


def conv(axes: int, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, padding: int = 1, zero: bool = False) -> Convolution:
    """A convolution over `axes` spatial axes that starts as `start` says."""
    return start(CONVOLUTIONS[axes - 1](inputs, outputs, kernel, stride=stride, padding=padding), zero)


def three_taps(axes: int, inputs: int, outputs: int, *, zero: bool = False, circular: bool = False) -> Convolution | Circular:
    """A convolution that keeps the size, padded by zeros, or `circular`."""
    if not circular:
        return conv(axes, inputs, outputs, zero=zero)
    padding: Any = (*[1] * (axes - 1), 0)
    return Circular(start(CONVOLUTIONS[axes - 1](inputs, outputs, 3, padding=padding), zero))


def start(layer: Layer, zero: bool) -> Layer:
    """Biases at zero; weights at zero, or uniform in +-sqrt(6 / (fan_in + fan_out)).

    Deviation: Ho et al. scale the variance of the zero ones by 1e-10 instead; here they are exactly zero.
    Reference: Glorot, Bengio 2010, equation 16; the choice of Ho et al. 2020, arXiv 2006.11239.
    """
    if zero:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class GroupNorm(Part, nn.GroupNorm):
    """swish(norm(x + shift)), the shift and the swish where wanted.

    The fast way is one function of our own, `fused.norm_swish`. Where it does not fit, channels-last tensors on a CPU are made contiguous
    wherever torch's own norm is slow on them: few channels a group, small pictures.
    """

    def forward(self, x: Tensor, shift: Tensor | None = None, *, swish: bool = False) -> Tensor:
        """x (B, C, *axes), shift (B, C); returns the same shape and layout. With a shift x may be overwritten."""
        if not self.plain and fused.fits(self, x, shift):
            return fused.norm_swish(self, x, shift, swish)
        if shift is not None:
            x = x + spread(shift, x) if self.plain else x.add_(spread(shift, x))
        slow = x.ndim == 4 and x.device.type == "cpu" and not x.is_contiguous() and self.num_channels // self.num_groups < WIDE
        if slow and x[0, 0].numel() < LARGE:
            h = super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)
        else:
            h = super().forward(x)
        return F.silu(h, inplace=not self.plain and not h.requires_grad) if swish else h


def group_norm(channels: int, groups: int) -> GroupNorm:
    """Group norm with at most `groups` groups: the most that divide `channels` and leave 4 or more in each; one group if none do.

    A group of one channel would subtract the time embedding that has just been added to it.
    """
    fitting = [count for count in range(1, groups + 1) if channels % count == 0 and channels // count >= 4]
    return GroupNorm(max(fitting, default=1), channels, eps=1e-6)


def spread(embedding: Tensor, like: Tensor) -> Tensor:
    """(B, C) as (B, C, 1, ..., 1), to broadcast against `like` (B, C, *axes)."""
    return embedding.view(*embedding.shape, *[1] * (like.ndim - 2))


def repeat(x: Tensor) -> Tensor:
    """Twice the size on every axis, each entry repeated."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def pool(x: Tensor) -> Tensor:
    """Half the size on every axis, by averages of two."""
    return POOLS[x.ndim - 3](x, 2)


class ResidualBlock(Block):
    """h = conv1(swish(norm1(x))); h takes the embedding; return shortcut(x) + conv2(dropout(swish(norm2(h)))).

    The embedding e (B, E), already through swish, enters as h + W e, or with `film` as norm2(h) (1 + scale) + shift, (scale, shift) = W e.
    With `resize`, both h after norm1 and x are halved ("down", averages) or doubled ("up", repeats). width: E; 0: there is no embedding.

    Reference: Ho et al. 2020, arXiv 2006.11239, appendix B; Dhariwal, Nichol 2021, arXiv 2105.05233, section 3 (`film`, `resize`).
    """

    def __init__(
        self,
        axes: int,
        inputs: int,
        outputs: int,
        width: int = 0,
        *,
        groups: int,
        dropout: float = 0.0,
        film: bool = False,
        zero: bool,
        resize: str = "",
        circular: bool = False,
    ) -> None:
        super().__init__()
        self.film, self.dropout = film, dropout
        self.resize = {"": None, "down": pool, "up": repeat}[resize]
        self.norm1 = group_norm(inputs, groups)
        self.conv1 = three_taps(axes, inputs, outputs, circular=circular)
        self.project = dense(width, 2 * outputs if film else outputs) if width else None
        self.norm2 = group_norm(outputs, groups)
        self.conv2 = three_taps(axes, outputs, outputs, zero=zero, circular=circular)
        self.shortcut = conv(axes, inputs, outputs, kernel=1, padding=0) if inputs != outputs else None

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """x (B, inputs, *axes), emb (B, width); returns (B, outputs, *axes), resized where asked."""
        h = self.norm1(x, swish=True)
        if self.resize is not None:
            h, x = self.resize(h), self.resize(x)
        h, projected = self.conv1(h), None if self.project is None else self.project(emb)
        if self.film:
            assert projected is not None  # scale and shift of nothing are not asked for
            scale, shift = spread(projected, h).chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
            h = F.silu(h, inplace=not self.plain and not h.requires_grad)
        else:
            h = self.norm2(h, projected, swish=True)
        h = self.conv2(F.dropout(h, self.dropout, self.training))
        return self.plus(h, x if self.shortcut is None else self.shortcut(x))

    def plus(self, h: Tensor, other: Tensor) -> Tensor:
        """h + other; the fast way overwrites h, a convolution's own output, which its gradient does not need."""
        return h + other if self.plain else h.add_(other)


class Attention(Block):
    """x + proj(softmax(q k^T / sqrt(d)) v), over all positions, on the normed x, in `heads` heads of d channels.

    Reference: Vaswani et al. 2017, arXiv 1706.03762, equation 1; placed as in Ho et al. 2020, arXiv 2006.11239, appendix B.
    """

    def __init__(self, channels: int, heads: int, *, groups: int, zero: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels, groups)
        self.qkv = nn.Linear(channels, 3 * channels)
        with torch.no_grad():
            self.qkv.weight.copy_(torch.cat([dense(channels, channels).weight for _ in range(3)]))
            self.qkv.bias.zero_()
        self.proj = dense(channels, channels, zero=zero)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, *axes); returns the same shape."""
        tokens = self.norm(x).flatten(2).transpose(1, 2).contiguous()  # products of transposed ones are slow in bfloat16
        qkv = self.qkv(tokens)
        if self.heads == 1 and not self.plain and tokens.device.type == "cpu" and tokens.shape[1] <= SHORT:
            h = short_attention(*qkv.chunk(3, dim=2))
        else:
            q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            h = spelled_out(q, k, v) if self.plain else F.scaled_dot_product_attention(q, k, v)
            h = h.transpose(1, 2).flatten(2)
        return x + self.proj(h).transpose(1, 2).view_as(x)


def spelled_out(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for (B, heads, N, d), over the keys that are `seen`, operation by operation."""
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    return torch.softmax(scores if seen is None else scores.masked_fill(~seen, -torch.inf), dim=-1) @ v


def short_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for (B, N, d), by two batched products: for one wide head, quicker on a CPU than the fused kernel."""
    scores = torch.bmm(q * q.shape[-1] ** -0.5, k.transpose(1, 2))
    return torch.bmm(scores.softmax(dim=-1), v)
