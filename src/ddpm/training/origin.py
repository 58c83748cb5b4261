"""What a run is distilled from: a model that the run's folder keeps a copy of, so that nothing that becomes of the other folder matters.

RUN/teacher/step-0000900/   model.safetensors, with config.json and state.json as they were at step 900; a run folder that can be loaded
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ddpm.config import to_dict
from ddpm.denoiser import Card, LatentCodec, NetworkDenoiser
from ddpm.errors import CheckpointError, ConfigError
from ddpm.training.autoencoder import Through
from ddpm.training.averaging.weights import weight_set
from ddpm.training.checkpoints import checkpoint, storage
from ddpm.training.checkpoints.checkpoint import Checkpoint
from ddpm.training.checkpoints.verified import candidates
from ddpm.training.same_data import CARD, read_card
from ddpm.training.state import load_with_card, model_tensors, open_run

FOLDER = "teacher"
ENTRY = "source"  # of a copy's state.json: which weights it holds, and their hash


class Origin(NamedTuple):
    """A checkpoint, the denoiser with the weights of it that are sampled from, and the card of its data."""

    saved: Checkpoint
    denoiser: NetworkDenoiser
    source: dict[str, Any]
    card: Card | None

    @property
    def through(self) -> Through | None:
        """The autoencoder in whose latents it diffuses, and the codec of the data; None for a model without."""
        codec = self.denoiser.codec
        return Through(codec.autoencoder, codec.pixels) if isinstance(codec, LatentCodec) else None


def find_origin(run: Path, teacher: str | Path, say: Callable[[str], None]) -> Origin:
    """What a run is distilled from: once it has a checkpoint its own copy, before that the teacher as its folder has it now.

    Raises: ConfigError for a run that was begun with another teacher; CheckpointError where there is no teacher, or no copy any more.
    """
    kept, begun = _kept(run), bool(candidates(run))
    if begun and kept is None:
        raise CheckpointError(
            f"{run} has checkpoints but no {FOLDER}/, the model it was distilled from; put that back, or use another --out"
        )
    try:
        named = open_run(teacher)
        chosen = weight_set(named)
    except CheckpointError as error:
        if kept is None:
            raise
        say(f"{error}; {run} goes on with its copy of it, {kept.path}")
        return _opened(kept)
    if not begun or kept is None:
        return _opened(named)
    then, now = kept.document("state"), named.document("state")
    if chosen.sha256 not in (then[ENTRY]["sha256"], kept.sha256("model")):
        if then.get("run") is None or then.get("run") != now.get("run"):
            raise ConfigError(f"teacher: {run} was begun with another run than {teacher}; name that one, or use another --out")
        say(
            f"{run} keeps the teacher it was begun with, {then[ENTRY]['weights']} of step {kept.step}; "
            f"{teacher} now has {chosen.told} of step {named.step}"
        )
    return _opened(kept)


def keep_origin(run: Path, origin: Origin) -> None:
    """Put the copy into the folder of a run that begins; nothing to do where that is what the origin was read from."""
    home = run / FOLDER
    before = _kept(run)
    if before is not None and before.path.resolve() == origin.saved.path.resolve():
        return
    home.mkdir(parents=True, exist_ok=True)
    for _, path in candidates(home):
        storage.discard(path)
    checkpoint.clean(home)
    if origin.card is not None:
        storage.write_text(home / CARD, json.dumps(to_dict(origin.card), indent=1) + "\n")
    documents = {"config": origin.saved.document("config"), "state": {**origin.saved.document("state"), ENTRY: origin.source}}
    checkpoint.save(home, origin.saved.step, {"model": model_tensors(origin.denoiser)}, documents)


def _kept(run: Path) -> Checkpoint | None:
    """The copy in a run's folder; ConfigError where a run of its own lies in its place."""
    saved = checkpoint.newest(run / FOLDER)
    if saved is not None and ENTRY not in saved.document("state"):
        raise ConfigError(f"out: {run / FOLDER} is a run, and would be replaced by a copy of the teacher; name another folder")
    return saved


def _opened(saved: Checkpoint) -> Origin:
    denoiser, document = load_with_card(saved.path)
    source = saved.document("state").get(ENTRY) or {"weights": document["weights"], "sha256": document["sha256"], "path": str(saved.path)}
    return Origin(saved, denoiser, source, read_card(saved.path.parent))
