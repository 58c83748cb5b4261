"""Several processes: the same bits as one, and a good end whatever happens to one of them."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.errors import ConfigError
from ddpm.training.run import logical_shards
from many import FLAGS, Many, alive, fault, numbers
from small_runs import digests, held, settings, start, table, trainer_for

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


def alone(out: Path, words: str) -> None:
    """The same run on one process."""
    process = start("train", "--data", str(numbers(out.parent)), "--out", str(out), *FLAGS.split(), *words.split())
    said = process.communicate(timeout=240)
    assert process.returncode == 0, said


def test_two_one_two_processes_give_the_bits_of_one(tmp_path: Path) -> None:
    straight, changing = tmp_path / "straight", tmp_path / "changing"
    alone(straight, "--steps 12 --logical-shards 2")
    code, said = Many.start(changing, "--steps 4").end()
    assert code == 0, said
    assert "2 processes" in said and said.count("next: ddpm sample") == 1
    alone(changing, "--steps 8")
    code, said = Many.start(changing, "--steps 12").end()
    assert code == 0 and "Resumed from step 8 (verified)" in said, said
    assert digests(straight) == digests(changing)
    assert held(changing).document("state")["shards"] == 2


@pytest.mark.slow
def test_one_two_one_processes_give_the_bits_of_one(tmp_path: Path) -> None:
    straight, changing = tmp_path / "straight", tmp_path / "changing"
    alone(straight, "--steps 12 --logical-shards 2")
    alone(changing, "--steps 4 --logical-shards 2")
    code, said = Many.start(changing, "--steps 8").end()
    assert code == 0 and "Resumed from step 4 (verified)" in said and "2 processes" in said, said
    alone(changing, "--steps 12")
    assert digests(straight) == digests(changing)
    assert held(changing).step == 12 and held(changing).document("state")["shards"] == 2


def test_a_killed_rank_ends_the_run_and_is_named(tmp_path: Path) -> None:
    run = Many.running(tmp_path / "run")
    first, second = run.ranks()
    os.kill(second, signal.SIGKILL)
    began = time.monotonic()
    code, said = run.end(60)
    assert code == 8 and time.monotonic() - began < 15  # 5 s on a quiet machine
    assert said.rstrip().endswith(f"rank 1 died (SIGKILL; out of memory?); {held(tmp_path / 'run').path.name} is the last checkpoint"), said
    assert "Traceback" not in said and not alive(first)
    assert held(tmp_path / "run").step >= 5


def test_a_stopped_rank_ends_the_run_and_is_named(tmp_path: Path) -> None:
    run = Many.running(tmp_path / "run", "--timeout 5 --grace 3")
    first, second = run.ranks()
    os.kill(second, signal.SIGSTOP)
    began = time.monotonic()
    code, said = run.end(60)
    assert code == 8 and time.monotonic() - began < 25, said  # 12 s on a quiet machine
    assert "rank 1 silent for 5 s in step" in said and said.rstrip().endswith(" is the last checkpoint"), said
    assert "Traceback" not in said, said
    assert not alive(first) and not alive(second)


def test_a_request_to_stop_saves_the_same_step_on_all_ranks(tmp_path: Path) -> None:
    run = Many.running(tmp_path / "run")
    run.process.send_signal(signal.SIGTERM)
    code, said = run.end(60)
    step = held(tmp_path / "run").step
    assert code == 143 and f"stopping after step {step}; it is saved. Resume: ddpm train" in said and "Traceback" not in said, said


def test_the_error_of_one_rank_is_told_once_and_last(tmp_path: Path) -> None:
    patch = fault(
        tmp_path / "fault",
        1,
        """
import ddpm.training.feed as feed
from ddpm.errors import DataError
real = feed.Feed.drawn
def batch(self, step, part, shard=0):
    if step == 3:
        raise DataError("a.png: cannot be read")
    return real(self, step, part, shard)
feed.Feed.drawn = batch
""",
    )
    code, said = Many.start(tmp_path / "run", "--steps 50", env=patch).end(120)
    assert code == 3 and "ddpm train: error: rank 1: a.png: cannot be read" in "".join(said.splitlines()[-2:]), said
    assert said.count("cannot be read") == 1 and "Traceback" not in said and "Connection" not in said, said


@pytest.mark.slow
def test_a_launcher_that_is_killed_leaves_no_rank_behind(tmp_path: Path) -> None:
    run = Many.running(tmp_path / "run")
    ranks = run.ranks()
    run.process.kill()
    end = time.monotonic() + 10
    while any(alive(pid) for pid in ranks) and time.monotonic() < end:
        time.sleep(0.05)
    assert len(ranks) == 2 and not any(alive(pid) for pid in ranks)
    run.process.communicate()


@pytest.mark.slow
def test_a_full_disk_on_the_main_rank_ends_all_alike(tmp_path: Path) -> None:
    patch = fault(
        tmp_path / "fault",
        0,
        """
import errno
import ddpm.training.checkpoints.storage as storage
real = storage.write_file
def write_file(path, content):
    if "step-0000010" in str(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return real(path, content)
storage.write_file = write_file
""",
    )
    code, said = Many.start(tmp_path / "run", "--steps 50 --checkpoint-every 5", env=patch).end(120)
    assert code == 5 and "cannot write step 10" in said.splitlines()[-1] and "Traceback" not in said, said
    assert held(tmp_path / "run").step == 5


@pytest.mark.slow
def test_numbers_that_are_not_finite_on_one_rank_skip_the_step_on_all(tmp_path: Path) -> None:
    patch = fault(
        tmp_path / "fault",
        1,
        """
import ddpm.training.feed as feed
real = feed.Feed.drawn
def batch(self, step, part, shard=0):
    made = real(self, step, part, shard)
    if step == 4:
        made.x0[0] = float("nan")
    return made
feed.Feed.drawn = batch
""",
    )
    code, said = Many.start(tmp_path / "run", "--steps 8", env=patch).end(120)
    assert code == 0 and said.count("step 5: not finite in the batch: data rows [") == 1 and "on rank 1" in said, said
    assert held(tmp_path / "run").document("state")["good_steps"] == 7


CRASH = """
import ddpm.training.feed as feed
real = feed.Feed.drawn
attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
def batch(self, step, part, shard=0):
    if attempt < {attempts} and step == (3, 7, 8, 8)[attempt]:
        os._exit(9)
    return real(self, step, part, shard)
feed.Feed.drawn = batch
"""


@pytest.mark.slow
def test_restarts_end_with_the_bits_of_a_run_that_never_crashed(tmp_path: Path) -> None:
    alone(tmp_path / "straight", "--steps 12 --logical-shards 2")
    patch = fault(tmp_path / "fault", 1, CRASH.format(attempts=3))
    code, said = Many.start(tmp_path / "run", "--steps 12 --checkpoint-every 2 --restarts 3", env=patch).end(240)
    assert code == 0 and "restart 2/3: Resumed from step 6 (verified)" in said, said
    assert digests(tmp_path / "straight") == digests(tmp_path / "run")


@pytest.mark.slow
def test_a_run_that_always_crashes_gives_up(tmp_path: Path) -> None:
    patch = fault(tmp_path / "fault", 1, CRASH.format(attempts=4))
    code, said = Many.start(tmp_path / "run", "--steps 12 --checkpoint-every 2 --restarts 3", env=patch).end(240)
    assert code == 8 and "rank 1 ended with code 9" in said.splitlines()[-1], said


# what the ranks are given, without starting any ------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_shards_share_out_every_pass_and_no_sample_comes_twice_in_an_epoch(tmp_path: Path, shards: int, accumulate: int) -> None:
    data = table(101, holdout=0.0)
    one = trainer_for(tmp_path, data, batch=8, accumulate=accumulate).feed
    many = trainer_for(tmp_path, data, batch=8, accumulate=accumulate).feed
    many.shards = shards
    seen: list[int] = []
    for step in range(30):
        for part in range(accumulate):
            rows = np.concatenate([many.batch(step, part, shard).rows for shard in range(shards)])
            assert np.array_equal(rows, one.batch(step, part).rows)
            seen += rows.tolist()
    for epoch in range(len(seen) // 101):
        assert len(set(seen[epoch * 101 : (epoch + 1) * 101])) == 101


def test_every_shard_has_noise_of_its_own(tmp_path: Path) -> None:
    feed = trainer_for(tmp_path, table(), batch=8, accumulate=2).feed
    feed.shards = 4
    streams = [feed.batch(step, part, shard).draws.eps for step in range(2) for part in range(2) for shard in range(4)]
    for i, a in enumerate(streams):
        assert all(not torch.equal(a, b) for b in streams[i + 1 :])


def test_the_number_of_shards(tmp_path: Path) -> None:
    said: list[str] = []
    assert logical_shards(settings(tmp_path), None, 1, said.append) == 1 and not said
    assert logical_shards(settings(tmp_path), None, 3, said.append) == 3 and not said
    assert logical_shards(settings(tmp_path), 2, 1, said.append) == 2 and "2 logical shards on 1 process (the same" in said.pop()
    assert logical_shards(settings(tmp_path), 1, 2, said.append) == 2 and "1 logical shards -> 2" in said.pop()
    with pytest.raises(ConfigError, match="logical_shards: got 1 for 2 processes"):
        logical_shards(settings(tmp_path, logical_shards=1), None, 2, said.append)
    with pytest.raises(ConfigError, match="batch: got 4 for 5 logical shards"):
        logical_shards(settings(tmp_path, logical_shards=5), None, 1, said.append)
