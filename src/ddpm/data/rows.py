"""A key for each sample, by which two readings of a data set are told apart in numbers: so many added, removed and changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ddpm.data.dataset import Named

MOST = 4_000_000  # samples; of more than these only the fingerprint is kept
Keys = NDArray[np.uint64]


def row_keys(digests: NDArray[Any], cond: Mapping[str, NDArray[Any]], classes: Sequence[str], texts: Named | None = None) -> Keys | None:
    """64 bits of SHA-256 over each sample's digest, its conditions, a class by its name, and its caption, ascending; None of more than
    `MOST` samples.
    """
    if len(digests) > MOST:
        return None
    keys = np.empty(len(digests), dtype=np.uint64)
    for i, digest in enumerate(digests):
        total = hashlib.sha256(digest.tobytes())
        for name in sorted(cond):
            value = cond[name][i]
            total.update(classes[int(value)].encode() if name == "class" else np.ascontiguousarray(value).tobytes())
        if texts is not None:
            total.update(texts[i].encode())
        keys[i] = int.from_bytes(total.digest()[:8], "little")
    return np.sort(keys)


class Change(NamedTuple):
    """How many samples a data set gained, lost, and holds with other content or labels than before."""

    added: int
    removed: int
    changed: int

    @classmethod
    def between(cls, before: Keys, now: Keys) -> Change:
        """The smallest such change: a sample that went and one that came are one that changed. Copies count as often as they are there."""
        known = np.unique(np.concatenate([before, now]))
        gain = _counts(now, known) - _counts(before, known)
        came, went = int(gain[gain > 0].sum()), int(-gain[gain < 0].sum())
        return cls(came - min(came, went), went - min(came, went), min(came, went))

    def __str__(self) -> str:
        if not any(self):
            return "the same samples in another order"
        return f"{self.added:,} samples added, {self.removed:,} removed, {self.changed:,} changed"


def _counts(keys: Keys, known: Keys) -> NDArray[np.int64]:
    return np.bincount(np.searchsorted(known, keys), minlength=len(known))
