"""Batches prepared ahead: the same run, errors where they belong, no thread left behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm.errors import DataError
from ddpm.objective import Draws
from ddpm.training import prefetch as module
from ddpm.training.feed import Batch, Feed
from ddpm.training.prefetch import Ahead, Key, Prefetch, choose_ahead
from shard_files import read, samples, write_shards
from small_runs import SMALL_UNET, digests, pictures, quietly, settings, table, trainer_for

SIZES = [Ahead(0, 0), Ahead(1, 1), Ahead(2, 1), Ahead(5, 3)]


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 5
    while any("prefetch" in thread.name for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [thread.name for thread in threading.enumerate() if "prefetch" in thread.name] == []


def counting(last: int) -> Callable[[Key], Key | None]:
    return lambda key: (key[0] + 1,) if key[0] < last else None


@pytest.mark.parametrize("ahead", SIZES)
def test_every_batch_once_and_in_order_whatever_the_threads_do(ahead: Ahead) -> None:
    made: list[int] = []

    def slowly(step: int) -> int:
        time.sleep(0.002 * (step * 7 % 5))  # later ones are often ready first
        made.append(step)
        return step * step

    with Prefetch(slowly, counting(29), ahead) as batches:
        assert [batches(step) for step in range(30)] == [step * step for step in range(30)]
    assert sorted(made) == list(range(30))


def test_not_more_is_prepared_than_was_asked_for() -> None:
    made: list[int] = []
    with Prefetch(made.append, counting(100), Ahead(3, 2)) as batches:
        for step in range(5):
            batches(step)
        time.sleep(0.2)
        assert sorted(made) == list(range(8))


def test_a_step_taken_back_is_made_anew() -> None:
    with Prefetch(lambda step: step, counting(50), Ahead(3, 2)) as batches:
        asked = [0, 1, 2, 3, 1, 2, 40, 41, 0, 50, 50]
        assert [batches(step) for step in asked] == asked


@pytest.mark.parametrize("ahead", SIZES)
def test_an_error_comes_at_its_own_step_and_as_it_is(ahead: Ahead) -> None:
    def make(step: int) -> int:
        if step == 6:
            raise DataError("set-0002.tar/000017.png: damaged or cut short")
        return step

    done: list[int] = []
    with pytest.raises(DataError, match="set-0002.tar/000017.png"), Prefetch(make, counting(50), ahead) as batches:
        for step in range(50):
            done.append(batches(step))
    assert done == [0, 1, 2, 3, 4, 5]


def test_a_batch_that_is_waited_for_fails_without_waiting_for_the_others() -> None:
    release = threading.Event()

    def make(step: int) -> int:
        if step == 0:
            raise DataError("a.png: gone")
        release.wait(20)
        return step

    batches = Prefetch(make, counting(50), Ahead(4, 4))
    start = time.monotonic()
    with pytest.raises(DataError, match=r"a.png: gone"):
        batches(0)
    assert time.monotonic() - start < 5
    release.set()
    batches.close()


def test_the_work_of_the_device_hides_that_of_the_threads() -> None:
    """Twelve steps of 30 ms beside batches of 25 ms: 0.36 s where they overlap, 0.66 s where they do not."""

    def seconds(ahead: Ahead) -> float:
        start = time.monotonic()
        with Prefetch(lambda step: time.sleep(0.025), counting(11), ahead) as batches:
            for step in range(12):
                batches(step)
                time.sleep(0.03)
        return time.monotonic() - start

    assert min(seconds(Ahead(2, 1)) for _ in range(3)) < 0.8 * min(seconds(Ahead(0, 0)) for _ in range(3))


def test_tensors_are_pinned_by_the_threads_and_moved_by_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    where: dict[str, list[str]] = {"pin": [], "to": [], "device": []}
    real = Tensor.to

    def to(tensor: Tensor, *given: Any, **named: Any) -> Tensor:
        if named.get("non_blocking"):
            where["to"].append(threading.current_thread().name)
            return real(tensor, "meta")
        return real(tensor, *given, **named)

    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: (where["pin"].append(threading.current_thread().name), tensor)[1])
    monkeypatch.setattr(Tensor, "to", to)
    monkeypatch.setattr(module.torch.cuda, "set_device", lambda device: where["device"].append(str(device)))

    def make(step: int) -> Batch:
        x = torch.full((2, 3), float(step))
        return Batch(np.arange(2), x, {"class": x[:, 0]}, Draws(x[:, 0].double(), x, x))

    with Prefetch(make, counting(9), Ahead(2, 1), torch.device("cuda", 1)) as batches:
        batch = batches(0)
    assert isinstance(batch, Batch) and batch.x0.device.type == "meta" and batch.cond is not None
    assert {one.device.type for one in (batch.cond["class"], batch.draws.eps, batch.draws.z)} == {"meta"}
    assert batch.draws.u.device.type == "cpu"  # float64
    assert set(where["to"]) == {threading.current_thread().name} and all("prefetch" in name for name in where["pin"])
    assert len(where["to"]) == 4 and len(where["pin"]) >= 5 and where["device"] == ["cuda:1"]


def test_what_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    small, large = table(), read(write_shards(tmp_path, samples(8), 4))
    assert choose_ahead(small, cpu) == (0, 0) and choose_ahead(small, cuda) == (2, 1) and choose_ahead(small, cpu, 3) == (3, 1)
    assert choose_ahead(large, cpu) == choose_ahead(large, cuda) == (8, 8) and choose_ahead(large, cuda, 0) == (0, 0)
    assert choose_ahead(large, cuda, 3) == (3, 3) and choose_ahead(large, cuda, 6, 2) == (6, 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert choose_ahead(large, cuda) == (2, 1)


# --- runs ---------------------------------------------------------------------------------------------------------------------------------


def shards(tmp_path: Path) -> Any:
    pattern = str(tmp_path / "s" / "set-{0000..0007}.tar")
    if not (tmp_path / "s").exists():
        write_shards(tmp_path / "s", samples(48, sides=(9, 12)), 6)
    return read(pattern, size=(8,), crop="random", flip=True, shard_window=2)


@pytest.mark.parametrize("kind", ["shards", "memory"])
def test_a_run_is_the_same_to_the_last_bit(kind: str, tmp_path: Path) -> None:
    data = shards(tmp_path) if kind == "shards" else pictures(3, 8, 8)
    found: list[list[Tensor]] = []
    for ahead, workers in ((0, None), (7, 3), (None, None)):
        trainer = trainer_for(tmp_path, data, network=SMALL_UNET, steps=12, accumulate=2, prefetch=ahead, workers=workers)
        with trainer.batches:
            losses = [trainer.step(print) for _ in range(12)]  # 12 steps of 8 are more than two epochs of 43
        found.append([*(loss for loss in losses if loss is not None), *(p.detach() for p in trainer.parameters)])
    for other in found[1:]:
        assert len(other) == len(found[0]) and all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_a_run_on_shards_resumes_to_the_last_bit(tmp_path: Path) -> None:
    base = settings(tmp_path, network=SMALL_UNET, steps=8, accumulate=2)
    for name, steps, ahead in (("plain", 8, 0), ("resumed", 3, 4), ("resumed", 8, None)):
        quietly(replace(base, out=str(tmp_path / name), steps=steps, prefetch=ahead), data=shards(tmp_path))
    assert digests(tmp_path / "resumed") == digests(tmp_path / "plain")


def test_a_damaged_file_ends_the_run_by_name_at_the_step_that_needs_it(tmp_path: Path) -> None:
    data = shards(tmp_path)
    trainer = trainer_for(tmp_path / "a", data, network=SMALL_UNET)
    rows = [trainer.feed.batch(step, 0).rows for step in range(4)]
    victim = next(int(row) for row in rows[3] if row not in np.concatenate(rows[:3]))
    files, number = data.samples.files, int(data.samples.numbers[victim])
    name = files.stamps[int(files.shard[number])][0]
    before = files.stamps[int(files.shard[number])]
    with (tmp_path / "s" / name).open("r+b") as file:
        file.seek(int(files.offset[number]) + 40)
        file.write(b"\0" * 40)
    now = (tmp_path / "s" / name).stat()
    files.stamps[int(files.shard[number])] = (before[0], now.st_size, now.st_mtime_ns)  # as if the disk had gone bad unnoticed
    steps: list[int] = []
    for ahead in (0, 3):
        trainer = trainer_for(tmp_path / f"b{ahead}", data, network=SMALL_UNET, prefetch=ahead)
        with pytest.raises(DataError, match=rf"{name}/{victim:06d}.png: damaged or cut short"), trainer.batches:
            for _ in range(10):
                trainer.step(print)
        steps.append(trainer.state.step)
    assert steps == [3, 3]


def test_a_stop_leaves_no_thread_and_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, real = shards(tmp_path), Feed.drawn
    config = settings(tmp_path / "run", network=SMALL_UNET, steps=6, prefetch=3)

    def interrupting(feed: Feed, step: int, part: int, shard: int = 0) -> Batch:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(feed, step, part, shard)

    monkeypatch.setattr(Feed, "drawn", interrupting)
    finished = quietly(config, data=data)
    assert finished.code == 130
    assert not any("prefetch" in thread.name for thread in threading.enumerate())
    monkeypatch.undo()
    quietly(config, data=data)
    quietly(replace(config, out=str(tmp_path / "straight"), prefetch=0), data=data)
    assert digests(tmp_path / "run") == digests(tmp_path / "straight")
