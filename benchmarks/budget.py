"""What benchmarks of so many minutes share: what their folder was begun with, how many steps fit, and what was used, also where a run was
killed and goes on.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddpm.training.checkpoints.storage import replace_text

SHORT = (16, 64)  # steps of the two runs whose difference is the time of a step; both are saved eight times where eighths are kept
SHARE = 0.97  # of the minutes: the time of a step is not known exactly
BEAT = 5.0  # seconds


def begun(path: Path, asked: Mapping[str, Any]) -> None:
    """Keep the settings, as JSON can hold them, that a folder is begun with; end where it was begun with others, so that results of
    different settings do not mix.
    """
    if not path.is_file():
        replace_text(path, json.dumps(asked) + "\n")
    before = json.loads(path.read_text(encoding="utf-8"))
    if wrong := [f"{key} {before.get(key)}, not {value}" for key, value in asked.items() if before.get(key) != value]:
        print(f"{path.parent}: begun with {', '.join(wrong)}; give the same, or another --folder", file=sys.stderr)
        sys.exit(2)


def fitting(run: Callable[[int], object], minutes: float) -> int:
    """How many steps the CPU minutes hold, all else that a run does included. run: makes one of so many steps, from nothing, which saves
    and measures as often as the whole one will.

    A run before the two that count pays what is paid once: modules, kernels, caches.
    """
    seconds: list[float] = []
    for steps in (SHORT[0], *SHORT):
        began = time.process_time()
        run(steps)
        seconds.append(time.process_time() - began)
    step = max((seconds[2] - seconds[1]) / (SHORT[1] - SHORT[0]), 1e-4)
    return max(SHORT[0], int((SHARE * 60.0 * minutes - (seconds[1] - SHORT[0] * step)) / step))


@contextmanager
def counted(path: Path) -> Iterator[None]:
    """Adds the CPU seconds used within to those a file holds, every few seconds, and so also where the process is killed."""
    before, began = used(path), time.process_time()
    with beating(lambda: replace_text(path, json.dumps(before + time.process_time() - began))):
        yield


@contextmanager
def beating(keep: Callable[[], None]) -> Iterator[None]:
    """Within it `keep` is called every few seconds, and once at the end."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            keep()

    watch = threading.Thread(target=beat, daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()
        keep()


def used(path: Path) -> float:
    """The CPU seconds a file holds."""
    return float(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else 0.0
