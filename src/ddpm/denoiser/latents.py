"""The codec of a model that diffuses in the latents of an autoencoder: samples in the data's own units on one side, normalised latents on
the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ddpm.denoiser.codec import Codec
from ddpm.denoiser.tiles import tiled

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ddpm.networks.autoencoder import Autoencoder, Posterior
else:
    from ddpm.lazy import torch


@dataclass(frozen=True, kw_only=True)
class LatentCodec(Codec):
    """x = (z - shift)/scale for each channel of the latents z = E[z | raw] of an autoencoder; `decode` goes back through its decoder.

    shift, scale: of the latents; dtype, bins, low, high: of the data, as what comes out is in their units. There are no bounds on a latent,
    and no bins. tile: entries of the latents along each axis that are decoded at a time, at least 8 (see `tiled`); None: all.

    Reference: Rombach et al., 2022, arXiv:2112.10752, section 3; scale measured from the data instead of a constant.
    """

    latent: Codec
    pixels: Codec
    autoencoder: Autoencoder = field(repr=False, compare=False)
    tile: int | None = None

    @classmethod
    def through(cls, autoencoder: Autoencoder, pixels: Codec, latent: Codec) -> LatentCodec:
        """data <-pixels-> what the autoencoder takes <-autoencoder-> latents <-latent-> x."""
        return cls(
            shift=latent.shift, scale=latent.scale, dtype=pixels.dtype, bins=pixels.bins, low=pixels.low, high=pixels.high,
            latent=latent, pixels=pixels, autoencoder=autoencoder,
        )  # fmt: skip

    def encode(self, raw: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Data (B, *shape) or latents of data, (B, *latent_shape) -> the space diffused in; the shapes tell which."""
        raw = torch.as_tensor(raw)
        if tuple(raw.shape[1:]) == self.autoencoder.latent_shape:
            return self.latent.encode(raw)
        return self.latent.encode(self.posterior(raw).mean.to(raw.device))

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """The space diffused in -> the data's units and dtype."""
        return self.pixels.decode(self.copies(self.latent.decode(x)))

    def posterior(self, raw: torch.Tensor) -> Posterior:
        """q(z | raw) for data (B, *shape), of latents in their own units, before they are normalised; a sample at a time, in float32 on the
        autoencoder's device.
        """
        x = self.pixels.encode(raw).to(torch.float32).to(self._device)
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            parts = [self.autoencoder.posterior(one[None]) for one in x]
        return type(parts[0])(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def copies(self, z: torch.Tensor) -> torch.Tensor:
        """What the decoder makes of latents in their own units, (B, *shape) as `pixels` encodes data; a sample at a time, in float32
        whatever the network ran in.
        """
        rows = z.to(torch.float32).to(self._device)
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            return torch.cat([self._decoded(one[None]).to(z.device) for one in rows])

    def _decoded(self, z: torch.Tensor) -> torch.Tensor:
        decode = self.autoencoder.decode
        return decode(z) if self.tile is None else tiled(decode, z, self.tile)

    @property
    def _device(self) -> torch.device:
        return next(iter((*self.autoencoder.buffers(), *self.autoencoder.parameters()))).device

    @property
    def discrete(self) -> bool:
        """False, whatever the data are."""
        return False

    def bounds(self, x: torch.Tensor) -> None:
        """None: a latent may be any number."""
        return

    def bin_width(self, x: torch.Tensor) -> None:
        """None: latents are continuous."""
        return
