"""Where we start from: Ho's CIFAR-10 network as a textbook would write it, with one attention head and nothing tuned.

35,746,307 parameters at (3, 32, 32); run it under bfloat16 autocast. `speed.py` measures this package beside it.

Reference: Ho, Jain, Abbeel 2020, arXiv 2006.11239, appendix B.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, attention: bool) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(512, outputs)
        self.norm2, self.conv2 = nn.GroupNorm(32, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attention = Attention(outputs) if attention else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(emb))[:, :, None, None]
        return self.attention(self.skip(x) + self.conv2(F.silu(self.norm2(h))))


class Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.GroupNorm(32, channels), nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        return x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


class Plain(nn.Module):
    """(x (B, 3, 32, 32), t (B,)) -> (B, 3, 32, 32)."""

    def __init__(self, base: int = 128, mults: tuple[int, ...] = (1, 2, 2, 2)) -> None:
        super().__init__()
        widths, here, made = [base * mult for mult in mults], base, [base]
        self.base, self.embed = base, nn.Sequential(nn.Linear(base, 4 * base), nn.SiLU(), nn.Linear(4 * base, 4 * base))
        self.stem, self.down, self.up = nn.Conv2d(3, base, 3, padding=1), nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            for _ in range(2):
                self.down.append(Block(here, here := width, level == 1))
                made.append(here)
            if level < len(widths) - 1:
                self.down.append(nn.Conv2d(here, here, 3, stride=2, padding=1))
                made.append(here)
        self.middle = nn.ModuleList([Block(here, here, True), Block(here, here, False)])
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(3):
                self.up.append(Block(here + made.pop(), here := width, level == 1))
            if level:
                self.up.append(nn.Sequential(nn.Upsample(scale_factor=2.0), nn.Conv2d(here, here, 3, padding=1)))
        self.head = nn.Sequential(nn.GroupNorm(32, here), nn.SiLU(), nn.Conv2d(here, 3, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * torch.exp(torch.arange(self.base // 2) * (-math.log(10000) / (self.base // 2 - 1)))
        emb = self.embed(torch.cat([angles.sin(), angles.cos()], dim=1))
        skips = [h := self.stem(x)]
        for part in self.down:
            skips.append(h := part(h, emb) if isinstance(part, Block) else part(h))
        for block in self.middle:
            h = block(h, emb)
        for part in self.up:
            h = part(torch.cat([h, skips.pop()], dim=1), emb) if isinstance(part, Block) else part(h)
        return self.head(h)
