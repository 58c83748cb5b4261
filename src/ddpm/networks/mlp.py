"""A residual network for vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm.errors import ConfigError
from ddpm.networks.blocks import dense
from ddpm.networks.config import CondSpec, MLPConfig
from ddpm.networks.embeddings import Cond, Embedding, with_fields


class MLPBlock(nn.Module):
    """h + W2 dropout(swish(W1 (norm(h) (1 + scale) + shift))), with (scale, shift) = W e."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.project = dense(width, 2 * width)
        self.layer1 = dense(width, width)
        self.layer2 = dense(width, width, zero=True)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """h (B, width), emb (B, width); returns (B, width)."""
        scale, shift = self.project(emb).chunk(2, dim=1)
        inner = F.silu(self.layer1(torch.addcmul(shift, self.norm(h).to(shift.dtype), 1 + scale)))
        return h + self.layer2(F.dropout(inner, self.dropout, self.training))


class MLP(nn.Module):
    """F(x, c_noise, cond) by residual blocks that the embedding scales and shifts; made by `MLPConfig.build`, which checks the settings.

    Reference: Perez et al. 2018, arXiv 1709.07871 (scale and shift); He et al. 2016, arXiv 1603.05027 (blocks that start with the norm).
    """

    def __init__(self, config: MLPConfig, shape: tuple[int, ...], out: int, cond: CondSpec) -> None:
        super().__init__()
        self.config, self.shape, self.out, self.cond = config, shape, out, cond
        self.embed = Embedding(config.width, config.width, cond)
        self.stem = dense(shape[0] + cond.beside(shape[0]), config.width)
        self.blocks = nn.ModuleList([MLPBlock(config.width, config.dropout) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(config.width)
        self.head = dense(config.width, out * shape[0], zero=True)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> Tensor:
        """x (B, F), c_noise (B,), cond as `CondSpec` says; returns (B, out * F) in x's precision. ConfigError for what does not fit."""
        if x.ndim != 2 or x.shape[1] != self.shape[0]:
            raise ConfigError(f"MLP: got x of shape {tuple(x.shape)}; it was built for (B, {self.shape[0]})")
        if c_noise.shape != x.shape[:1]:
            raise ConfigError(f"MLP: got c_noise of shape {tuple(c_noise.shape)}; it needs one number a sample, ({x.shape[0]},)")
        emb = F.silu(self.embed(c_noise, cond, self.embed.context(cond, len(x))))
        h = self.stem(with_fields(x, cond, self.cond))
        for block in self.blocks:
            h = block(h, emb)
        return self.head(F.silu(self.norm(h))).to(x.dtype)
