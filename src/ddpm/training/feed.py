"""What a step is fed: rows, conditions and noise as pure functions of (seed, step, pass), so that a resumed run continues as if never
stopped.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.data.dataset import Dataset, Rows
from ddpm.denoiser import Codec
from ddpm.objective import Draws
from ddpm.random import generator


class Batch(NamedTuple):
    """One pass: which rows, the encoded samples (B, *D), their conditions, and all the randomness the loss needs."""

    rows: Rows
    x0: Tensor
    cond: dict[str, Tensor] | None
    draws: Draws


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, size: int) -> Rows:
    return generator(seed, "order", epoch).permutation(size)


def rows_of(dataset: Dataset, seed: int, first: int, count: int) -> Rows:
    """Rows number first..first+count-1 of the endless sequence of shuffled epochs."""
    size = len(dataset.train_rows)
    places = np.arange(first, first + count)
    picked = [_order(seed, int(epoch), size)[places[places // size == epoch] % size] for epoch in np.unique(places // size)]
    return dataset.train_rows[np.concatenate(picked)]


def conditions(cond: dict[str, np.ndarray], keys: frozenset[str], device: torch.device) -> dict[str, Tensor]:
    """The conditions the model knows, as tensors."""
    return {key: torch.from_numpy(value).to(device) for key, value in cond.items() if key in keys}


def encoded(codec: Codec, raw: np.ndarray, device: torch.device) -> Tensor:
    """Data in the space diffused in, float32 on the device; encoded on the host, where float64 data can be."""
    return codec.encode(torch.from_numpy(raw)).to(torch.float32).to(device)


class Feed:
    """Batches of a data set for a run: `batch(step, part)` is the part-th pass of a step."""

    def __init__(
        self,
        dataset: Dataset,
        codec: Codec,
        keys: frozenset[str],
        seed: int,
        batch: int,
        accumulate: int,
        dropout: float,
        device: torch.device,
    ) -> None:
        self.dataset, self.codec, self.keys, self.seed = dataset, codec, keys, seed
        self.size, self.accumulate, self.dropout, self.device = batch, accumulate, dropout, device

    def batch(self, step: int, part: int) -> Batch:
        """Rows, augmentation, dropped conditions, instants and noise of one pass."""
        rows = rows_of(self.dataset, self.seed, (step * self.accumulate + part) * self.size, self.size)
        raw, values = self.dataset.batch(rows, generator(self.seed, "augment", part, step))
        x0 = encoded(self.codec, raw, self.device)
        cond = conditions(values, self.keys, self.device) or None
        if cond and self.dropout:
            hidden = generator(self.seed, "dropout", part, step).random(self.size) < self.dropout
            cond["null"] = torch.from_numpy(hidden).to(self.device)
        return Batch(rows, x0, cond, self.draws(step, part, x0))

    def draws(self, step: int, part: int, like: Tensor) -> Draws:
        """The loss's randomness for one pass."""
        u = torch.from_numpy(generator(self.seed, "times", part, step).random(len(like)))
        noise = generator(self.seed, "noise", part, step)
        eps, z = (torch.from_numpy(noise.standard_normal(tuple(like.shape), dtype=np.float32)).to(self.device) for _ in range(2))
        return Draws(u, eps, z)
