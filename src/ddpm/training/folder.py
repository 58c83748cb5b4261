"""The run folder as a start finds it: whose it is, whether what it needs is there, and whether there is room for more."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ddpm.errors import CheckpointError, ConfigError, DiskError
from ddpm.training.checkpoints import checkpoint
from ddpm.training.checkpoints.checkpoint import RunLock
from ddpm.training.checkpoints.verified import candidates
from ddpm.training.config import TrainConfig
from ddpm.training.state import RunState

OURS = (
    "README.md",
    "config.toml",
    "metrics.jsonl",
    "loss.png",
    "samples",
    "snapshots",
    "ema",
    "tensorboard",
    "latest",
)  # what a run writes, beside checkpoints
LATER = ("latest", "README.md", "samples", "ema")  # of these, what is written only once a checkpoint has been
EARLY = ("metrics.jsonl", "snapshots")  # and what a run may leave that was cut short before


def _check_folder(run: Path) -> None:
    """ConfigError for a folder that is no run but holds files a run would replace."""
    if (run / "data_card.json").is_file() or any(run.glob("step-*")):
        return
    foreign = [name for name in OURS if (run / name).exists()]
    if foreign:
        raise ConfigError(
            f"out: {run} is not a run folder and holds {', '.join(foreign)}, which training would replace; name another folder, "
            "nothing was changed"
        )


def _check_checkpoints(run: Path, say: Callable[[str], None]) -> None:
    """CheckpointError for a run that has had checkpoints and holds none any more: beginning anew would remove what else is left of it."""
    if candidates(run):
        return
    proof = [name for name in LATER if (run / name).exists()]
    if proof:
        named = checkpoint.latest_name(run)
        raise CheckpointError(
            f"{run} has been trained (there is {', '.join(proof)}) but holds no checkpoint{f': {named} is missing' if named else ''}. "
            f"Put the step folders back to resume; or name another --out, or delete {run}, to begin anew. Nothing was changed"
        )
    if any((run / name).exists() for name in EARLY):
        say(f"{run}: an earlier start was cut short before its first checkpoint; this one begins at step 0 again")


def take(run: Path, stack: ExitStack, say: Callable[[str], None]) -> None:
    """Take the run folder for this process, and clear what an interrupted save left there.

    Raises ConfigError for the folder of something else, CheckpointError for a run whose checkpoints are gone, LockedError, DiskError.
    """
    _check_folder(run)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"cannot make the run folder {run}: {error.strerror}") from error
    stack.enter_context(RunLock(run))
    _check_checkpoints(run, say)
    checkpoint.clean(run, say)


def check_room(run: Path, config: TrainConfig, state: RunState, say: Callable[[str], None]) -> None:
    """DiskError where the next checkpoint of a run will not fit on its disk, said before the steps are done and not after them."""
    if state.step < config.steps:
        step = min(config.steps, state.step + config.checkpoint_every - state.step % config.checkpoint_every)
        checkpoint.check_room(run, step, state.nbytes(), say)


def turned_back(config: TrainConfig, before: int, step: int) -> str | None:
    """What a run that was to end at `before` is told of its learning rate, where another number of steps alters the decay; else None."""
    if config.optimizer.decay not in ("cosine", "linear") or before == config.steps or not 0 < step < config.steps:
        return None
    then, now = config.optimizer.lr_at(step - 1, before), config.optimizer.lr_at(step, config.steps)
    way = "back up" if now > then else "down"
    return (
        f"learning rate: {then:.3g} at step {step} of {before}, {now:.3g} at step {step + 1} of {config.steps}: "
        f"the {config.optimizer.decay} decay now ends at step {config.steps}, so it goes {way} (--lr and --decay change it)"
    )
