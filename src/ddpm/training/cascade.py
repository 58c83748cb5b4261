"""Training the next stage of a cascade: batches that carry a smaller version of every sample, with noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.data.dataset import Dataset
from ddpm.data.fit import shrunk
from ddpm.denoiser import Base, Card, Codec, NetworkDenoiser, enlarged, factors, told
from ddpm.errors import ConfigError
from ddpm.training.config import CascadeSettings
from ddpm.training.state import load_with_card

UNLIKE = 3.0  # deviations between means, or times between deviations, from which data are taken to be in other units


def load_base(settings: CascadeSettings) -> Base | None:
    """The stage below that the settings name; None where they name none. CheckpointError, or ConfigError for a network of one's own."""
    if settings.base is None:
        return None
    denoiser, document = load_with_card(settings.base)
    about = {key: value for key, value in document.items() if key not in ("weights", "sha256", "step")}
    return Base(denoiser, about, settings.base_noise, settings.base_drawn)


def other_data(what: str, codec: Codec, card: Card) -> list[str]:
    """How data differ from those that a codec, and the model behind it, was made for: type, levels, or units."""
    found: list[str] = []
    if (codec.dtype, codec.bins) != (card.dtype, card.bins):
        kinds = (
            f"{kind}, levels {bins[0]:g} to {bins[1]:g}" if bins else kind
            for kind, bins in ((codec.dtype, codec.bins), (card.dtype, card.bins))
        )
        found.append(f"{what}: is of {next(kinds)}; {card.name} is {next(kinds)}; give its own data")
    own = Codec.of(card)
    if not found and card.bins is None and len(own.scale) == len(codec.scale):
        apart = max(abs(a - b) / s for a, b, s in zip(own.shift, codec.shift, codec.scale, strict=True))
        ratio = max(max(a / b, b / a) for a, b in zip(own.scale, codec.scale, strict=True))
        if apart > UNLIKE or ratio > UNLIKE:
            found.append(
                f"{what}: was made for values of about {codec.shift[0]:.4g} +- {codec.scale[0]:.4g}, {card.name} has {own.shift[0]:.4g} +- "
                f"{own.scale[0]:.4g} in the first channel; are the units the same?"
            )
    return found


def check_base(base: Base, card: Card) -> None:
    """ConfigError where a base's samples cannot be enlarged to the card's."""
    problems = [] if base.denoiser.codec is None else other_data("base", base.denoiser.codec, card)
    if factors(tuple(card.shape), base.shape) is None:
        problems.append(f"base: draws {base.shape}; {tuple(card.shape)} must be whole multiples of that, with as many channels")
    for name, there, here in (("classes", base.about["classes"], card.classes), ("vector", base.about["vector"], card.vector)):
        if there and here and list(there) != list(here):
            problems.append(f"base: its {name} are {', '.join(there)}; those of {card.name} are {', '.join(here)}, in this order")
    theirs = base.denoiser.text
    if theirs is not None and (card.tokens is None or card.tokens.identity != theirs.identity):
        problems.append(f"base: is told by {theirs.asked}; train this stage with the same encoder (--text, --reference)")
    if "image" in getattr(base.denoiser, "conditions", ()):
        problems.append("base: needs a condition image beside each sample, which a cascade does not hand down")
    if card.mask_channels:
        problems.append("base: samples of which entries are missing cannot be made smaller")
    if base.noise < base.drawn:
        problems.append(f"base_drawn: got {base.drawn:g}; in training there is noise up to base_noise = {base.noise:g}")
    if problems:
        raise ConfigError.of(problems)


@dataclass(frozen=True)
class Lowered:
    """The conditions "low" and "low_noise" of a batch of samples in the data's units; without a generator, of no noise."""

    denoiser: NetworkDenoiser  # whose codec, which may still change, they are encoded by

    def __call__(self, raw: NDArray[Any], generator: np.random.Generator | None) -> dict[str, NDArray[Any]]:
        """raw (B, *shape) -> low (B, *shape) float32 as encoded, and low_noise (B,)."""
        base = self.denoiser.base
        assert base is not None
        small = torch.from_numpy(shrunk(raw, base.shape[1:]))
        low = self.denoiser.codec.encode(enlarged(small, raw.shape[1:])).to(torch.float32)
        deviation, eps = np.zeros(len(raw), np.float32), np.zeros((1,) * raw.ndim, np.float32)
        if generator is not None:
            deviation = generator.uniform(0.0, base.noise, len(raw)).astype(np.float32)
            eps = generator.standard_normal(raw.shape, dtype=np.float32)
        return {key: value.numpy() for key, value in told(low, torch.from_numpy(deviation), torch.from_numpy(eps)).items()}


def with_low(dataset: Dataset, denoiser: NetworkDenoiser) -> Dataset:
    """The data set, its batches with what the denoiser's base would draw; as it is where there is no base."""
    return dataset if denoiser.base is None else replace(dataset, derived=Lowered(denoiser))
