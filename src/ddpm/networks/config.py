"""Settings of the networks: frozen, checked when made, and readable without importing torch.

`config.build(shape, out, cond)` makes the module. A network is called as `network(x, c_noise, cond)` with x (B, C, *axes),
c_noise (B,) and cond a mapping with the keys that `CondSpec` names; it returns (B, out * C, *axes) and knows nothing of diffusion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ddpm.config import check, setting
from ddpm.errors import ConfigError

if TYPE_CHECKING:
    from ddpm.networks.autoencoder import ConvolutionalAutoencoder
    from ddpm.networks.mlp import MLP
    from ddpm.networks.unet import UNet


@dataclass(frozen=True, kw_only=True)
class CondSpec:
    """What a network is conditioned on; 0 means "not at all".

    The mapping handed to the network then holds `class` (B,) int64 in 0..classes-1, `vector` (B, vector) float, `image`
    (B, image, *axes) float, `tokens` (B, L, tokens) float, of any L, where a token of zeros is none, and optionally `null` (B,) bool: where
    true, the sample is unconditional (the class and the vector are replaced by learned null embeddings, the image by zeros, the tokens by
    none). Where `null` is given, the other keys may be left out.
    `x0` (B, C, *axes) and `augment` (B, augment) float may always be left out, which is the same as zeros, and `guidance` (B,) float, which
    is the same as ones; `null` leaves them as they are: they do not say what is asked for. Nor do `low` (B, C, *axes) and `low_noise` (B,),
    a sample enlarged from fewer entries and the noise that was laid on it, nor `mask` (B, mask, *axes), true where an entry is there.
    """

    classes: int = setting(0, "classes; the class id is 0..classes-1", low=0, high=1_000_000)
    vector: int = setting(0, "entries of the vector", low=0, high=1_000_000)
    image: int = setting(0, "channels of the image or field laid beside the input", low=0, high=65_536)
    tokens: int = setting(0, "entries of a token, of a caption or a reference picture", low=0, high=1_000_000)
    x0: bool = setting(False, "an earlier prediction of the data is laid beside the input")
    augment: int = setting(0, "entries of the vector that says how the sample was augmented", low=0, high=1000)
    guidance: bool = setting(False, "the scale of guidance whose result is imitated")
    low: bool = setting(False, "a smaller sample, enlarged and with noise, is laid beside the input")
    mask: int = setting(0, "channels of the mask that says which entries are there", low=0, high=65_536)

    def beside(self, channels: int) -> int:
        """Channels laid beside an input of so many."""
        return self.image + channels * (self.x0 + self.low) + self.mask

    @property
    def keys(self) -> tuple[str, ...]:
        """The conditions a sample can be asked for under: of class, vector, image, tokens."""
        sizes = {"class": self.classes, "vector": self.vector, "image": self.image, "tokens": self.tokens}
        return tuple(key for key, size in sizes.items() if size)

    def problems(self) -> list[str]:
        """Every value out of range, one sentence each; empty when all is well."""
        return [f"cond.{line}" for line in _refusals(self)]


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """A U-Net for pictures, signals and volumes; the defaults are the CIFAR-10 network of Ho et al. (35,746,307 parameters at 3x32x32).

    Sizes must be divisible by 2^(levels - 1), levels = len(mults), unless `fit` pads them. `build` raises ConfigError, listing everything
    wrong at once.

    Reference: Ho, Jain, Abbeel 2020, arXiv 2006.11239, appendix B; `film`, `heads` and `resample="block"`: Dhariwal, Nichol 2021,
    arXiv 2105.05233, section 3.
    """

    channels: int = setting(128, "channels of the first level; an even number", low=4, high=65_536)
    mults: tuple[int, ...] = setting(
        (1, 2, 2, 2), "channels of each level, as multiples of the first's; each further level halves the size", low=1
    )
    blocks: int = setting(2, "residual blocks of a level on the way down (one more on the way up)", low=1, high=256)
    attention: tuple[int, ...] = setting(
        (1,), "levels with self-attention, and to tokens where there are any, 0 is the full size; the middle always has it", low=0
    )
    heads: int = setting(1, "attention heads", low=1)
    head_channels: int = setting(0, "channels of an attention head; 0: as many as `heads` gives", low=0)
    film: bool = setting(False, "condition by scale and shift after the second norm instead of by addition")
    resample: Literal["conv", "block"] = setting("conv", "change the size by one convolution or by a residual block")
    dropout: float = setting(0.1, "share of activations dropped before each block's last convolution", low=0.0, below=1.0)
    zero_init: bool = setting(True, "start the last layer of each branch, and the output, at exactly zero")
    groups: int = setting(32, "groups of a group norm; fewer where needed to divide the channels, 4 or more in each", low=1)
    padding: Literal["zeros", "periodic"] = setting(
        "zeros", "what convolutions see beyond the edges: zeros; or, along the last axis, its other end, as longitudes go round the Earth"
    )
    fit: bool = setting(False, "pad sizes that do not halve evenly by the values at their edges, and cut the result to size again")

    def problems(self, shape: Sequence[int] | None = None) -> list[str]:
        """Every value out of range, one sentence each, and where `shape` (C, *axes) is given, whether it fits; empty when all is well."""
        if found := _refusals(self):
            return found
        if self.channels % 2:
            found.append(f"channels: got {self.channels}; the time embedding needs an even number")
        if not self.mults:
            found.append("mults: got none; give one whole number for each level, such as 1,2,2,2")
        for level in self.attention:
            if level >= len(self.mults):
                found.append(f"attention: got level {level}; allowed 0..{len(self.mults) - 1}, as mults names {len(self.mults)} levels")
        found += [] if found else self._head_problems()
        return found if shape is None or found else self._shape_problems(shape)

    def _head_problems(self) -> list[str]:
        name, size = ("head_channels", self.head_channels) if self.head_channels else ("heads", self.heads)
        levels = sorted({*self.attention, len(self.mults) - 1})
        return [
            f"{name}: got {size}; it must divide the {self.channels * self.mults[level]} channels of level {level}, which has attention"
            for level in levels
            if self.channels * self.mults[level] % size
        ]

    def _shape_problems(self, shape: Sequence[int]) -> list[str]:
        if len(shape) not in (2, 3, 4) or min(shape) < 1:
            return [f"shape: UNet got {tuple(shape)}; it takes (C, L), (C, H, W) or (C, T, H, W), all >= 1. For a vector (F,) use MLP"]
        factor = 2 ** (len(self.mults) - 1)
        wrong = [f"{size} (nearest: {nearest_sizes(size, factor)})" for size in self.whole(shape[1:]) if size % factor]
        if not wrong:
            return []
        if self.fit:
            return [f"shape: the last axis of {tuple(shape)} is a circle, which cannot be padded to a multiple of {factor}: {wrong[0]}"]
        return [
            f"shape: UNet with {len(self.mults)} levels needs sizes divisible by {factor}; got {tuple(shape)}, "
            f"where not divisible: {', '.join(wrong)}. Resize or pad the data, or give `mults` fewer levels"
        ]

    def whole(self, sizes: Sequence[int]) -> Sequence[int]:
        """Those of the sizes (axes) that must be divisible by the down-sampling: all; with `fit` only that of a circle."""
        return sizes if not self.fit else sizes[-1:] if self.padding == "periodic" else ()

    def build(self, shape: Sequence[int], out: int = 1, cond: CondSpec | None = None) -> UNet:
        """The network for samples of `shape` (C, *axes), returning (B, out * C, *axes); raises ConfigError naming all that does not fit."""
        cond = cond or CondSpec()
        if found := self.problems(shape) + cond.problems() + ([] if out >= 1 else [f"out: got {out}; allowed whole numbers >= 1"]):
            raise ConfigError.of(found)
        from ddpm.networks.unet import UNet

        return UNet(self, tuple(shape), out, cond)


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """A residual network for vectors (F,); every block is scaled and shifted by the embedding of noise level and conditions.

    Reference: Perez et al. 2018, arXiv 1709.07871 (scale and shift); He et al. 2016, arXiv 1603.05027 (blocks that start with the norm).
    """

    width: int = setting(256, "hidden units; an even number", low=4, high=1_000_000)
    depth: int = setting(4, "residual blocks, two layers each", low=1, high=256)
    dropout: float = setting(0.0, "share of hidden units dropped before each block's last layer", low=0.0, below=1.0)

    def problems(self, shape: Sequence[int] | None = None) -> list[str]:
        """Every value out of range, one sentence each, and where `shape` (F,) is given, whether it fits; empty when all is well."""
        if found := _refusals(self):
            return found
        if self.width % 2:
            found.append(f"width: got {self.width}; the time embedding needs an even number")
        if shape is not None and (len(shape) != 1 or shape[0] < 1):
            found.append(f"shape: MLP got {tuple(shape)}; it takes vectors (F,), F >= 1. For (C, L), (C, H, W) or (C, T, H, W) use UNet")
        return found

    def build(self, shape: Sequence[int], out: int = 1, cond: CondSpec | None = None) -> MLP:
        """The network for samples of `shape` (F,), returning (B, out * F); raises ConfigError naming all that does not fit."""
        cond = cond or CondSpec()
        if found := self.problems(shape) + cond.problems() + ([] if out >= 1 else [f"out: got {out}; allowed whole numbers >= 1"]):
            raise ConfigError.of(found)
        from ddpm.networks.mlp import MLP

        return MLP(self, tuple(shape), out, cond)


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """A convolutional encoder to latents 2^(levels - 1) times smaller along each axis, and a decoder back; no attention, so any size does.

    Reference: Rombach et al., 2022, arXiv:2112.10752, section 3.1 and appendix G; `codes`: van den Oord et al., 2017, arXiv:1711.00937.
    """

    channels: int = setting(32, "channels of the first level", low=4, high=65_536)
    mults: tuple[int, ...] = setting(
        (1, 2, 4), "channels of each level, as multiples of the first's; each further level halves the size", low=1
    )
    blocks: int = setting(1, "residual blocks of a level", low=1, high=256)
    latent: int = setting(4, "channels of the latents", low=1, high=65_536)
    codes: int = setting(0, "entries of the codebook that latents are rounded to; 0: continuous latents", low=0, high=1_000_000)
    groups: int = setting(32, "groups of a group norm; fewer where needed to divide the channels, 4 or more in each", low=1)

    @property
    def factor(self) -> int:
        """How many times smaller the latents are along each axis."""
        return 2 ** (len(self.mults) - 1)

    def problems(self, shape: Sequence[int] | None = None) -> list[str]:
        """Every value out of range, one sentence each, and where `shape` (C, *axes) is given, whether it fits; empty when all is well."""
        found = _refusals(self)
        if not found and len(self.mults) < 2:
            found.append(f"mults: got {self.mults}; give one whole number for each level, two or more, such as 1,2,4")
        if not found and self.codes == 1:
            found.append("codes: got 1; a codebook needs 2 or more, 0 is none")
        if found or shape is None:
            return found
        if len(shape) not in (2, 3, 4) or min(shape) < 1:
            return [f"shape: got {tuple(shape)}; an autoencoder takes (C, L), (C, H, W) or (C, T, H, W), all >= 1"]
        wrong = [f"{size} (nearest: {nearest_sizes(size, self.factor)})" for size in shape[1:] if size % self.factor]
        return (
            [f"shape: {len(self.mults)} levels need sizes divisible by {self.factor}; not divisible: {', '.join(wrong)}"] if wrong else []
        )

    def build(self, shape: Sequence[int]) -> ConvolutionalAutoencoder:
        """The module for samples of `shape` (C, *axes); raises ConfigError naming all that does not fit."""
        if found := self.problems(shape):
            raise ConfigError.of(found)
        from ddpm.networks.autoencoder import ConvolutionalAutoencoder

        return ConvolutionalAutoencoder(self, tuple(shape))


def nearest_sizes(size: int, factor: int) -> str:
    """The nearest multiples of `factor` below and above `size`, in words: "24 or 32"; 0 is no size."""
    below = size // factor * factor
    return f"{below} or {below + factor}" if below else f"{below + factor}"


def _refusals(config: Any) -> list[str]:
    """What breaks a field's type or range, a sentence each."""
    try:
        check(config)
    except ConfigError as error:
        return str(error).splitlines()
    return []
