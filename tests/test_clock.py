"""A wall clock that is wrong: set back a day and on a year while a run trains, it changes no weight, no choice and no waiting."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from ddpm.cli import main
from small_runs import digests, environment, held, metrics

DAY, YEAR = 86_400, 365 * 86_400

JUMPING = """
import datetime, os, sys, time
from pathlib import Path
from ddpm.training.checkpoints import storage
jumps = [int(text) for text in os.environ["JUMPS"].split(",")]
now, real, saves = [0], time.time, [0]
time.time = lambda: real() + now[0]
time.time_ns = lambda: int(time.time() * 1e9)
class Moved(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)
datetime.datetime = Moved
run = Path(sys.argv[sys.argv.index("--out") + 1])
def boundary(name):
    if name != "fsync run":
        return
    folder = max(run.glob("step-???????"))  # what the file system notes follows the clock
    for path in (*folder.iterdir(), folder):
        os.utime(path, (time.time(), time.time()))
    now[0] = jumps[saves[0] % len(jumps)]
    saves[0] += 1
storage.boundary = boundary
from ddpm.cli import main
words = sys.argv[1:]
code = main(words)
words[words.index("--steps") + 1] = "24"
code = code or main(words)
assert saves[0] == 6, saves
sys.exit(code)
"""


def words(data: Path, out: Path, steps: int) -> list[str]:
    model = [
        "--network",
        "mlp-config",
        "--network.width",
        "8",
        "--network.depth",
        "1",
        "--preview",
        "2",
        "--threads",
        "1",
        "--log-every",
        "2",
    ]
    return ["train", "--data", str(data), "--out", str(out), "--steps", str(steps), "--batch", "4", "--checkpoint-every", "4", *model]


def test_a_clock_that_jumps(tmp_path: Path) -> None:
    np.save(tmp_path / "table.npy", np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32))
    jumping, straight = tmp_path / "jumping", tmp_path / "straight"
    code = [sys.executable, "-c", JUMPING, *words(tmp_path / "table.npy", jumping, 12)]
    jumps = f"{-DAY},{YEAR},{-DAY},{10 * YEAR},{-40 * YEAR},{-DAY}"
    done = subprocess.run(code, capture_output=True, text=True, check=False, env=environment(JUMPS=jumps))
    assert done.returncode == 0, done.stderr
    assert "Resumed from step 12" in done.stderr and held(jumping).step == 24, "the newest is the one of the highest step"
    times = [os.stat(path).st_mtime for path in sorted(jumping.glob("step-???????"))]
    assert len(times) == 2 and times[1] < times[0] - YEAR, "the clock did not jump"
    assert main(words(tmp_path / "table.npy", straight, 24)) == 0
    assert digests(jumping) == digests(straight)
    rates = [row["steps_per_second"] for row in metrics(jumping) if "loss" in row]
    assert [row["step"] for row in metrics(jumping) if "loss" in row] == list(range(2, 25, 2))
    assert all(0.01 < rate < 1e6 for rate in rates), "speeds come from a clock that cannot be set"
    assert main(["sample", str(jumping), "--n", "2", "--steps", "2"]) == 0
