"""What samples are scored against: the features of data rows, kept in the cache and keyed by everything they depend on.

Two scores compare only where `Protocol` is the same; a mismatch is refused with the parts that differ. Statistics of other tools (an .npz
with `mu` and `sigma`) are read too; they say nothing of the data behind them, so nothing can be checked but the length of the vectors.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.cache import folder
from ddpm.data.dataset import Dataset, Rows
from ddpm.errors import ConfigError, DataError
from ddpm.evaluation.cached import cached
from ddpm.evaluation.extractors.extractor import Extractor, digest
from ddpm.metrics import Moments

BATCH = 512


class Protocol(NamedTuple):
    """What a score depends on beside the samples."""

    data: str  # fingerprint of the samples as the run reads them: size, crop, kind and values; or of another tool's statistics
    rows: str  # which of them: "train" or "held out", and a digest of their numbers; of statistics nothing
    extractor: str  # name and identity

    def check(self, other: Protocol) -> None:
        """ConfigError with the parts in which two protocols differ."""
        apart = [f"{key}: {mine} and {theirs}" for key, mine, theirs in zip(self._fields, self, other, strict=True) if mine != theirs]
        if apart:
            raise ConfigError(f"protocol: these scores do not compare ({'; '.join(apart)}); score both with the same data and extractor")


@dataclass(frozen=True, eq=False)
class Reference:
    """The features (M, D) of data rows, float32."""

    protocol: Protocol
    features: Tensor

    @cached_property
    def moments(self) -> Moments:
        """Their mean and covariance, which count as exact, as in FID."""
        return Moments.of(self.features)


def features_of(dataset: Dataset, rows: Rows, extractor: Extractor, say: Callable[[str], None] = lambda _: None) -> Tensor:
    """Features of data rows, unaugmented, in their order."""
    found: list[Tensor] = []
    for first in range(0, len(rows), BATCH):
        raw, _ = dataset.batch(rows[first : first + BATCH])
        found.append(extractor.features(torch.from_numpy(raw)))
        if len(rows) > 20 * BATCH and first % (20 * BATCH) == 0:
            say(f"features of {first:,} of {len(rows):,} {dataset.card.name}")
    return torch.cat(found)


def reference(
    dataset: Dataset, kind: str, extractor: Extractor, say: Callable[[str], None] = lambda _: None, *, cache: Path | None = None
) -> Reference:
    """Of the rows "train" or "held out" of a data set: from the cache, or made now and kept there."""
    card, rows = dataset.card, {"train": dataset.train_rows, "held out": dataset.held_rows}[kind]
    if not len(rows):
        raise DataError(f"reference: {card.name} has no {kind} samples")
    protocol = Protocol(card.fingerprint, f"{kind} {digest(rows.tobytes())[:12]}", f"{extractor.name}-{extractor.identity}")
    if not card.fingerprint:
        return Reference(protocol, features_of(dataset, rows, extractor, say))
    path = (cache or folder()) / "statistics" / f"{digest(json.dumps(protocol), str(card.shape))}.safetensors"
    shapes, about = {"features": (len(rows), extractor.dim)}, {"protocol": json.dumps(protocol), "data": card.name}
    found = cached(path, shapes, lambda: {"features": features_of(dataset, rows, extractor, say).contiguous()}, say, about)
    return Reference(protocol, found["features"])


def foreign_statistics(path: Path, dim: int) -> Moments:
    """Mean and covariance from another tool's .npz with `mu` (D,) and `sigma` (D, D); ConfigError for anything else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            mu, sigma = (np.asarray(file[name]).astype(np.float64, casting="same_kind") for name in ("mu", "sigma"))
    except (OSError, ValueError, TypeError, KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise ConfigError(f"reference: {path} holds no mu and sigma ({error}); give an .npz with both") from error
    if mu.shape != (dim,) or sigma.shape != (dim, dim):
        raise ConfigError(f"reference: {path} has mu {mu.shape} and sigma {sigma.shape}; this extractor makes vectors of {dim} numbers")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ConfigError(f"reference: {path} has entries that are not finite")
    size = float(np.abs(sigma).max()) or 1.0
    if np.abs(sigma - sigma.T).max() > 1e-4 * size or np.linalg.eigvalsh((sigma + sigma.T) / 2)[0] < -1e-3 * size:
        raise ConfigError(f"reference: the sigma of {path} is no covariance: it must be symmetric, without negative eigenvalues")
    return Moments.given(torch.from_numpy(mu), torch.from_numpy(sigma))
