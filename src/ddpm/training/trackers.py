"""Trackers: where the numbers and pictures of a run go beside metrics.jsonl, which is always written.

A tracker is any object with the four methods of `Tracker`. Two are here, chosen by name with `track`; one of your own is handed to
`ddpm.train(config, trackers=[...])`. A tracker that fails is reported once and left alone from then on: it never stops a run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ddpm.errors import ConfigError
from ddpm.training.checkpoints.storage import write_text

INSTALL = {"tensorboard": "pip install 'ddpm[tensorboard]'", "wandb": "pip install 'ddpm[wandb]'"}


class Tracker(Protocol):
    """What a run calls, from one thread of one process, in this order: `start` once, `write` and `picture` as things come, `close` once."""

    def start(self, config: Mapping[str, Any], run: Path, step: int) -> None:
        """The settings as nested plain values, the run folder, and the step the run goes on from: 0, or that of a checkpoint.

        Values of later steps that were written before a kill come again: drop what you hold beyond `step`, or skip what you have.
        """
        ...

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Values measured after `step` steps, by name; numbers, where a name does not say otherwise. A step may be written twice, with
        other names.
        """
        ...

    def picture(self, step: int, path: Path) -> None:
        """Samples drawn after `step` steps, a .png file of the run folder."""
        ...

    def close(self) -> None:
        """The run has ended, for whatever reason; also after another method of yours has raised."""
        ...


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those of the values that a curve can show."""
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


class TensorBoardTracker:
    """Event files in `run/tensorboard`; what an earlier process wrote beyond the step resumed from is purged when they are read."""

    def start(self, config: Mapping[str, Any], run: Path, step: int) -> None:
        """Open the event file."""
        from torch.utils.tensorboard import SummaryWriter

        self.board: Any = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """A scalar for each number."""
        for name, value in numbers(values).items():
            self.board.add_scalar(name, value, step)

    def picture(self, step: int, path: Path) -> None:
        """The picture under "samples"."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            self.board.add_image("samples", np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Write what is still held."""
        self.board.close()


class WandbTracker:
    """Weights & Biases: the run of the run folder's name in the project of `WANDB_PROJECT` ("ddpm" where that is not set).

    `run/wandb.json` keeps its id and the last step sent, so that a resumed run continues the same curves and sends no step twice.
    `WANDB_MODE=offline` keeps everything in `run/wandb` for `wandb sync`; all other `WANDB_*` variables mean what they always mean.
    """

    def start(self, config: Mapping[str, Any], run: Path, step: int) -> None:
        """Begin, or continue, the run at Weights & Biases."""
        import os
        import secrets

        import wandb  # pyright: ignore[reportMissingImports]

        self.module, self.path, self.sent = wandb, run / "wandb.json", -1
        held: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            held = json.loads(self.path.read_text(encoding="utf-8"))
        project = os.environ.get("WANDB_PROJECT", "ddpm")
        name = held.get("id") or secrets.token_hex(4)
        self.run: Any = wandb.init(id=name, resume="allow", project=project, name=run.resolve().name, dir=str(run), config=dict(config))
        self.already = self.sent = int(held.get("step", -1))
        self._keep()

    def _keep(self) -> None:
        write_text(self.path, json.dumps({"id": self.run.id, "step": self.sent}) + "\n")

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """The numbers, unless an earlier process has sent those of this step."""
        if step <= self.already:
            return
        self.run.log(numbers(values), step=step)
        if step > self.sent:
            self.sent = step
            self._keep()

    def picture(self, step: int, path: Path) -> None:
        """The picture under "samples"."""
        if step > self.already:
            self.run.log({"samples": self.module.Image(str(path))}, step=step)

    def close(self) -> None:
        """Finish the run there; it can be continued."""
        self.run.finish()


TRACKERS: dict[str, Callable[[], Tracker]] = {"tensorboard": TensorBoardTracker, "wandb": WandbTracker}


def installed(module: str) -> bool:
    """Whether a top-level module can be imported; a mere folder of that name, such as a run's own `tensorboard/`, does not count."""
    found = find_spec(module)
    return found is not None and found.origin is not None


def chosen(track: Sequence[str]) -> list[Tracker]:
    """The trackers of these names, not yet started; "auto" is TensorBoard where it is installed, "none" nothing.

    Raises ConfigError, with what to install, for one that was asked for by name and is not installed.
    """
    missing = [name for name in track if name in INSTALL and not installed(name)]
    if missing:
        raise ConfigError.of([f"track: {name} is not installed; {INSTALL[name]}, or leave it out" for name in missing])
    names = ["tensorboard" if name == "auto" else name for name in track if name != "auto" or installed("tensorboard")]
    return [TRACKERS[name]() for name in dict.fromkeys(names) if name != "none"]


class Tracking:
    """All trackers of a run as one: what a tracker raises is said once, and that tracker is closed and off from then on."""

    def __init__(self, trackers: Sequence[Tracker], say: Callable[[str], None]) -> None:
        self.live, self.say = list(trackers), say

    def _each(self, call: Callable[[Tracker], None], *, closing: bool = False) -> None:
        for tracker in list(self.live):
            try:
                call(tracker)
            except Exception as error:
                self.live.remove(tracker)
                reason = (str(error).splitlines() or [""])[0]
                self.say(f"{type(tracker).__name__} failed and is off from here: {type(error).__name__}: {reason}; metrics.jsonl goes on")
                if not closing:
                    with suppress(Exception):
                        tracker.close()  # it may hold a connection, or what it has been told so far

    def start(self, config: Mapping[str, Any], run: Path, step: int) -> None:
        """Start every tracker."""
        self._each(lambda tracker: tracker.start(config, run, step))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Hand the values on."""
        self._each(lambda tracker: tracker.write(step, values))

    def picture(self, step: int, path: Path) -> None:
        """Hand the picture on."""
        self._each(lambda tracker: tracker.picture(step, path))

    def close(self) -> None:
        """Close every tracker that still works."""
        self._each(lambda tracker: tracker.close(), closing=True)
