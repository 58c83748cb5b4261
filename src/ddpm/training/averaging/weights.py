"""Which weights of a run are meant: the last ones, an average that was tracked, or the one chosen afterwards by `ddpm ema`.

RUN/ema/step-0000900/   ema-0.083.safetensors, ema.json and manifest.json: chosen for the checkpoint of step 900, and only for it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ddpm.errors import CheckpointError, ConfigError
from ddpm.training.averaging.ema import name_of
from ddpm.training.checkpoints import checkpoint
from ddpm.training.checkpoints.checkpoint import Checkpoint, RunLock
from ddpm.training.checkpoints.verified import candidates

FOLDER = "ema"


class WeightSet(NamedTuple):
    """One set of weights on the disk: its name, the verified folder that holds it, and what people are told it is."""

    name: str
    folder: Checkpoint
    told: str

    @property
    def sha256(self) -> str:
        """SHA-256 of the file, see `Checkpoint.sha256`."""
        return self.folder.sha256(self.name)

    def tensors(self) -> dict[str, Tensor]:
        """The weights, on the CPU. Raises: CheckpointError."""
        return self.folder.tensors(self.name)


def tracked(saved: Checkpoint) -> list[str]:
    """The names of the averages in a checkpoint, in the order in which the run's settings list them."""
    names = [name for name in saved.tensor_names if name.startswith("ema-")]
    if len(names) < 2:
        return names
    widths = saved.document("state")["config"]["ema"]
    order = [name_of(width) for width in (widths if isinstance(widths, list) else [widths])]
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def weight_set(saved: Checkpoint, weights: str = "ema", notice: Callable[[str], None] | None = None) -> WeightSet:
    """The weights of a checkpoint that a word means.

    "raw": the last ones. "ema": the average that `ddpm ema` chose for this checkpoint, else the first that was tracked. "ema-0.100": that
    one. A choice that later training has left behind is not used, which is told through `notice`. Raises ConfigError for another word,
    CheckpointError for a damaged choice.
    """
    names = tracked(saved)
    chosen = None if weights == "raw" else _chosen(saved, notice)
    if weights == "raw":
        return WeightSet("model", saved, "raw weights")
    if weights == "ema":
        return chosen or WeightSet(names[0] if names else "model", saved, "ema weights")
    if weights in names:
        return WeightSet(weights, saved, f"{weights} weights")
    if chosen and weights == chosen.name:
        return chosen
    allowed = ["ema", "raw", *names, *([chosen.name] if chosen and chosen.name not in names else [])]
    raise ConfigError(f"weights: got {weights!r}; allowed for {saved.path}: {', '.join(allowed)}. ddpm ema makes other lengths")


def _chosen(saved: Checkpoint, notice: Callable[[str], None] | None) -> WeightSet | None:
    home = saved.path.parent / FOLDER
    steps = dict(reversed(candidates(home)))
    if saved.step not in steps:
        if steps and saved.step > max(steps) and notice:
            notice(f"{home} was chosen at step {max(steps)}, these are step {saved.step}: not used; run ddpm ema again")
        return None
    advice = f"remove {home}, or run ddpm ema again"
    try:
        folder = checkpoint.open_checkpoint(steps[saved.step])
        document = folder.document("ema")
        name = name_of(float(document["length"]))
        if name not in folder.tensor_names:
            raise CheckpointError(f"{folder.path} has no {name}.safetensors")
        same = document["model"] == saved.sha256("model")
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{error}; {advice}") from error
    if not same:
        if notice:
            notice(f"{home} was chosen for other weights of step {saved.step}: not used; run ddpm ema again")
        return None
    return WeightSet(name, folder, f"{name} weights, chosen by ddpm ema")


def save_chosen(
    saved: Checkpoint, length: float, parameters: Mapping[str, Tensor], found: Mapping[str, Any], notice: Callable[[str], None]
) -> Path:
    """Make an average the one that is used with this checkpoint, in place of an earlier choice of the run.

    parameters: averaged; buffers are the checkpoint's own. found: what is to be remembered of the choice. Raises LockedError, DiskError.
    """
    document = {**found, "length": length, "step": saved.step, "model": saved.sha256("model")}
    home = saved.path.parent / FOLDER
    with RunLock(home):
        checkpoint.clean(home, notice)
        tensors = {name_of(length): {**saved.tensors("model"), **parameters}}
        return checkpoint.save(home, saved.step, tensors, {"ema": document}, keep=1, notice=notice)
