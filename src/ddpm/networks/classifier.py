"""Classifier networks: (x, c_noise) -> logits, the first half of a U-Net or an MLP with a linear head."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ddpm.networks.blocks import dense, group_norm
from ddpm.networks.config import MLPConfig, UNetConfig
from ddpm.networks.mlp import MLP
from ddpm.networks.unet import UNet


class UNetClassifier(nn.Module):
    """The way down and the middle of a U-Net, averaged over the positions, then linear: (B, C, *axes), (B,) -> (B, classes).

    Deviation: an average where the paper pools by attention. Reference: Dhariwal, Nichol, 2021, arXiv:2105.05233, section 4.
    """

    def __init__(self, unet: UNet, classes: int) -> None:
        super().__init__()
        self.embed, self.stem, self.down, self.middle = unet.embed, unet.stem, unet.down, unet.middle
        width = unet.config.channels * unet.config.mults[-1]
        self.norm, self.head = group_norm(width, unet.config.groups), dense(width, classes, zero=True)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """Logits; no class is likelier than another before training."""
        emb, h = F.silu(self.embed(c_noise, None)), self.stem(x)
        for level in self.down:
            h = level(h, emb)[-1]
        h = F.silu(self.norm(self.middle(h, emb)))
        return self.head(h.flatten(2).mean(2))


class MLPClassifier(nn.Module):
    """The blocks of an MLP, then linear: (B, F), (B,) -> (B, classes)."""

    def __init__(self, mlp: MLP, classes: int) -> None:
        super().__init__()
        self.embed, self.stem, self.blocks, self.norm = mlp.embed, mlp.stem, mlp.blocks, mlp.norm
        self.head = dense(mlp.config.width, classes, zero=True)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """Logits; no class is likelier than another before training."""
        emb, h = F.silu(self.embed(c_noise, None)), self.stem(x)
        for block in self.blocks:
            h = block(h, emb)
        return self.head(F.silu(self.norm(h)))


def build_classifier(config: UNetConfig | MLPConfig, shape: Sequence[int], classes: int) -> UNetClassifier | MLPClassifier:
    """The classifier for samples of `shape`; raises ConfigError as `config.build` does."""
    if isinstance(config, MLPConfig):
        return MLPClassifier(config.build(shape), classes)
    return UNetClassifier(config.build(shape), classes)
