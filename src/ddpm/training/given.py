"""Training on what a sample is drawn from: batches that carry the condition image made of their own samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.data.dataset import Dataset
from ddpm.denoiser import Codec, Given
from ddpm.errors import ConfigError


@dataclass(frozen=True)
class Made:
    """The condition "image" of a batch of samples in the data's units."""

    given: Given
    codec: Codec

    def __call__(self, raw: NDArray[Any], generator: np.random.Generator | None) -> dict[str, NDArray[Any]]:
        """raw (B, *shape) -> image (B, channels, *axes) float32, made of raw as encoded."""
        return {"image": self.given(self.codec.encode(torch.from_numpy(raw)).to(torch.float32)).numpy()}


def with_given(dataset: Dataset, given: Given | None) -> Dataset:
    """The data set, its batches with what is given of their samples; as it is where nothing is, or it has been done.

    Raises: ConfigError for samples of another shape than the map takes, and for data that have a condition image already.
    """
    if given is None or (isinstance(dataset.derived, Made) and dataset.derived.given == given):
        return dataset
    card = dataset.card
    problems = [reason] if (reason := given.refusal(tuple(card.shape))) else []
    if card.image_channels:
        problems.append(f"given: {card.name} has a condition image already; leave --given out, or the image")
    if problems:
        raise ConfigError.of(problems)
    card = replace(card, image_channels=given.channels(tuple(card.shape)))
    return replace(dataset, card=card, derived=Made(given, Codec.of(card)))
