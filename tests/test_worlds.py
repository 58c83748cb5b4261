"""Worlds of several processes: what they are given, whom their messages name, and that none outlives its launcher."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ddpm.cli import app
from ddpm.errors import ConfigError, DataError, DDPMError, DiskError, DistributedError
from ddpm.training.distributed.parallel import Pass
from ddpm.training.distributed.world import World
from ddpm.training.leftovers import last_checkpoint
from ddpm.training.run import logical_shards
from many import Many, alive, fault, numbers
from small_runs import environment, settings, table, trainer_for

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


# shards that cannot be shared evenly -----------------------------------------------------------------


@linux
def test_fsdp_refuses_shards_that_would_keep_its_processes_waiting(tmp_path: Path) -> None:
    began = time.monotonic()
    code, said = Many.start(tmp_path / "run", "--steps 6 --parallel fsdp --logical-shards 3").end(120)
    assert code == 2 and said.count("logical_shards: got 3, which 2 processes cannot share evenly") == 1, said
    assert time.monotonic() - began < 50 and not list((tmp_path / "run").glob("step-*"))  # the others are waited for 60 s


def test_what_fsdp_may_be_given_instead(tmp_path: Path) -> None:
    """Every way out that the message names is one."""
    said: list[str] = []
    for saved in (None, *range(1, 9)):
        for asked in (None, *range(1, 9)):
            for size in range(2, 9):
                shards = asked or max(saved or 0, size)
                config = settings(tmp_path, batch=8, parallel="fsdp", logical_shards=asked)
                if shards % size == 0 or shards < size:
                    continue
                with pytest.raises(ConfigError, match=f"logical_shards: .* {shards}, which {size} processes cannot share evenly") as caught:
                    logical_shards(config, saved, size, said.append)
                found = re.search(r"use (\d+) or (\d+) processes, --logical-shards (.*?)( \(.*\))?, or --parallel ddp", str(caught.value))
                assert found
                for processes in map(int, found.groups()[:2]):
                    assert logical_shards(config, saved, processes, said.append) == shards
                for number in map(int, found[3].split(" or ")):
                    other = settings(tmp_path, batch=8, parallel="fsdp", logical_shards=number)
                    assert logical_shards(other, saved, size, said.append) == number
                other = settings(tmp_path, batch=8, logical_shards=asked)
                assert logical_shards(other, saved, size, said.append) == shards
                assert ("the run has" in str(caught.value)) == (asked is None) == (found[4] is not None)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_shards_of_uneven_size_weigh_as_much_as_their_samples(tmp_path: Path, accumulate: int) -> None:
    trainer = trainer_for(tmp_path, table(), batch=7, accumulate=accumulate)
    trainer.shards = trainer.feed.shards = 3
    with ExitStack() as stack:
        stack.enter_context(trainer.batches)
        trainer.state.optimizer.zero_grad()
        sizes = [len(losses) for _, _, losses in trainer._passes(0)]
    assert sorted(set(sizes)) == [2, 3] and sum(sizes) == 7 * accumulate
    found = [parameter.grad for parameter in trainer.parameters if parameter.grad is not None]
    trainer.state.optimizer.zero_grad()
    each = Pass(trainer.denoiser, trainer.loss)
    cut = [(part, shard) for shard in range(3) for part in range(accumulate)]
    losses = [trainer._losses(trainer.feed.batch(0, part, shard), 0, part, shard, each) for part, shard in cut]
    torch.cat(losses).mean().backward()  # every sample of the step counts as much
    wanted = [parameter.grad for parameter in trainer.parameters if parameter.grad is not None]
    assert len(found) == len(wanted) and any(bool(gradient.any()) for gradient in wanted)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)


# the launcher ----------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("wait", [0.0, *(pytest.param(wait, marks=pytest.mark.slow) for wait in (0.5, 1.0, 1.5, 2.0, 2.5, 4.0))])
def test_a_launcher_killed_while_its_ranks_begin_leaves_none_behind(tmp_path: Path, wait: float) -> None:
    run = Many.start(tmp_path / "run", "--steps 1000000 --timeout 300")
    run.until(lambda: len(run.ranks()) == 2)
    ranks = run.ranks()
    time.sleep(wait)
    run.process.kill()
    end = time.monotonic() + 10
    try:
        while any(map(alive, ranks)) and time.monotonic() < end:
            time.sleep(0.05)
        assert not any(map(alive, ranks))
    finally:
        for pid in filter(alive, ranks):
            os.kill(pid, 9)
        run.process.communicate()


RANK = """
import os, time
from ddpm.cli import app
app._run = lambda *words: (print(os.getpid(), flush=True), time.sleep(60))
app.main(["train"])
"""


@linux
def test_a_rank_watches_its_launcher_before_anything_else(tmp_path: Path) -> None:
    """Any launcher: one that does not say its process id is watched from the first moment on."""
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {RANK!r}])"
    env = environment(WORLD_SIZE="2", RANK="1")
    with subprocess.Popen([sys.executable, "-c", launcher], env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        process.kill()
    end = time.monotonic() + 10
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(pid)


@linux
@pytest.mark.slow
def test_two_jobs_at_once_do_not_share_a_port(tmp_path: Path) -> None:
    numbers(tmp_path)
    jobs = [Many.start(tmp_path / name, "--steps 3") for name in ("one", "two")]
    ports = []
    for job in jobs:
        job.until(lambda job=job: len(job.ranks()) == 2)  # type: ignore[misc]
        words = [Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0") for pid in job.ranks()]
        (port,) = {word for rank in words for word in rank if word.startswith("MASTER_PORT=")}
        ports.append(port)
    for job in jobs:
        code, said = job.end(240)
        assert code == 0, said
    assert ports[0] != ports[1]


# messages --------------------------------------------------------------------------------------------


def test_the_last_checkpoint_is_the_one_of_the_last_step(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "nowhere") == last_checkpoint(tmp_path) == "no checkpoint had been written yet"
    (tmp_path / "step-0000005.tmp-ab12").mkdir()
    assert last_checkpoint(tmp_path) == "no checkpoint had been written yet"
    for name in ("step-9999999", "step-10000000"):
        (tmp_path / name).mkdir()
    assert last_checkpoint(tmp_path) == "step-10000000 is the last checkpoint"


DEATH = {
    "bug": ("raise KeyError('boom')", 1, "ddpm train: internal error: rank 1: KeyError: 'boom'"),
    "killed": ("os.kill(os.getpid(), 9)", 8, "error: rank 1 died (SIGKILL; out of memory?); no checkpoint had been written yet"),
    "silent": ("os._exit(9)", 8, "error: rank 1 ended with code 9 without a word; no checkpoint had been written yet"),
}


@linux
@pytest.mark.parametrize("kind", ["bug", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("killed", "silent"))])
def test_a_rank_that_ends_before_the_first_checkpoint_is_named_and_none_is_promised(tmp_path: Path, kind: str) -> None:
    line, expected, message = DEATH[kind]
    patch = fault(
        tmp_path / "fault",
        1,
        f"""
import ddpm.training.feed as feed
real = feed.Feed.drawn
def batch(self, step, part, shard=0):
    if step == 3:
        {line}
    return real(self, step, part, shard)
feed.Feed.drawn = batch
""",
    )
    code, said = Many.start(tmp_path / "run", "--steps 50", env=patch).end(120)
    assert code == expected and message in said and "Traceback" not in said, said
    assert said.count("rank 1") == 1, said


@pytest.mark.parametrize("launched", [True, False])
@pytest.mark.parametrize(
    ("error", "met", "message"),
    [
        (DataError("a.png: cannot be read"), None, "error: rank 1: a.png: cannot be read"),
        (DiskError("cannot write step 5"), 0, "error: rank 0: cannot write step 5"),  # every rank raises what the main one met
        (DataError("rank 2: b.png: cannot be read"), 2, "error: rank 2: b.png: cannot be read"),
        (KeyError("boom"), None, "internal error: rank 1: KeyError: 'boom'"),
        (OSError(errno.EACCES, "Permission denied", "table.npy"), None, "error: rank 1: table.npy: Permission denied"),
        (MemoryError("no room"), None, "error: rank 1: out of memory: no room"),
        (ConfigError("batch: got 0"), None, "error: batch: got 0"),
        (DistributedError("rank 0 died in step 4"), None, "error: rank 0 died in step 4"),
    ],
)
def test_an_error_of_a_rank_names_it(
    error: Exception,
    met: int | None,
    message: str,
    launched: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if isinstance(error, DDPMError):
        error.rank = met
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "TORCHELASTIC_ERROR_FILE": str(tmp_path / "error.json")}.items():
        monkeypatch.setenv(name, value)
    if launched:
        monkeypatch.setenv("DDPM_LAUNCHED", str(os.getppid()))
    assert app._tell("ddpm train", error) == app.explain(error)[1]
    told = json.loads((tmp_path / "error.json").read_text(encoding="utf-8"))["message"]["message"]
    assert told.startswith(f"ddpm train: {message}")
    silent = launched or isinstance(error, ConfigError)  # the launcher says it, or the main rank does
    assert capsys.readouterr().err == ("" if silent else f"{told}\n")


def test_an_error_that_all_ranks_raise_knows_where_it_was_met(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []

    def broadcast(box: list[Any], src: int) -> None:
        sent.append(pickle.dumps(box))
        box[:] = pickle.loads(sent[0])

    def gather(found: list[Any], value: Any) -> None:
        found[:] = pickle.loads(pickle.dumps([None, None, DataError("b.png: cannot be read")]))

    def fail() -> None:
        raise DiskError("cannot write step 5")

    monkeypatch.setattr(dist, "broadcast_object_list", broadcast)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    for rank in range(3):
        world = World(rank, 3)
        with pytest.raises(DiskError) as disk:
            world.on_main(fail)
        with pytest.raises(DataError) as data:
            world.everywhere(lambda: None)
        assert (disk.value.rank, data.value.rank) == (0, 2)


# what real worlds are given --------------------------------------------------------------------------

WATCH = """
import json, os
import ddpm.training.trainer as trainer
real = trainer.Trainer._losses
def losses(self, batch, step, part, shard, passes):
    with open(os.environ["ROWS"] + "." + os.environ.get("RANK", "0"), "a") as file:
        file.write(json.dumps([step, part, shard, batch.rows.tolist()]) + "\\n")
    return real(self, batch, step, part, shard, passes)
trainer.Trainer._losses = losses
"""


@linux
@pytest.mark.slow
def test_worlds_of_one_two_and_three_see_the_same_rows(tmp_path: Path) -> None:
    """101 rows in passes of 8, neither a multiple of 3: no row is lost or doubled within an epoch, and all take every step."""
    numbers(tmp_path, 101)
    path = fault(tmp_path / "fault", 0, "pass")
    (tmp_path / "fault" / "sitecustomize.py").write_text(WATCH, encoding="utf-8")
    seen: dict[int, list[int]] = {}
    for size in (1, 2, 3):
        env = path | {"ROWS": str(tmp_path / f"rows-{size}")}
        words = "--steps 20 --batch 8 --accumulate 2 --holdout 0"
        code, said = Many.start(tmp_path / f"run-{size}", words, processes=size, env=env).end(120)
        assert code == 0, said
        ranks = [[json.loads(line) for line in (tmp_path / f"rows-{size}.{rank}").read_text().splitlines()] for rank in range(size)]
        assert all({entry[0] for entry in rank} == set(range(20)) for rank in ranks)
        assert [{entry[2] for entry in rank} for rank in ranks] == [{rank} for rank in range(size)]
        passes = sorted((tuple(entry[:3]), entry[3]) for rank in ranks for entry in rank)
        assert len({key for key, _ in passes}) == len(passes) == 20 * 2 * size
        seen[size] = [row for _, rows in passes for row in rows]
    assert seen[1] == seen[2] == seen[3] and len(seen[1]) == 320
    for epoch in range(3):
        assert sorted(seen[1][epoch * 101 : (epoch + 1) * 101]) == list(range(101))
