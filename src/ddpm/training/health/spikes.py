"""Leaps of the training loss: seen by a robust rule, answered by going back to a checkpoint from before and on with other batches.

Chowdhery et al. 2022 did so by hand about twenty times: back to a checkpoint before the leap, and on without the batches seen before and
during it; the loss did not leap again there. The rule is deliberately slow to cry: it knows the last losses of this run only, and waits
until many in a row are far above all that they make likely. What it remembers is saved with the checkpoint, so that a resumed run decides
as an uninterrupted one would, and every rank decides the same, from the loss of all.

Reference: Chowdhery et al., 2022, arXiv:2204.02311, section 5.1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm.errors import CheckpointError, DiskError, NonFiniteError
from ddpm.training.averaging.snapshots import drop_after
from ddpm.training.checkpoints import checkpoint, storage
from ddpm.training.checkpoints.checkpoint import Checkpoint
from ddpm.training.checkpoints.verified import candidates, verify

if TYPE_CHECKING:
    from ddpm.training.logbook import Logbook, Unlogged
    from ddpm.training.trainer import Trainer

WINDOW = 200  # losses that say what is usual
LEAST = 50  # of them, before anything is called unusual
DEVIATIONS = 10.0  # robust standard deviations above the median
SHARE = 0.05  # of the median: a standard deviation counts as at least so much
LASTING = 10  # steps in a row


def _median(ordered: list[float]) -> float:
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])


class Spikes:
    """Watches the losses of a run; a leap is `LASTING` losses in a row above median + 10 max(1.4826 MAD, 0.05 |median|).

    Median and median absolute deviation are of the last 200 losses that were not above it, at least 50. 1.4826 MAD is the standard
    deviation where the losses are normal.
    """

    def __init__(self) -> None:
        self.usual: deque[float] = deque(maxlen=WINDOW)
        self.above, self.began = 0, 0  # losses in a row, and the step of the first
        self.returns, self.until = 0, 0  # roll-backs without having got past this step

    def lasting(self, loss: float, step: int) -> bool:
        """Take in the loss of a step; whether a leap has now lasted."""
        if len(self.usual) < LEAST or loss <= self._limit(loss):
            self.usual.append(loss)
            self.above = 0
            return False
        self.began = self.began if self.above else step
        self.above += 1
        return self.above >= LASTING

    def _limit(self, loss: float) -> float:
        middle = _median(sorted(self.usual))
        least = DEVIATIONS * SHARE * abs(middle)
        if loss <= middle + least:  # most losses are: the second median is saved
            return middle + least
        spread = 1.4826 * _median(sorted(abs(value - middle) for value in self.usual))
        return middle + max(least, DEVIATIONS * spread)

    def forget(self) -> None:
        """What was usual is so no longer."""
        self.usual.clear()
        self.above = 0

    def state(self) -> dict[str, Any]:
        """For state.json."""
        return {"usual": list(self.usual), "above": self.above, "began": self.began, "returns": self.returns, "until": self.until}

    def load(self, saved: Mapping[str, Any] | None) -> None:
        """Take over what a checkpoint remembers; older ones remember nothing."""
        saved = saved or {}
        self.usual = deque((float(value) for value in saved.get("usual", [])), maxlen=WINDOW)
        self.above, self.began, self.returns, self.until = (int(saved.get(key, 0)) for key in ("above", "began", "returns", "until"))


def _before(run: Path, began: int) -> Path | None:
    """The newest whole checkpoint from well before the leap, else from before it."""
    found: Path | None = None
    for step, path in candidates(run):
        if step >= began or (found is not None and step >= began - LASTING):
            continue
        try:
            found = verify(path).path
        except CheckpointError:
            continue
        if step < began - LASTING:
            break
    return found


def _remove_after(run: Path, step: int) -> None:
    """Remove the checkpoints after a step: they hold the leap; `latest` names the one gone back to."""
    try:
        storage.replace_text(run / checkpoint.LATEST, f"step-{step:07d}\n")
        for number, path in candidates(run):
            if number > step:
                storage.discard(path)
    except OSError as error:
        raise DiskError(f"cannot remove the checkpoints after step {step} in {run}: {error.strerror}") from error


def roll_back(trainer: Trainer, log: Logbook | Unlogged) -> bool:
    """Take the run back to a checkpoint from before the leap, and have it pass over the batches since; False where there is none.

    Called by all ranks. Raises NonFiniteError where the run has gone back `rollback` times without getting past the leap.
    """
    state, world, run = trainer.state, trainer.world, trainer.run
    spikes, step = state.spikes, state.step
    began, usual = spikes.began, _median(sorted(spikes.usual))
    path = world.on_main(lambda: _before(run, began))
    leap = f"the loss leapt at step {began} and stayed above {spikes._limit(float('inf')):.4g} (usual: {usual:.4g}) to step {step}"
    if path is None:
        log.say(f"{leap}; no checkpoint is older, so training goes on. Look at it; a smaller --lr may help")
        spikes.forget()
        return False
    returns = spikes.returns + 1 if began <= spikes.until else 1
    if returns > trainer.config.rollback:
        raise NonFiniteError(
            f"{leap}, after {returns - 1} roll-backs, each with other batches. {path.name} is good. Try a smaller --lr, "
            "a smaller --grad-clip or a longer --warmup, or --rollback 0 to train on regardless"
        )
    saved: Checkpoint = checkpoint.open_checkpoint(path)
    drawn = step + state.skipped
    world.on_main(lambda: _remove_after(run, saved.step))
    world.on_main(lambda: drop_after(run, saved.step, log.say))
    state.load(saved)
    state.skipped = drawn - saved.step
    spikes.returns, spikes.until = returns, max(step, began)
    log.say(f"{leap}; back to step {saved.step} (verified), {drawn - saved.step} batches passed over ({returns}/{trainer.config.rollback})")
    log.rewind(step, saved.step)
    log.write(saved.step, {"rolled_back_from": step})
    return True
