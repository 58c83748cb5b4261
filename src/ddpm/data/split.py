"""The split: which rows are held out, the same for every run on the same data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# A constant of the package, not a setting: runs with different seeds must hold out the same rows, or their losses cannot be compared.
_KEY = 0x5D1F


def split(count: int, share: float, classes: NDArray[np.int64] | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Training rows and held-out rows, ascending, of `count` samples.

    round(count * share) rows are held out (at least one where share > 0 and there are two samples or more, and never all of them).
    Where class ids (N,) are given each class gives its share, fractions rounded so that the total is kept. The draw is a permutation by
    the counter-based generator Philox with a fixed key, so it depends on the count, the share and the classes only.
    """
    total = min(max(round(count * share), 1), count - 1) if share > 0 and count > 1 else 0
    # the raw numbers, because NumPy promises their sequence for ever, and not that of `permutation`
    order = np.argsort(np.random.Philox(key=_KEY).random_raw(count), kind="stable")
    if classes is None:
        held = order[:total]
    else:
        ids, sizes = np.unique(classes, return_counts=True)
        quota = sizes * (total / max(count, 1))
        take = np.floor(quota).astype(np.int64)
        most_left = np.argsort(take - quota, kind="stable")
        take[most_left[: total - int(take.sum())]] += 1
        by_class = classes[order]
        held = np.concatenate([order[by_class == i][:n] for i, n in zip(ids, take, strict=True)]) if total else order[:0]
    mask = np.zeros(count, dtype=bool)
    mask[held] = True
    rows = np.arange(count, dtype=np.int64)
    return rows[~mask], rows[mask]
