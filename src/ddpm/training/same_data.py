"""Whether the data of a resumed run are those it began with, and if not, by how much they differ."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ddpm.config import from_dict, to_dict
from ddpm.data.rows import Change, Keys
from ddpm.denoiser import Card
from ddpm.errors import CheckpointError, ConfigError, DataError, DiskError
from ddpm.training.checkpoints import storage
from ddpm.training.state import write_text

KEYS = "data_keys.npy"


def check_data(run: Path, card: Card, accept_change: bool, keys: Keys | None = None, say: Callable[[str], None] | None = None) -> None:
    """Write data_card.json, and data_keys.npy where the samples have keys, or refuse data that are not those the run began with.

    Raises: DataError saying how many samples were added, removed and changed, as far as the run kept their keys. What changed and is
    accepted is told through `say`.
    """
    path = run / "data_card.json"
    if path.is_file():
        try:
            before = from_dict(Card, json.loads(path.read_text(encoding="utf-8")), where=str(path))
        except (json.JSONDecodeError, ConfigError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        if before.fingerprint != card.fingerprint:
            counts = f"{before.count} samples of shape {before.shape} then, {card.count} of {card.shape} now, and another fingerprint"
            then = read_keys(run)
            if then is not None and keys is not None and len(then) == before.count and before.shape == card.shape:
                counts = f"{Change.between(then, keys)} ({before.count:,} then, {card.count:,} now), and another fingerprint"
            if not accept_change:
                advice = "Give the same data (they may move), another --out, or --accept-data-change"
                raise DataError(f"{card.name}: not the data this run began with: {counts}. {advice}")
            if say is not None:
                say(f"{card.name}: goes on with other data: {counts}")
        elif read_keys(run) is not None:
            keys = None  # there already
    write_keys(run, keys)
    write_text(path, json.dumps(to_dict(card), indent=1) + "\n")


def read_keys(run: Path) -> Keys | None:
    """The keys of the samples a run was trained on; None where none were kept, or they cannot be read."""
    try:
        keys = np.load(io.BytesIO((run / KEYS).read_bytes()), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return keys if keys.dtype == np.uint64 and keys.ndim == 1 else None


def write_keys(run: Path, keys: Keys | None) -> None:
    """Keep the keys, 8 bytes a sample, as a whole or not at all; with None nothing changes. Raises: DiskError."""
    if keys is None:
        return
    block = io.BytesIO()
    np.save(block, keys, allow_pickle=False)
    aside = storage.aside(run / KEYS)
    try:
        storage.write_file(aside, block.getvalue())
        os.replace(aside, run / KEYS)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise DiskError(f"cannot write {run / KEYS}: {error.strerror}") from error
