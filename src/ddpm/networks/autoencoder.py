"""An autoencoder for signals, pictures and volumes: what is small to the eye is left out, what is left is smaller to diffuse in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddpm.config import to_dict
from ddpm.errors import ConfigError
from ddpm.networks.blocks import ResidualBlock, conv, group_norm
from ddpm.networks.config import AutoencoderConfig
from ddpm.networks.resampling import Downsample, Upsample

LEAST, MOST = -10.0, 5.0  # of log std: from far below what a latent of unit size can tell apart, to as good as nothing known


class Posterior(NamedTuple):
    """q(z | x) = N(mean, std^2), (B, latent, *axes) each."""

    mean: Tensor
    log_std: Tensor

    def draw(self, eps: Tensor) -> Tensor:
        """z = mean + std eps, for unit normals eps."""
        return torch.addcmul(self.mean, self.log_std.exp(), eps)

    def kl(self) -> Tensor:
        """KL(q(z|x) || N(0, I)) = sum (mean^2 + std^2 - 1)/2 - log std, in nats, (B,). Reference: Kingma, Welling, 2013, arXiv:1312.6114,
        appendix B.
        """
        return (0.5 * (self.mean**2 + (2.0 * self.log_std).exp() - 1.0) - self.log_std).flatten(1).sum(1)


class Autoencoder(nn.Module, ABC):
    """x (B, C, *axes) <-> z (B, latent, *axes / factor), whoever made it: all that whatever diffuses in latents sees of it.

    shape: (C, *axes) of one sample; other sizes will do if they are divisible by the factor. codebook: (codes, latent), to the nearest of
    whose entries `decode` rounds every position of z, while z itself is what is diffused; None: there is none. scale: b of the Laplace
    distribution p(x | z) around `decode(z)`, in units of x, as training left it; None: not known.
    """

    codebook: Tensor | None

    def __init__(self, shape: tuple[int, ...], latent: int, factor: int) -> None:
        super().__init__()
        self.shape, self.latent, self.factor = shape, latent, factor
        self.scale: float | None = None

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of one latent, channels first."""
        return (self.latent, *(size // self.factor for size in self.shape[1:]))

    def posterior(self, x: Tensor) -> Posterior:
        """q(z | x); with a codebook, whose latents are certain, std = 0. ConfigError for x that does not fit."""
        if x.ndim != len(self.shape) + 1 or x.shape[1] != self.shape[0] or any(size % self.factor for size in x.shape[2:]):
            raise ConfigError(
                f"autoencoder: got x of shape {tuple(x.shape)}; it takes (B, {', '.join(map(str, self.shape))}), or other sizes divisible "
                f"by {self.factor}"
            )
        return self.encoded(x)

    @abstractmethod
    def encoded(self, x: Tensor) -> Posterior:
        """q(z | x) of an x that fits."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """z (B, latent, *axes / factor) -> x (B, C, *axes)."""

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """Its settings, as config.json of a checkpoint has them: with `shape` enough to make it again, but for its weights."""

    def codes(self, z: Tensor) -> Tensor:
        """Which entry of the codebook is nearest, (B, *axes) int64; of several equally near the first."""
        assert self.codebook is not None, "there are continuous latents only"
        flat = z.movedim(1, -1).reshape(-1, z.shape[1]).to(self.codebook.dtype)
        with torch.autocast(z.device.type, enabled=False):  # differences of large numbers
            far = self.codebook.square().sum(1) - 2.0 * flat @ self.codebook.T  # squared distances but for |z|^2
        return far.argmin(1).view(len(z), *z.shape[2:])

    def rounded(self, z: Tensor) -> Tensor:
        """z with every position replaced by the nearest entry of the codebook; z itself where there is none."""
        return z if self.codebook is None else self.codebook[self.codes(z)].movedim(-1, 1)


class Half(nn.Sequential):
    """The way down, or the way up: a convolution, residual blocks and changes of size, a norm, a convolution."""

    def __init__(self, config: AutoencoderConfig, axes: int, inputs: int, outputs: int, *, up: bool) -> None:
        sizes = [config.channels * mult for mult in config.mults]
        sizes = sizes[::-1] if up else sizes
        parts: list[nn.Module] = [conv(axes, inputs, sizes[0])]
        here = sizes[0]
        for level, size in enumerate(sizes):
            parts += [Upsample(axes, here) if up else Downsample(axes, here)] if level else []
            for _ in range(config.blocks):
                parts.append(ResidualBlock(axes, here, size, groups=config.groups, zero=True))
                here = size
        parts += [group_norm(here, config.groups), nn.SiLU(), conv(axes, here, outputs)]
        super().__init__(*parts)


class ConvolutionalAutoencoder(Autoencoder):
    """Our own, made by `AutoencoderConfig.build`. Reference: see `AutoencoderConfig`."""

    def __init__(self, config: AutoencoderConfig, shape: tuple[int, ...]) -> None:
        super().__init__(shape, config.latent, config.factor)
        self.config = config
        axes, continuous = len(shape) - 1, config.codes == 0
        self.encoder = Half(config, axes, shape[0], config.latent * (1 + continuous), up=False)
        self.decoder = Half(config, axes, config.latent, shape[0], up=True)
        self.codebook = None if continuous else nn.Parameter(torch.randn(config.codes, config.latent))

    @property
    def last(self) -> Tensor:
        """The weight of the decoder's last convolution."""
        weight = self.decoder[-1].weight
        assert isinstance(weight, Tensor)
        return weight

    def encoded(self, x: Tensor) -> Posterior:
        """q(z | x), its deviation kept within what matters."""
        h = self.encoder(x)
        h = h.to(torch.promote_types(h.dtype, torch.float32))  # whatever the convolutions ran in
        if self.codebook is not None:
            return Posterior(h, torch.full_like(h, -torch.inf))
        mean, log_std = h.chunk(2, dim=1)
        return Posterior(mean, log_std.clamp(LEAST, MOST))

    def decode(self, z: Tensor) -> Tensor:
        """z (B, latent, *axes / factor), rounded to the codebook where there is one -> x (B, C, *axes)."""
        return self.decoder(self.rounded(z))

    def described(self) -> dict[str, Any]:
        """The settings it was built by."""
        return to_dict(self.config)
