"""A long run watched from outside: memory, open files, files on disk and steps a second of CPU must stay what they were.

Run by `python tests/long_checks.py --soak MINUTES`.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from small_runs import metrics, start

WORDS = (
    "--network.channels 16 --steps 10000000 --batch 32 --threads 1 --checkpoint-every 100 --evaluate-every 50 --log-every 10 --preview 16 "
    "--ema 0.05,0.1 --snapshots 0 --track none"
)


class Seen(NamedTuple):
    """One look at the run."""

    seconds: float
    cpu: float  # seconds
    resident: float  # MiB
    handles: int
    files: int  # beside the pictures, one of which comes with every checkpoint
    step: int


def look(pid: int, run: Path, began: float) -> Seen:
    """What /proc and the run folder say now."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    resident = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")).split()[1]
    files = sum(1 for path in run.rglob("*") if path.is_file() and "samples" not in path.parts and ".tmp" not in str(path))
    rows = metrics(run) if (run / "metrics.jsonl").exists() else []
    return Seen(
        time.monotonic() - began,
        (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        int(resident) / 1024,
        len(os.listdir(f"/proc/{pid}/fd")),
        files,
        rows[-1]["step"] if rows else 0,
    )


def soak(folder: Path, minutes: float) -> dict[str, Any]:
    """Train the digits for so long; the second half after a tenth of warming up against the first."""
    run, began = folder / "run", time.monotonic()
    process = start("train", "--data", "digits", "--out", str(run), *WORDS.split())
    seen: list[Seen] = []
    try:
        while time.monotonic() - began < 60 * minutes:
            time.sleep(5)
            assert process.poll() is None, process.communicate()[1]
            seen.append(look(process.pid, run, began))
    finally:
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 143, said
    seen = [one for one in seen[len(seen) // 10 :] if one.step]
    halves = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    resident = [float(np.median([one.resident for one in half])) for half in halves]
    rates = [(half[-1].step - half[0].step) / (half[-1].cpu - half[0].cpu) for half in halves]
    figures = {
        "minutes": round(seen[-1].seconds / 60, 1),
        "steps": seen[-1].step,
        "resident_mib": [round(value, 1) for value in resident],
        "resident_most": round(max(one.resident for one in seen), 1),
        "open_files": [max(one.handles for one in half) for half in halves],
        "files": [max(one.files for one in half) for half in halves],
        "steps_per_cpu_second": [round(rate, 2) for rate in rates],
    }
    flat = resident[1] < resident[0] + max(8.0, 0.02 * resident[0])
    same = figures["open_files"][1] <= figures["open_files"][0] and figures["files"][1] <= figures["files"][0]
    return {**figures, "passed": flat and same and rates[1] > 0.75 * rates[0]}
