"""Whether samples drawn on the way are of the colours of the data: means, spreads and values of each channel, with their sampling error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddpm.data.dataset import Dataset, Rows, evenly

REFERENCE = 512  # rows of the data that samples are compared with
VALUES = 2**24  # numbers in all of them together
ENTRIES = 100_000  # of a channel, whose quantiles are compared
LEAST = 8  # samples, below which nothing is said
ERRORS = 5.0  # standard errors
SIZE = 0.05  # of the data's standard deviation
CHANNELS = 4  # more are logged by their worst
LEVELS = np.linspace(0.01, 0.99, 99)

Floats = NDArray[np.float64]


class Profile(NamedTuple):
    """Of N samples: mean of every sample's channel (N, C), its mean square about the reference's mean (N, C), quantiles (99, C)."""

    means: Floats
    squares: Floats
    quantiles: Floats


class Drift(NamedTuple):
    """How far samples are from the data: numbers for the log, and what is both certain and large enough to be told, by kind."""

    values: dict[str, float]
    words: dict[str, str]


def profile(samples: NDArray[np.generic], centre: Floats | None = None) -> tuple[Profile, Floats]:
    """The profile of samples (N, C, ...) in the data's units about `centre` (C,), by default their own mean, which is returned too."""
    flat = samples.reshape(*samples.shape[:2], -1)
    means = np.stack([one.mean(1, dtype=np.float64) for one in flat])  # a sample at a time: all in float64 may be too much
    about: Floats = means.mean(0) if centre is None else centre
    squares = np.stack([((one.astype(np.float64) - about[:, None]) ** 2).mean(1) for one in flat])
    total = len(flat) * flat.shape[2]
    some = np.arange(min(total, ENTRIES)) * 7919 % total  # a prime, so that all columns of a picture are met
    quantiles = np.quantile(flat[some // flat.shape[2], :, some % flat.shape[2]].astype(np.float64), LEVELS, axis=0)
    return Profile(means, squares, quantiles), about


def reference_rows(dataset: Dataset, classes: NDArray[np.int64] | None = None) -> Rows:
    """Up to 512 training rows (fewer where they are large), evenly spaced; with `classes` (N,) in the shares in which they occur there."""
    rows, most = dataset.train_rows, int(np.clip(VALUES // np.prod(dataset.card.shape), 32, REFERENCE))
    if classes is None:
        return evenly(rows, most)
    labels = dataset.cond["class"][rows]
    asked, counts = np.unique(classes[np.isin(classes, labels)], return_counts=True)
    present = [rows[labels == label] for label in asked]
    unit = min(min(len(found) / count for found, count in zip(present, counts, strict=True)), most / counts.sum())
    return np.concatenate([evenly(found, max(1, int(unit * count))) for found, count in zip(present, counts, strict=True)])


def errors(drawn: Floats, data: Floats) -> Floats:
    """Difference of two means over rows, (N, C) and (M, C), in standard errors, (C,); for small N and M as far out in the normal's tail as
    Student's t is in its own: z = (8d+1)/(8d+3) sqrt(d log(1 + t^2/d)) with Welch's d.

    Reference: Wallace, 1959, Bounds on normal approximations to Student's and the chi-square distributions; Welch, 1947.
    """
    parts = [values.var(0, ddof=1) / len(values) for values in (drawn, data)]
    total = np.maximum(parts[0] + parts[1], 1e-300)
    d = total**2 / np.maximum(sum(part**2 / (len(v) - 1) for part, v in zip(parts, (drawn, data), strict=True)), 1e-300)
    gap = drawn.mean(0) - data.mean(0)
    z: Floats = np.sign(gap) * (8 * d + 1) / (8 * d + 3) * np.sqrt(d * np.log1p(gap**2 / total / d))
    return z


def drift(drawn: NDArray[np.generic], data: Profile, centre: Floats) -> Drift:
    """Samples (N, C, ...) against the data's profile, in units of the data's standard deviation.

    Per channel the shift of the mean, the change of the spread, and the mean distance of the quantiles (Wasserstein-1). Told are shifts and
    changes beyond 5 standard errors and 5 % (10 % for the spread).
    """
    wrong = ~np.isfinite(drawn.reshape(len(drawn), -1).astype(np.float64)).all(1)
    if wrong.any():
        return Drift({"drift/not_finite": float(wrong.sum())}, {"samples": f"{wrong.sum()} of {len(drawn)} samples are not finite"})
    if len(drawn) < 2 or len(data.means) < 2:
        return Drift({}, {})
    found, _ = profile(drawn, centre)
    std = np.sqrt(data.squares.mean(0))
    unit = np.where(std > 0, std, 1.0)
    shift = (found.means.mean(0) - data.means.mean(0)) / unit
    spread = np.sqrt(np.maximum(found.squares.mean(0) - (found.means.mean(0) - centre) ** 2, 0.0)) / unit - (std > 0)
    quantiles = np.abs(found.quantiles - data.quantiles).mean(0) / unit
    values = {**_named("drift/mean", shift), **_named("drift/std", spread), **_named("drift/quantiles", quantiles)}
    words: dict[str, str] = {}
    if len(drawn) >= LEAST:
        words |= _told("mean", shift, errors(found.means, data.means), SIZE, ("below the data's mean", "above the data's mean"))
        own = found.squares - (found.means.mean(0) - centre) ** 2  # about the samples' own mean: a shift is told once
        words |= _told("std", spread, errors(own, data.squares), 2 * SIZE, ("less spread than the data", "more spread than the data"))
    return Drift(values, words)


def _named(name: str, values: Sequence[float] | Floats) -> dict[str, float]:
    """One number a channel; of many channels the one farthest from 0."""
    if len(values) > CHANNELS:
        return {f"{name}/worst": float(values[int(np.abs(values).argmax())])}
    return {f"{name}/channel {k}": round(float(value), 6) for k, value in enumerate(values)}


def _told(kind: str, sizes: Floats, z: Floats, least: float, how: tuple[str, str]) -> dict[str, str]:
    """In words, the channels where the size and the number of standard errors both say so."""
    where = np.flatnonzero((np.abs(z) > ERRORS) & (np.abs(sizes) > least))
    lines = [
        f"channel {k}: {abs(sizes[k]):.0%} of a standard deviation {how[int(sizes[k] > 0)]} ({abs(z[k]):.1f} standard errors)"
        for k in where[:4]
    ]
    if len(where) > 4:
        lines.append(f"and {len(where) - 4} more channels")
    return {kind: ", ".join(lines)} if lines else {}
