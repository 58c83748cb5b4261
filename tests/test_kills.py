"""SIGKILL at random moments, within saves too: the same command goes on, and ends where a run nobody killed ends.

`python tests/test_kills.py --kills 20` prints the table of one such run.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from ddpm.training.checkpoints import checkpoint
from ddpm.training.logbook import read_metrics
from small_runs import digests, environment, held, metrics, start

STEPS = 2000
EVERY = 20
FLAGS = ["--steps", str(STEPS), "--checkpoint-every", str(EVERY), "--evaluate-every", "1000000", "--log-every", "10", "--accumulate", "2"]
MODEL = ["--network", "mlp-config", "--network.width", "16", "--network.depth", "1", "--network.dropout", "0.1", "--schedule", "straight"]
REST = ["--batch", "4", "--preview", "0", "--threads", "1", "--keep", "2", "--holdout", "0"]


class Kill(NamedTuple):
    """One process that was killed: where it had begun, what it was doing, and the newest checkpoint it left."""

    number: int
    began: int
    inside: str  # the step of a save it was killed in, or ""
    left: int
    unfinished: int  # folders of saves cut short
    lost: int  # steps done, as far as metrics.jsonl tells, beyond the newest checkpoint


def command(data: Path, out: Path) -> list[str]:
    """The same words every time."""
    return ["train", "--data", str(data), "--out", str(out), *FLAGS, *MODEL, *REST]


HOOK = """
import os, signal, sys
from ddpm.training.checkpoints import storage
wanted, seen = int(os.environ["KILL_AT"]), 0
def boundary(name):
    global seen
    seen += 1
    if seen == wanted:
        print("killed after:", name, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
storage.boundary = boundary
from ddpm.cli import main
sys.exit(main(sys.argv[1:]))
"""


def newest_step(out: Path) -> int:
    """The step the next start will resume from."""
    found = checkpoint.newest(out, notice=lambda text: None)
    return found.step if found else 0


def kill_in_a_save(words: list[str], at: int) -> str:
    """Start, and end the process after the at-th step (an open, a write, a flush, a rename) of its saves."""
    done = subprocess.run(
        [sys.executable, "-c", HOOK, *words], capture_output=True, text=True, check=False, env=environment(KILL_AT=str(at))
    )
    assert done.returncode == -9, (done.returncode, done.stderr)
    return re.sub(r"\.tmp-\w+", "", done.stdout.strip().removeprefix("killed after: "))


def kill_after(words: list[str], out: Path, seconds: float) -> None:
    """Start, wait until steps are being done, and end the process some time later."""
    before = newest_step(out)
    with start(*words) as process:
        limit = time.monotonic() + 120
        while newest_step(out) == before and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.02)
        time.sleep(seconds)
        process.kill()
        _, said = process.communicate()
        assert process.returncode == -9, said


def torture(folder: Path, kills: int, seed: int = 0) -> tuple[list[Kill], dict[str, str], dict[str, str]]:
    """Kill a run `kills` times, every second time inside a save, let it end, and run the same once without; the digests of both."""
    rng = np.random.default_rng(seed)
    data = folder / "table.npy"
    np.save(data, rng.normal(size=(50, 3)).astype(np.float32))
    out, quiet = folder / "killed", folder / "straight"
    table: list[Kill] = []
    for number in range(1, kills + 1):
        began, inside = newest_step(out), ""
        if number % 2:
            inside = kill_in_a_save(command(data, out), int(rng.integers(1, 60)))
        else:
            kill_after(command(data, out), out, float(rng.uniform(0.0, 0.25)))
        unfinished = len(list(out.glob("step-*.tmp-*")))
        left = newest_step(out)
        done = max((row["step"] for row in read_metrics(out)), default=0)
        table.append(Kill(number, began, inside, left, unfinished, max(0, done - left)))
        assert left >= began, "work that was saved is lost"
        assert table[-1].lost <= EVERY, "more than one interval between checkpoints is lost"
    for words in (command(data, out), command(data, quiet)):
        done = subprocess.run([sys.executable, "-m", "ddpm", *words], capture_output=True, text=True, check=False, env=environment())
        assert done.returncode == 0, done.stderr
    assert not list(out.glob("*.tmp-*")), "leftovers"
    return table, digests(out), digests(quiet)


def show(table: list[Kill]) -> str:
    """The table as text."""
    lines = [f"{'kill':>4} {'began at':>8}  {'killed':<32} {'resumes from':>12} {'cut short':>9} {'steps lost':>10}"]
    for row in table:
        what = f"in a save, after {row.inside}" if row.inside else "in a step"
        lines.append(f"{row.number:>4} {row.began:>8}  {what:<32} {row.left:>12} {row.unfinished:>9} {row.lost:>10}")
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
@pytest.mark.timeout(900)
def test_twenty_kills(tmp_path: Path) -> None:
    table, killed, straight = torture(tmp_path, 20)
    print(show(table))
    assert sum(bool(row.inside) for row in table) >= 6 and sum(row.unfinished for row in table) >= 3
    assert killed == straight and held(tmp_path / "killed").step == STEPS
    logged = [row["step"] for row in metrics(tmp_path / "killed") if "loss" in row]
    assert logged == list(range(10, STEPS + 1, 10))


def main() -> int:
    """Torture one run and say whether it ended as the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        table, killed, straight = torture(Path(folder), asked.kills, asked.seed)
    print(show(table))
    different = [name for name in straight if killed.get(name) != straight[name]]
    inside = sum(bool(row.inside) for row in table)
    took = time.monotonic() - begin
    print(f"{len(table)} kills, {inside} inside a save; {len(straight)} tensors and states compared, {len(different)} differ; {took:.0f} s")
    return 1 if different or set(killed) != set(straight) else 0


if __name__ == "__main__":
    sys.exit(main())
