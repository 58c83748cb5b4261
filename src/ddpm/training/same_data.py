"""Whether the data of a resumed run are those it began with, and if not, by how much they differ."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ddpm.config import from_dict, to_dict
from ddpm.data.rows import Change, Keys
from ddpm.denoiser import Card
from ddpm.errors import CheckpointError, ConfigError, DataError
from ddpm.training.checkpoints import storage
from ddpm.training.checkpoints.verified import candidates

CARD = "data_card.json"
KEYS = "data_keys.npy"


def read_card(run: Path) -> Card | None:
    """What a run knows of the data it began with; None without data_card.json, CheckpointError where it is damaged."""
    path = run / CARD
    if not path.is_file():
        return None
    try:
        return from_dict(Card, json.loads(path.read_text(encoding="utf-8")), where=CARD)
    except (OSError, ValueError, RecursionError, AttributeError, TypeError, ConfigError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path} cannot be read: {reason}. The checkpoints are untouched: put the file back from a copy; or remove it, and the run "
            "goes on without comparing the data, so be sure that they are the same"
        ) from error


def check_data(run: Path, card: Card, accept_change: bool, keys: Keys | None = None, say: Callable[[str], None] | None = None) -> None:
    """Write data_card.json, and data_keys.npy where the samples have keys, or refuse data that are not those the run began with.

    Raises: DataError saying how many samples were added, removed and changed, as far as the run kept their keys. What changed and is
    accepted is told through `say`.
    """
    before = read_card(run)
    if before is None and say is not None and candidates(run):
        say(f"{run / CARD} is missing: whether the data are those the run began with cannot be compared; it is written anew")
    if before is not None:
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
    storage.write_text(run / CARD, json.dumps(to_dict(card), indent=1) + "\n")


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
    storage.write_text(run / KEYS, block.getvalue())
