"""Training the next stage of a cascade: batches that carry a smaller version of every sample, with noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.data.dataset import Dataset
from ddpm.data.fit import shrunk
from ddpm.denoiser import Base, Card, NetworkDenoiser, enlarged, factors, told
from ddpm.errors import ConfigError
from ddpm.training.config import CascadeSettings
from ddpm.training.state import load_with_card


def load_base(settings: CascadeSettings) -> Base | None:
    """The stage below that the settings name; None where they name none. CheckpointError, or ConfigError for a network of one's own."""
    if settings.base is None:
        return None
    denoiser, document = load_with_card(settings.base)
    about = {key: value for key, value in document.items() if key not in ("weights", "sha256", "step")}
    return Base(denoiser, about, settings.base_noise, settings.base_drawn)


def check_base(base: Base, card: Card) -> None:
    """ConfigError where a base's samples cannot be enlarged to the card's."""
    problems: list[str] = []
    if factors(tuple(card.shape), base.shape) is None:
        problems.append(f"base: draws {base.shape}; {tuple(card.shape)} must be whole multiples of that, with as many channels")
    codec = base.denoiser.codec
    if codec is not None and codec.dtype != card.dtype:
        problems.append(f"base: draws {codec.dtype}, {card.name} is {card.dtype}; a cascade is of the same data at two sizes")
    if "image" in getattr(base.denoiser, "conditions", ()):
        problems.append("base: needs a condition image beside each sample, which a cascade does not hand down")
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
