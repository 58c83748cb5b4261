"""What a network is told in tokens - the words of a caption, the parts of a reference picture - and the attention that reads them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm.errors import ConfigError
from ddpm.networks.blocks import Block, dense, group_norm, spelled_out


class Context(NamedTuple):
    """Tokens as a network reads them, (B, 1 + L, width), and which of them are there, (B, 1 + L) bool; the first stands for "no condition"
    and always is.
    """

    tokens: Tensor
    seen: Tensor


class TokenInput(nn.Module):
    """cond["tokens"] (B, L, E) as a `Context`: normed, brought to the network's width, a learned token before them.

    A token that is zero in all its entries is none, wherever it stands, so captions of different lengths share a batch. Where `null` is
    true none is there. `pooled` is swish of the mean of those that are there by a linear layer whose weights begin at zero.

    Reference: normed embeddings, and their mean beside attention: Saharia et al., 2022, arXiv:2205.11487, section 2.4.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.norm = nn.LayerNorm(size)
        self.project = dense(size, width)
        self.none = nn.Parameter(torch.randn(width))
        self.mean = dense(width, width, zero=True)

    def forward(self, tokens: Tensor | None, null: Tensor | None, batch: int) -> Context:
        """tokens (B, L, E) of any L, none: no sample has any; null (B,) bool. Raises ConfigError for another shape."""
        first = self.none.expand(batch, 1, -1)
        here = torch.ones(batch, 1, dtype=torch.bool, device=first.device)
        if tokens is None:
            return Context(first, here)
        if tokens.ndim != 3 or tokens.shape[0] != batch or tokens.shape[2] != self.size:
            raise ConfigError(
                f'cond["tokens"]: got shape {tuple(tokens.shape)}; this network and this batch need ({batch}, L, {self.size})'
            )
        seen = tokens.ne(0).any(2)
        if null is not None:
            seen = seen & ~null[:, None]
        read = self.project(self.norm(tokens.to(self.norm.weight.dtype)))
        return Context(torch.cat([first.to(read.dtype), read], dim=1), torch.cat([here, seen], dim=1))

    def pooled(self, context: Context) -> Tensor:
        """(B, width), for the embedding every block takes."""
        seen = context.seen[..., None].to(context.tokens.dtype)
        return self.mean(F.silu((context.tokens * seen).sum(1) / seen.sum(1)))


class CrossAttention(Block):
    """x + proj(softmax(q k^T / sqrt(d)) v), q of every position of the normed x, k and v of the tokens that are there, in `heads` heads.

    Reference: Vaswani et al. 2017, arXiv 1706.03762, equation 1; in a diffusion network: Rombach et al. 2022, arXiv:2112.10752,
    section 3.3.
    """

    def __init__(self, channels: int, width: int, heads: int, *, groups: int, zero: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels, groups)
        self.q = dense(channels, channels)
        self.k = dense(width, channels)
        self.v = dense(width, channels)
        self.proj = dense(channels, channels, zero=zero)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x (B, C, *axes), tokens (B, L, width); returns x's shape."""
        places = self.norm(x).flatten(2).transpose(1, 2).contiguous()
        split = (
            (layer(given), (self.heads, -1)) for layer, given in ((self.q, places), (self.k, context.tokens), (self.v, context.tokens))
        )
        q, k, v = (made.unflatten(2, heads).transpose(1, 2) for made, heads in split)
        seen = context.seen[:, None, None, :]
        h = spelled_out(q, k, v, seen) if self.plain else F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return x + self.proj(h.transpose(1, 2).flatten(2)).transpose(1, 2).view_as(x)
