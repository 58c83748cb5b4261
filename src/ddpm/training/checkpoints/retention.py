"""Which checkpoints of a run are its best: told by the held-out loss each one's own state.json records, so nothing can go stale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ddpm.errors import CheckpointError
from ddpm.training.checkpoints.verified import Checkpoint, candidates, peek, to_stderr, verify

ENTRY = "held_out"  # in state.json


class Score(NamedTuple):
    """The held-out loss of a checkpoint's averaged weights (smaller is better), and on which samples it was measured."""

    loss: float
    of: str

    @classmethod
    def read(cls, state: dict[str, Any]) -> Score | None:
        """What a state.json says; None where nothing had been measured at that step, or by a version that did not record it."""
        match state.get(ENTRY):
            case {"loss": int() | float() as loss, "of": str() as of}:
                return cls(float(loss), of)
        return None


def ranked(run: Path) -> list[tuple[int, Path, Score]]:
    """Step, folder and score of the checkpoints that can be compared, lowest loss first, the later step first where two are equal.

    Compared are those measured on the same held-out samples as the newest that was measured. Folders whose state.json fails its SHA-256
    are passed over. Raises: CheckpointError where the run cannot be searched.
    """
    found: list[tuple[int, Path, Score]] = []
    for step, path in candidates(run):
        try:
            score = Score.read(peek(path, "state"))
        except CheckpointError:
            continue
        if score is not None and (not found or score.of == found[0][2].of):
            found.append((step, path, score))
    return sorted(found, key=lambda entry: (entry[2].loss, -entry[0]))


def best(run: Path, notice: Callable[[str], None] = to_stderr) -> Checkpoint:
    """The verified checkpoint of lowest held-out loss; a bad one is reported through `notice` and the next best used.

    Raises: CheckpointError where no checkpoint has a held-out loss, or none of those can be used.
    """
    refused: list[str] = []
    for step, path, score in ranked(run):
        try:
            found = verify(path)
        except CheckpointError as error:
            refused.append(f"step {step}: {error}")
            continue
        for line in refused:
            notice(f"{line}; using step {step}, held-out loss {score.loss:.6g}")
        return found
    reason = "".join(f"\n  {line}" for line in refused)
    advice = "samples must be held out (--holdout), and the run saved with a loss measured at the same step; name a step instead"
    raise CheckpointError(f"{run} holds no checkpoint that can be called best{reason or f': {advice}'}")
