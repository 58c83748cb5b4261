"""Does a model use its condition? The held-out loss with each sample's own condition, with it hidden, and with another sample's.

A model that ignores its condition is the classic failure of conditional generation: the loss falls as it should and the samples look well,
but not like what was asked for. Labels in another order than the samples do it, and so does a condition that says nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.data.dataset import Dataset, Rows, evenly
from ddpm.denoiser import Denoiser
from ddpm.random import generator
from ddpm.training.distributed.world import World
from ddpm.training.held_out import HeldOut, Tell, Values, held_out_loss

CERTAIN = 3.0  # standard errors above which a difference is no chance
SAMPLES = 256
PAIRS = 20  # samples whose partner has another condition, below which nothing is said


class Gain(NamedTuple):
    """Another's condition less the own, in held-out |eps - eps_hat|^2 per entry.

    other: the loss with another's; gain: another's less own, mean over samples; error: its standard error over samples, whose noise is the
    same in both; pairs: of how many samples, those whose partner's condition is another.
    """

    other: float
    gain: float
    error: float
    pairs: int

    @property
    def enough(self) -> bool:
        """Whether there are so many pairs that something can be said."""
        return self.pairs >= PAIRS

    @property
    def used(self) -> bool:
        """Whether the own condition is better than another's by more than chance."""
        return self.gain > CERTAIN * self.error

    @property
    def share(self) -> float:
        """What of the loss with another's condition the own one saves."""
        return self.gain / self.other if self.other else 0.0

    @property
    def spread(self) -> float:
        """The standard error of `share`."""
        return self.error / self.other if self.other else 0.0


class ConditionUse(NamedTuple):
    """What conditions are worth: all exchanged together, altogether and by log-SNR bin, and each by itself, the others staying.

    own: the mean held-out loss with the own conditions; hidden: with none (None: the model knows no answer without). bins: own, hidden and
    another's. keys: "class", "image" and so on; without those that are the same for all samples.
    """

    own: float
    hidden: float | None
    all: Gain
    keys: dict[str, Gain]
    bins: dict[str, tuple[float, float | None, float]]

    @property
    def used(self) -> bool:
        """Whether every condition of which it can be told is used."""
        return not self.ignored and any(found.used for found in self.keys.values())

    @property
    def ignored(self) -> list[str]:
        """The conditions that make no difference though many samples differ in them."""
        return [key for key, found in self.keys.items() if found.enough and not found.used]

    @property
    def deaf(self) -> bool:
        """Whether the model uses its conditions, and answers the same, to the last bit, when it is told that they are hidden."""
        return self.hidden is not None and self.hidden == self.own and any(found.used for found in self.keys.values())

    def words(self, key: str) -> str:
        """What is to be said of a condition; where it is not used, what to do."""
        found = self.keys[key]
        if not found.enough:
            return f"too few rows differ in {key} to tell whether it is used: {found.pairs}, {PAIRS} are needed"
        if found.used:
            return f"uses its {key}: it saves {found.share:.2%} +- {found.spread:.2%} of the loss"
        return (
            f"the held-out loss is the same with each sample's own {key} as with another's ({found.share:+.2%} +- {found.spread:.2%} of "
            f"it): the model ignores its {key}. {ADVICE.get(key, ADVICE[''])}? If they do, train longer, hide conditions less "
            "(--cond-dropout), or let the loss weigh noisy levels more, where conditions count (--loss.weighting)"
        )

    def logged(self) -> dict[str, float]:
        """For the log: the share saved, altogether, by condition and by bin."""
        by_bin = {name: 1.0 - own / other for name, (own, _, other) in self.bins.items() if other > 0}
        return {
            "condition_gain": self.all.share,
            **{f"condition_gain/{key}": found.share for key, found in self.keys.items()},
            **{f"condition_gain/log_snr {name}": value for name, value in by_bin.items()},
        }


DEAF = (
    'the network answers the same when cond["null"] says that conditions are hidden: it does not know an answer without, so guidance has '
    'nothing to move away from. Let it read cond["null"] (B,), true where they are hidden, or train with --cond-dropout 0'
)
ADVICE = {
    "class": "Do the labels belong to their samples (ddpm inspect DATA)",
    "": "Do the conditions belong to their samples",
}


def condition_use(
    denoiser: Denoiser,
    dataset: Dataset,
    keys: frozenset[str],
    *,
    own: HeldOut | None = None,
    samples: int = SAMPLES,
    hidden: bool = False,
    autocast: torch.dtype | None = None,
    world: World | None = None,
) -> ConditionUse | None:
    """What conditions are worth on up to `samples` held-out samples, evenly among all, at the same noise throughout; None where there are
    none of either, or all have the same conditions.

    own: the loss with their own conditions, where it is known for the same samples. hidden: measured as well. A sample's partner is one
    with another condition, where there is one left; samples without count for nothing.
    """
    rows = evenly(dataset.held_rows, samples)  # data may be sorted
    if not keys or len(rows) < 2:
        return None
    dataset = replace(dataset, held_rows=rows)
    told = dataset.conditions(rows)
    chosen = [frozenset({key}) for key in sorted(keys)] + ([keys] if len(keys) > 1 else [])
    partners = {some: partner for some in chosen if len((partner := pairs([told[key] for key in sorted(some)]))[0])}
    if keys not in partners:
        return None
    options: dict[str, Any] = {"samples": samples, "autocast": autocast, "world": world}
    known = own if own is not None and set(own.rows.tolist()) == set(rows.tolist()) else None
    mine = known or held_out_loss(denoiser, dataset, keys, **options)
    if mine is None:
        return None

    def none(asked: Rows, values: Values) -> Values:
        return {**values, "null": np.ones(len(asked), dtype=bool)}

    without = held_out_loss(denoiser, dataset, keys, tell=none, **options) if hidden else None
    found: dict[frozenset[str], Gain] = {}
    bins: dict[str, float] = {}
    for some, (first, second) in partners.items():  # the last are all together
        foreign = held_out_loss(denoiser, dataset, keys, tell=_others(dataset, some, rows[first], rows[second]), **options)
        assert foreign is not None
        loss, bins = foreign.of(rows[first], denoiser.process)
        gaps = _by_row(foreign.each - mine.each, mine.rows)[torch.from_numpy(np.isin(np.unique(mine.rows), rows[first]))]
        error = gaps.std().item() / math.sqrt(len(gaps)) if len(gaps) > 1 else math.inf
        found[some] = Gain(loss, gaps.mean().item(), error, len(gaps))
    differ = rows[partners[keys][0]]
    own_loss, own_bins = mine.of(differ, denoiser.process)
    hidden_loss, hidden_bins = (None, None) if without is None else without.of(differ, denoiser.process)
    table = {name: (own_bins[name], None if hidden_bins is None else hidden_bins[name], other) for name, other in bins.items()}
    single = {next(iter(some)): gain for some, gain in found.items() if len(some) == 1}
    return ConditionUse(own_loss, hidden_loss, found[keys], single, table)


def pairs(told: Sequence[NDArray[Any]]) -> tuple[Rows, Rows]:
    """Places (n,) among the samples, and their partners, each a partner once at most, of another condition; as many as there can be.

    told: the conditions, (N, ...) each. Sorted by condition and moved on by half, or by as many as the commonest has, all but those of a
    condition that more than half have are with another.
    """
    count = len(told[0])
    marks = [b"".join(hashlib.sha256(np.ascontiguousarray(values[i]).tobytes()).digest() for values in told) for i in range(count)]
    _, which = np.unique(np.array(marks, dtype=object), return_inverse=True)
    draw = generator(0, "evaluate")
    sizes = np.bincount(which)
    order = draw.permutation(count)
    order = order[np.argsort(draw.permutation(len(sizes))[which[order]], kind="stable")]
    partner = np.roll(order, -max(int(sizes.max()), count // 2))
    differ = which[order] != which[partner]
    return order[differ], partner[differ]


def _others(dataset: Dataset, keys: frozenset[str], rows: Rows, others: Rows) -> Tell:
    """Tells rows these conditions of the others; the rest, and what is said beside them, stays."""
    partner = dict(zip(rows.tolist(), others.tolist(), strict=True))

    def tell(asked: Rows, values: Values) -> Values:
        there = dataset.conditions(np.array([partner.get(row, row) for row in asked.tolist()], dtype=np.int64))
        return {**values, **{key: there[key] for key in keys}}

    return tell


def _by_row(values: Tensor, rows: Rows) -> Tensor:
    """The mean of each row's values, in order of the rows."""
    _, which = np.unique(rows, return_inverse=True)
    place = torch.from_numpy(which)
    total = torch.zeros(int(place.max()) + 1, dtype=values.dtype).index_add(0, place, values)
    return total / torch.bincount(place)
