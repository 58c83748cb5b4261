"""What a step is fed: rows, conditions and noise as pure functions of (seed, step, pass, shard), so that a resumed run continues as if
never stopped, on as many processes as it then has.
"""

from __future__ import annotations

from copy import copy
from functools import lru_cache
from typing import NamedTuple
from weakref import ref

import numpy as np
import torch
from torch import Tensor

from ddpm.data.dataset import Dataset, Rows
from ddpm.denoiser import UNASKED, Codec
from ddpm.objective import Draws
from ddpm.random import generator
from ddpm.training.augment import draw, warp
from ddpm.training.tricks import Tricks


class Batch(NamedTuple):
    """One pass: which rows, the encoded samples (B, *D), their conditions, and all the randomness the loss needs."""

    rows: Rows
    x0: Tensor
    cond: dict[str, Tensor] | None
    draws: Draws
    again: bool = False  # whether the network is shown its first prediction: see `Tricks.self_condition`


@lru_cache(maxsize=4)
def _order(dataset: ref[Dataset], seed: int, epoch: int) -> Rows:
    there = dataset()
    assert there is not None  # the caller holds it
    return there.order(seed, epoch)


def rows_of(dataset: Dataset, seed: int, first: int, count: int) -> Rows:
    """Rows number first..first+count-1 of the endless sequence of shuffled epochs."""
    size = len(dataset.train_rows)
    places = np.arange(first, first + count)
    picked = [_order(ref(dataset), seed, int(epoch))[places[places // size == epoch] % size] for epoch in np.unique(places // size)]
    return dataset.train_rows[np.concatenate(picked)]


def conditions(cond: dict[str, np.ndarray], keys: frozenset[str], device: torch.device) -> dict[str, Tensor]:
    """The conditions the model can be asked for under, and what it is told besides, as tensors."""
    return {key: torch.from_numpy(value).to(device) for key, value in cond.items() if key in keys or key in UNASKED}


def asked_for(dataset: Dataset, rows: Rows, keys: frozenset[str], device: torch.device) -> dict[str, Tensor] | None:
    """What a model is asked for that draws samples such as the rows (B,): their conditions, and where they have entries."""
    cond = {key: value for key, value in dataset.conditions(rows).items() if key in keys or key == "mask"}
    return conditions(cond, keys, device) or None


def encoded(codec: Codec, raw: np.ndarray, device: torch.device, mask: np.ndarray | None = None) -> Tensor:
    """Data in the space diffused in, float32 on the device; encoded on the host, where float64 data can be. 0 where a mask says that
    nothing is there.
    """
    x0 = codec.encode(torch.from_numpy(raw)).to(torch.float32)
    return (x0 if mask is None else torch.where(torch.from_numpy(mask) != 0, x0, 0.0)).to(device)


class Feed:
    """Batches of a data set for a run: `batch(step, part, shard)` is one logical shard's share of the part-th pass of a step.

    A pass has `batch` rows whatever the number of shards; each shard has its own stream of noise, instants and dropped conditions.
    """

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
        shards: int = 1,
        tricks: Tricks | None = None,
    ) -> None:
        self.dataset, self.codec, self.keys, self.seed = dataset, codec, keys, seed
        self.size, self.accumulate, self.dropout, self.device, self.shards = batch, accumulate, dropout, device, shards
        self.tricks = tricks or Tricks()

    def on(self, device: torch.device) -> Feed:
        """The same feed, with its batches on another device."""
        other = copy(self)
        other.device = device
        return other

    def share(self, shard: int) -> tuple[int, int]:
        """First row and number of rows of a shard within a pass."""
        first, end = (k * self.size // self.shards for k in (shard, shard + 1))
        return first, end - first

    def batch(self, step: int, part: int, shard: int = 0) -> Batch:
        """Rows, augmentation, dropped conditions, instants and noise of one shard's share of a pass."""
        return self.augmented(self.drawn(step, part, shard))

    def drawn(self, step: int, part: int, shard: int = 0) -> Batch:
        """A `batch` as the host makes it: what `augmented` has still to change is told in the condition "augment"."""
        first, count = self.share(shard)
        rows = rows_of(self.dataset, self.seed, (step * self.accumulate + part) * self.size + first, count)
        again = self.tricks.self_condition and bool(generator(self.seed, "again", part, step).random() < 0.5)  # for all shards alike
        part = part * self.shards + shard  # of all streams of this step
        raw, values = self.dataset.batch(rows, generator(self.seed, "augment", part, step))
        x0 = encoded(self.codec, raw, self.device, values.get("mask"))
        cond = conditions(values, self.keys, self.device) or None
        if cond and self.dropout:
            hidden = generator(self.seed, "dropout", part, step).random(count) < self.dropout
            cond["null"] = torch.from_numpy(hidden).to(self.device)
        if self.tricks.augment:
            how = draw(generator(self.seed, "warp", part, step), count, self.tricks.augment)
            cond = {**(cond or {}), "augment": how.to(self.device)}
        return Batch(rows, x0, cond, self.draws(step, part, x0), again)

    def augmented(self, batch: Batch) -> Batch:
        """A drawn batch with its pictures changed as they are told to be: on an NVIDIA device there, else on the host."""
        if not self.tricks.augment:
            return batch
        assert batch.cond is not None
        where = batch.x0.device if batch.x0.device.type == "cuda" else torch.device("cpu")  # not every device has float64, or bicubic
        x0 = warp(batch.x0.to(where), batch.cond["augment"].to(where)).to(batch.x0.device)
        return batch._replace(x0=x0)

    def draws(self, step: int, part: int, like: Tensor) -> Draws:
        """The loss's randomness; part: the stream, one for every pass and shard of the step."""
        u = torch.from_numpy(generator(self.seed, "times", part, step).random(len(like)))
        noise = generator(self.seed, "noise", part, step)
        eps, z = (torch.from_numpy(noise.standard_normal(tuple(like.shape), dtype=np.float32)).to(self.device) for _ in range(2))
        return Draws(u, eps, z)
