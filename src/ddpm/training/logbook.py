"""What a run says of itself: metrics.jsonl always, trackers beside it, a progress bar in a terminal and plain lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ddpm.errors import DiskError
from ddpm.training.checkpoints import checkpoint, storage
from ddpm.training.memory import peak_memory
from ddpm.training.trackers import Tracker, Tracking

METRICS = "metrics.jsonl"


def _row(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None for anything that no run wrote: another text, a step that is none, a value left empty."""
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    whole = isinstance(row, dict) and type(row.get("step")) is int and row["step"] >= 0 and None not in row.values()
    return row if whole else None


def _lines(run: Path) -> list[tuple[bytes, dict[str, Any] | None]]:
    path = run / METRICS
    return [(line, _row(line)) for line in path.read_bytes().split(b"\n") if line.strip()] if path.is_file() else []


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl in order; one torn by a kill, damaged or strange is passed over."""
    return [row for _, row in _lines(run) if row is not None]


class Logbook:
    """Context of a run's output. `quiet` writes files only; `trackers`, not yet started, are told the settings in `config`."""

    def __init__(
        self,
        run: Path,
        steps: int,
        start: int,
        *,
        quiet: bool = False,
        trackers: Sequence[Tracker] = (),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.run, self.steps, self.start, self.quiet = run, steps, start, quiet
        self._bar, self._task = self._progress()
        self._rewind(start)
        self._said = 0.0
        self.tracking = Tracking(trackers, self.say)
        self.tracking.start(config or {}, run, start)
        self.began = time.monotonic()

    def rewind(self, done: int, step: int) -> None:
        """Training goes back from step `done` to `step`: lines beyond it are dropped; the rate goes on counting all steps."""
        self._rewind(step)
        self.start -= done - step

    def _rewind(self, step: int) -> None:
        """Drop lines beyond the step that training goes on from, so that no step is logged twice."""
        path, lines = self.run / METRICS, _lines(self.run)
        bad = [number for number, (_, row) in enumerate(lines, 1) if row is None]
        if bad:
            where = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
            self.say(f"{path}: {len(bad)} damaged line{'s' if len(bad) > 1 else ''} left out (line {where})")
        kept = b"".join(line + b"\n" for line, row in lines if row is not None and row["step"] <= step)
        if lines and kept != path.read_bytes():
            storage.write_text(path, kept)

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

    def throughput(self, done: int, samples: int, device: str) -> dict[str, float]:
        """Steps and samples a second since this process began, `samples` of them a step, and the most memory it has held, in MiB."""
        rate = self.rate(done)
        memory = round(peak_memory(device) / 2**20, 1)
        return {"steps_per_second": round(rate, 3), "samples_per_second": round(rate * samples, 1), "peak_memory_mib": memory}

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
        """One line of metrics.jsonl, then the trackers. Raises: DiskError."""
        path = self.run / METRICS
        try:
            with path.open("a", encoding="utf-8") as file:  # not held open: what could not be written must not come up again at the end
                file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise DiskError(
                f"cannot write {path} at step {step}: {error.strerror or error}. {checkpoint.intact(self.run)}, later steps are lost. "
                "Free some space, then give the same command again"
            ) from error
        self.tracking.write(step, values)

    def picture(self, step: int, path: Path) -> None:
        """Samples drawn at a step: where they are a picture, which is then at `path`, it goes to the trackers."""
        if path.is_file():
            self.tracking.picture(step, path)

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
        self.tracking.close()


class Unlogged:
    """The logbook of a rank that keeps none: takes what a `Logbook` takes, writes and says nothing."""

    def __enter__(self) -> Unlogged:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def rate(self, done: int) -> float:
        """Nobody reads it."""
        return 0.0

    def throughput(self, done: int, samples: int, device: str) -> dict[str, float]:
        """Nobody reads it."""
        return {}

    def progress(self, done: int, loss: float | None) -> None:
        """Nothing."""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Nothing."""

    def picture(self, step: int, path: Path) -> None:
        """Nothing."""

    def rewind(self, done: int, step: int) -> None:
        """Nothing."""

    def say(self, message: str) -> None:
        """Nothing."""
