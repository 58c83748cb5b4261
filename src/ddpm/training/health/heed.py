"""Does a model heed its condition? The held-out loss with each sample's own condition, with it hidden, and with another sample's.

A model that ignores its condition is the classic failure of conditional generation: the loss falls as it should and the samples look well,
but not like what was asked for. Labels in another order than the samples do it, and so does a condition that says nothing.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.data.dataset import Dataset, Rows, evenly
from ddpm.denoiser import Denoiser
from ddpm.random import generator
from ddpm.training.distributed.world import World
from ddpm.training.held_out import HeldOut, Values, binned, held_out_loss

CERTAIN = 3.0  # standard errors above which a difference is no chance
SAMPLES = 256


class Heed(NamedTuple):
    """Mean held-out |eps - eps_hat|^2 per entry with the own condition, with it hidden (None: the model knows no answer without), and with
    another sample's, altogether and by log-SNR bin.

    gain: another's less own, mean over samples; error: its standard error over samples, whose noise is the same in both.
    """

    own: float
    hidden: float | None
    other: float
    gain: float
    error: float
    bins: dict[str, tuple[float, float | None, float]]

    @property
    def heeds(self) -> bool:
        """Whether the own condition is better than another's by more than chance."""
        return self.gain > CERTAIN * self.error

    @property
    def share(self) -> float:
        """What of the loss with another's condition the own one saves."""
        return self.gain / self.other if self.other else 0.0

    @property
    def advice(self) -> str:
        """What is wrong where `heeds` is false, and what to do."""
        spread = self.error / self.other if self.other else 0.0
        return (
            f"the held-out loss is the same with each sample's own condition as with another's ({self.share:+.2%} +- {spread:.2%} of it): "
            "the model does not heed its conditions. Do the labels belong to their samples (ddpm inspect DATA)? If they do, train longer, "
            "hide them less (--cond-dropout), or let the loss weigh noisy levels more, where conditions count (--loss.weighting)"
        )

    def logged(self) -> dict[str, float]:
        """For the log: the share saved, altogether and by bin."""
        by_bin = {name: 1.0 - own / other for name, (own, _, other) in self.bins.items() if other > 0}
        return {"condition_gain": self.share, **{f"condition_gain/log_snr {name}": value for name, value in by_bin.items()}}


def heed(
    denoiser: Denoiser,
    dataset: Dataset,
    keys: frozenset[str],
    *,
    own: HeldOut | None = None,
    samples: int = SAMPLES,
    hidden: bool = False,
    autocast: torch.dtype | None = None,
    world: World | None = None,
) -> Heed | None:
    """What conditions are worth on up to `samples` held-out samples, evenly among all, at the same noise throughout; None where there are
    none of either, or all have the same conditions.

    own: the loss with their own conditions, where it is known for the same samples. hidden: measured as well.
    """
    rows = evenly(dataset.held_rows, samples)  # data may be sorted
    if not keys or len(rows) < 2:
        return None
    dataset = replace(dataset, held_rows=rows)
    shuffled = dict(zip(rows.tolist(), rows[generator(0, "evaluate").permutation(len(rows))].tolist(), strict=True))

    def other(asked: Rows, values: Values) -> Values:
        """The conditions of other rows; what is said beside them stays."""
        there = dataset.conditions(np.array([shuffled[row] for row in asked.tolist()], dtype=np.int64))
        return {**values, **{key: there[key] for key in keys}}

    def none(asked: Rows, values: Values) -> Values:
        return {**values, "null": np.ones(len(asked), dtype=bool)}

    options: dict[str, Any] = {"samples": samples, "autocast": autocast, "world": world}
    told = dataset.conditions(rows)
    partners = dataset.conditions(np.array([shuffled[row] for row in rows.tolist()], dtype=np.int64))
    if all(np.array_equal(told[key], partners[key]) for key in keys):
        return None
    known = own if own is not None and set(own.rows.tolist()) == set(rows.tolist()) else None
    mine = known or held_out_loss(denoiser, dataset, keys, **options)
    foreign = held_out_loss(denoiser, dataset, keys, tell=other, **options)
    without = held_out_loss(denoiser, dataset, keys, tell=none, **options) if hidden else None
    if mine is None or foreign is None:
        return None
    gaps = _by_row(foreign.each - mine.each, mine.rows)
    error = gaps.std().item() / math.sqrt(len(gaps))
    bins = {
        name: (mine.bins[name], None if without is None else without.bins[name], foreign.bins[name])
        for name in binned(denoiser.process.log_snr(mine.t))
    }
    return Heed(mine.loss, None if without is None else without.loss, foreign.loss, gaps.mean().item(), error, bins)


def _by_row(values: Tensor, rows: Rows) -> Tensor:
    """The mean of each row's values."""
    _, which = np.unique(rows, return_inverse=True)
    place = torch.from_numpy(which)
    total = torch.zeros(int(place.max()) + 1, dtype=values.dtype).index_add(0, place, values)
    return total / torch.bincount(place)
