"""The U-Net of Ho et al. 2020, for signals, pictures and volumes."""

from __future__ import annotations

from collections.abc import Sequence
from types import EllipsisType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm.errors import ConfigError
from ddpm.networks.blocks import Attention, ResidualBlock, group_norm, three_taps
from ddpm.networks.config import CondSpec, UNetConfig, nearest_sizes
from ddpm.networks.embeddings import Cond, Embedding, with_fields
from ddpm.networks.resampling import Downsample, Upsample
from ddpm.networks.tokens import Context, CrossAttention


class Level(nn.Module):
    """One size, one way: residual blocks, an attention after each where the level has it, one to tokens where there are any, and the step
    to the next size.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], attention: Sequence[nn.Module], told: Sequence[CrossAttention], resample: nn.Module | None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attention = nn.ModuleList(attention)
        self.told = nn.ModuleList(told)
        self.resample = resample

    def forward(self, h: Tensor, emb: Tensor, skips: list[Tensor] | None = None, context: Context | None = None) -> list[Tensor]:
        """Every tensor made, the last one the next level's input; on the way up each block takes the last of `skips` beside its input."""
        made: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            h = block(h if skips is None else torch.cat([h, skips.pop()], dim=1), emb)
            h = self.attention[index](h) if len(self.attention) else h
            h = self.told[index](h, context) if len(self.told) else h
            made.append(h)
        return made if self.resample is None else [*made, self.resample(h, emb)]


class Middle(nn.Module):
    """The smallest size: a residual block, attention, one to tokens where there are any, a residual block."""

    def __init__(self, first: ResidualBlock, attention: Attention, told: CrossAttention | None, second: ResidualBlock) -> None:
        super().__init__()
        self.first, self.attention, self.told, self.second = first, attention, told, second

    def forward(self, h: Tensor, emb: Tensor, context: Context | None = None) -> Tensor:
        """h (B, C, *axes); returns the same shape."""
        h = self.attention(self.first(h, emb))
        return self.second(h if self.told is None else self.told(h, context), emb)


class UNet(nn.Module):
    """F(x, c_noise, cond) by a U-Net: down through the levels, across the middle, and up again beside what the way down made.

    Made by `UNetConfig.build`, which checks the settings; `down.0` and `up.0` are the full size, higher numbers the smaller ones.

    Reference: Ho, Jain, Abbeel 2020, arXiv 2006.11239, appendix B.
    """

    layout: torch.memory_format = torch.contiguous_format  # of pictures

    def __init__(self, config: UNetConfig, shape: tuple[int, ...], out: int, cond: CondSpec) -> None:
        super().__init__()
        self.config, self.shape, self.out, self.cond = config, shape, out, cond
        axes, width, base = len(shape) - 1, 4 * config.channels, config.channels
        sizes = [base * mult for mult in config.mults]
        levels, circular = range(len(sizes)), config.padding == "periodic"

        def block(inputs: int, outputs: int, resize: str = "") -> ResidualBlock:
            shared = {
                "groups": config.groups,
                "dropout": config.dropout,
                "film": config.film,
                "zero": config.zero_init,
                "circular": circular,
            }
            return ResidualBlock(axes, inputs, outputs, width, **shared, resize=resize)

        def heads(size: int) -> int:
            return size // config.head_channels if config.head_channels else config.heads

        def attention(size: int) -> Attention:
            return Attention(size, heads(size), groups=config.groups, zero=config.zero_init)

        def told(size: int) -> CrossAttention:
            return CrossAttention(size, width, heads(size), groups=config.groups, zero=config.zero_init)

        def attentions(level: int, count: int) -> tuple[list[Attention], list[CrossAttention]]:
            count = count if level in config.attention else 0
            size = sizes[level]
            return [attention(size) for _ in range(count)], [told(size) for _ in range(count if cond.tokens else 0)]

        def resample(size: int, way: str) -> nn.Module:
            if config.resample == "block":
                return block(size, size, way)
            return (Downsample if way == "down" else Upsample)(axes, size, circular=circular)

        self.embed = Embedding(base, width, cond)
        self.stem = three_taps(axes, shape[0] + cond.beside(shape[0]), base, circular=circular)
        made, here = [base], base
        self.down = nn.ModuleList()
        for level in levels:
            inputs = [here] + [sizes[level]] * (config.blocks - 1)
            here, last = sizes[level], level == levels[-1]
            self.down.append(
                Level([block(i, here) for i in inputs], *attentions(level, config.blocks), None if last else resample(here, "down"))
            )
            made += [here] * (config.blocks + (not last))
        self.middle = Middle(block(here, here), attention(here), told(here) if cond.tokens else None, block(here, here))
        up: list[Level] = []
        for level in reversed(levels):
            blocks: list[ResidualBlock] = []
            for _ in range(config.blocks + 1):
                blocks.append(block(here + made.pop(), sizes[level]))
                here = sizes[level]
            up.append(Level(blocks, *attentions(level, config.blocks + 1), resample(here, "up") if level else None))
        self.up = nn.ModuleList(reversed(up))
        self.norm = group_norm(base * config.mults[0], config.groups)
        self.head = three_taps(axes, base * config.mults[0], out * shape[0], zero=config.zero_init, circular=circular)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> Tensor:
        """x (B, C, *axes), c_noise (B,), cond as `CondSpec` says; returns (B, out * C, *axes) in x's precision.

        The sizes may differ from those it was built for, if they are divisible by the down-sampling, or the network is to `fit` them.
        Raises ConfigError for what does not fit.
        """
        self._check(x, c_noise)
        context = self.embed.context(cond, len(x))
        emb = F.silu(self.embed(c_noise, cond, context))
        layout = self.layout if x.ndim == 4 else torch.contiguous_format
        x_in, inner = fitted(with_fields(x, cond, self.cond), self.factor) if self.config.fit else (with_fields(x, cond, self.cond), ...)
        x_in = x_in.contiguous(memory_format=layout)
        skips = [self.stem(x_in).contiguous(memory_format=layout)]  # a picture of one channel has both layouts at once: what follows, not
        for level in self.down:
            skips += level(skips[-1], emb, context=context)
        h = self.middle(skips[-1], emb, context)
        for level in reversed(self.up):
            h = level(h, emb, skips, context)[-1]
        return self.head(self.norm(h, swish=True))[inner].to(x.dtype)

    @property
    def factor(self) -> int:
        """How many times smaller the smallest size is along each axis."""
        return 2 ** (len(self.config.mults) - 1)

    def _check(self, x: Tensor, c_noise: Tensor) -> None:
        if x.ndim != len(self.shape) + 1 or x.shape[1] != self.shape[0]:
            raise ConfigError(f"UNet: got x of shape {tuple(x.shape)}; it was built for (B, {', '.join(map(str, self.shape))})")
        if c_noise.shape != x.shape[:1]:
            raise ConfigError(f"UNet: got c_noise of shape {tuple(c_noise.shape)}; it needs one number a sample, ({x.shape[0]},)")
        for size in self.config.whole(x.shape[2:]):
            if size % self.factor:
                near = nearest_sizes(size, self.factor)
                raise ConfigError(f"UNet: got x of shape {tuple(x.shape)}; {size} is not divisible by {self.factor}, nearest: {near}")


def fitted(x: Tensor, factor: int) -> tuple[Tensor, tuple[EllipsisType | slice, ...]]:
    """x (B, C, *axes) padded to sizes divisible by `factor`, by the values at its edges, evenly at both ends; and where x lies in it."""
    short = [-size % factor for size in x.shape[2:]]
    sides = [(missing // 2, missing - missing // 2) for missing in short]
    inner = (..., *(slice(before, before + size) for (before, _), size in zip(sides, x.shape[2:], strict=True)))
    if not any(short):
        return x, inner
    return F.pad(x, [side for pair in reversed(sides) for side in pair], mode="replicate"), inner
