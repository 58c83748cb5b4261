"""What a run says of itself: metrics.jsonl always, TensorBoard when installed, a progress bar in a terminal and plain lines elsewhere."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl in order of step; a line torn by a kill is passed over."""
    path = run / "metrics.jsonl"
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


class Logbook:
    """Context of a run's output. `quiet` writes files only."""

    def __init__(self, run: Path, steps: int, start: int, *, quiet: bool = False) -> None:
        self.run, self.steps, self.start, self.quiet = run, steps, start, quiet
        self.began = time.monotonic()
        self._rewind()
        self._file = (run / "metrics.jsonl").open("a", encoding="utf-8")
        self._board = self._tensorboard()
        self._bar, self._task = self._progress()
        self._said = 0.0

    def _rewind(self) -> None:
        """Drop lines beyond the step that training resumes from, so that no step is logged twice."""
        path = self.run / "metrics.jsonl"
        if path.is_file():
            kept = [row for row in read_metrics(self.run) if row["step"] <= self.start]
            aside = path.with_suffix(".jsonl.tmp")
            aside.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
            os.replace(aside, path)

    def _tensorboard(self) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        return SummaryWriter(str(self.run / "tensorboard"), purge_step=self.start + 1)

    def _progress(self) -> tuple[Any, Any]:
        if self.quiet or not sys.stderr.isatty():
            return None, None
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=Console(stderr=True),
        )
        bar.start()
        return bar, bar.add_task("training", total=self.steps, completed=self.start, rate="", loss="")

    def rate(self, done: int) -> float:
        """Steps a second since this process began."""
        return (done - self.start) / max(time.monotonic() - self.began, 1e-9)

    def speed(self, done: int) -> str:
        """The rate as a person reads it: steps a second, or seconds a step."""
        rate = self.rate(done)
        return f"{rate:.1f} steps/s" if rate >= 1.0 else f"{1.0 / max(rate, 1e-9):.1f} s/step"

    def progress(self, done: int, loss: float | None) -> None:
        """After every step: move the bar; without a terminal a line every 10 seconds."""
        shown = "" if loss is None else f"loss {loss:.4f}"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, rate=self.speed(done), loss=shown)
        elif not self.quiet and (time.monotonic() - self._said > 10.0 or done == self.steps):
            self._said = time.monotonic()
            left = (self.steps - done) / max(self.rate(done), 1e-9)
            print(f"step {done}/{self.steps}  {self.speed(done)}  {left:.0f} s left  {shown}", file=sys.stderr, flush=True)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl, flushed; numbers to TensorBoard too."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, step)

    def say(self, message: str) -> None:
        """A line to the person, above the bar."""
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False)
        elif not self.quiet:
            print(message, file=sys.stderr, flush=True)

    def __enter__(self) -> Logbook:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._board is not None:
            self._board.close()
        self._file.close()
