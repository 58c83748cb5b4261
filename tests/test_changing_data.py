"""Data that change: refused between two starts, with counts; while a model trains the run is saved, and the file and the step are named."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddpm.cli import main
from ddpm.data import DataSettings, open_data
from ddpm.data.dataset import Dataset
from ddpm.data.rows import Change, row_keys
from ddpm.data.watch import Watched, watched
from ddpm.errors import DataError
from ddpm.training import TrainConfig, Trainer, same_data
from ddpm.training.feed import Feed
from small_runs import digests, held, quietly, settings, table


@pytest.fixture(autouse=True)
def _no_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ddpm.training.run.loss_figure", lambda folder: None)
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))


# between two starts ---------------------------------------------------------------------------------------------------------


def photos(folder: Path, count: int = 12) -> Path:
    rng = np.random.default_rng(0)
    for i in range(count):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(folder / "ab"[i % 2] / f"{i:02d}.png")
    return folder


def words(data: Path, out: Path, steps: int = 2) -> list[str]:
    model = ["--network", "unet-config", "--network.channels", "8", "--network.mults", "1", "--network.attention", "", "--threads", "1"]
    return ["train", "--data", str(data), "--out", str(out), "--steps", str(steps), "--batch", "2", "--preview", "0", *model]


def gains(folder: Path) -> None:
    for name in ("new", "newer"):
        Image.fromarray(np.full((8, 8, 3), len(name), dtype=np.uint8)).save(folder / "a" / f"{name}.png")


def loses(folder: Path) -> None:
    for name in ("a/00", "b/03", "b/07"):
        (folder / f"{name}.png").unlink()


def changes(folder: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(folder / "b" / "05.png")


def relabels(folder: Path) -> None:
    (folder / "a" / "02.png").rename(folder / "b" / "02.png")


def renames(folder: Path) -> None:
    """Another order, the same pictures and classes."""
    (folder / "a" / "00.png").rename(folder / "a" / "zz.png")


def all_at_once(folder: Path) -> None:
    gains(folder)
    loses(folder)
    changes(folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (gains, "2 samples added, 0 removed, 0 changed (12 then, 14 now)"),
        (loses, "0 samples added, 3 removed, 0 changed (12 then, 9 now)"),
        (changes, "0 samples added, 0 removed, 1 changed (12 then, 12 now)"),
        (relabels, "0 samples added, 0 removed, 1 changed (12 then, 12 now)"),
        (renames, "the same samples in another order (12 then, 12 now)"),
        (all_at_once, "0 samples added, 1 removed, 3 changed (12 then, 11 now)"),
    ],
)
def test_a_folder_that_changed_is_refused_with_counts(change: Any, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = photos(tmp_path / "photos"), tmp_path / "run"
    assert main(words(data, out)) == 0
    before = digests(out)
    change(data)
    capsys.readouterr()
    for _ in range(2):  # the refusal itself must not accept them
        assert main(words(data, out, 4)) == 3
        said = capsys.readouterr().err
        assert f"not the data this run began with: {told}, and another fingerprint. Give the same data" in said
    assert digests(out) == before
    assert main([*words(data, out, 4), "--accept-data-change"]) == 0
    assert f"goes on with other data: {told}" in capsys.readouterr().err and held(out).step == 4
    assert main(words(data, out, 5)) == 0, "what was accepted once is the run's data from then on"


def test_old_runs_without_keys_and_damaged_keys_still_refuse(tmp_path: Path) -> None:
    run = tmp_path / "run"
    quietly(settings(run), data=table())
    for content in (None, b"", b"\x93NUMPY junk", (run / same_data.KEYS).read_bytes()[:-8]):
        (run / same_data.KEYS).unlink()
        if content is not None:
            (run / same_data.KEYS).write_bytes(content)
        with pytest.raises(DataError, match=r"40 samples of shape \(3,\) then, 41 of \(3,\) now, and another fingerprint"):
            quietly(settings(run, steps=6), data=table(41))
        quietly(settings(run), data=table())  # the same data: the keys are there again
        assert len(np.load(run / same_data.KEYS)) == 40


@pytest.mark.parametrize("seed", range(20))
def test_counts_against_a_recount(seed: int) -> None:
    """Random additions, removals and changes of distinct rows, with copies among them, in any order."""
    draw = random.Random(seed)
    before = [draw.randrange(6) for _ in range(draw.randrange(1, 30))]
    now = [draw.randrange(6) if draw.random() < 0.3 else value for value in before if draw.random() < 0.8]
    now += [draw.randrange(9) for _ in range(draw.randrange(4))]
    draw.shuffle(now)
    gone = sum(max(0, before.count(value) - now.count(value)) for value in range(9))
    came = sum(max(0, now.count(value) - before.count(value)) for value in range(9))
    found = Change.between(*(np.sort(np.array(rows, dtype=np.uint64) << np.uint64(55)) for rows in (before, now)))
    assert found == (max(0, came - gone), max(0, gone - came), min(gone, came))
    assert len(before) + found.added - found.removed == len(now)


def test_keys_depend_on_content_and_conditions_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    base = table(10, classes=2)
    assert base.keys is not None and base.keys.dtype == np.uint64 and np.array_equal(base.keys, np.sort(base.keys))
    other = table(10, classes=3).keys
    assert other is not None and 0 < len(np.intersect1d(base.keys, other)) < 10
    monkeypatch.setattr("ddpm.data.rows.MOST", 9)
    assert row_keys(np.zeros(10, dtype="V32"), {}, ()) is None


# while a model trains -------------------------------------------------------------------------------------------------------


def at_step(patch: pytest.MonkeyPatch, step: int, action: Any, accumulate: int = 1) -> None:
    """Do something just before the last pass of a step is fed."""
    feed = Feed.drawn

    def batch(self: Feed, now: int, part: int, *rest: object) -> Any:
        if now + 1 == step and part == accumulate - 1:
            action()
        return feed(self, now, part, *rest)  # type: ignore[arg-type]

    patch.setattr(Feed, "drawn", batch)


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table that is mapped, as files above 2 GiB are."""
    monkeypatch.setattr("ddpm.data.arrays._MAP_FROM", 100)
    np.save(tmp_path / "large.npy", np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32))
    return tmp_path / "large.npy"


def delete(path: Path) -> None:
    path.unlink()


def cut_short(path: Path) -> None:
    os.truncate(path, 200)


def rewrite(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\1")
    os.utime(path, ns=(0, 10**9))


def replace_file(path: Path) -> None:
    shutil.copy2(path, path.with_suffix(".other"))
    path.with_suffix(".other").replace(path)


LOST = [(delete, "No such file"), (cut_short, "has 200 bytes, it had 608"), (rewrite, "written to"), (replace_file, "was replaced")]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(("action", "told"), LOST, ids=[action.__name__ for action, _ in LOST])
def test_a_mapped_file_that_goes_or_changes(
    action: Any, told: str, accumulate: int, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(name: str) -> TrainConfig:
        return settings(tmp_path / name, steps=8, accumulate=accumulate, data=DataSettings(data=str(large), holdout=0.0))

    quietly(config("straight"))
    safe = large.read_bytes()
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda: action(large), accumulate)
        with pytest.raises(DataError) as caught:
            quietly(config("run"))
    assert caught.value.exit_code == 3
    assert str(large) in str(caught.value) and told in str(caught.value)
    assert "in step 6; step 5 is saved. Put the data back" in str(caught.value)
    assert held(tmp_path / "run").step == 5
    large.write_bytes(safe)
    quietly(config("run"))
    assert digests(tmp_path / "run") == digests(tmp_path / "straight"), "the step that was cut short left a trace"


def test_views_of_maps_are_watched_and_memory_is_not(large: Path, tmp_path: Path) -> None:
    mapped = np.load(large, mmap_mode="r")
    assert watched([np.moveaxis(mapped[:, None], -1, 1), np.asanyarray(mapped)[3:], mapped.view(np.uint32)]) == (Watched.of(large),)
    with (tmp_path / "unnamed").open("w+b") as file:
        assert watched([np.zeros(3), np.array(mapped), np.memmap(file, np.uint8, "w+", shape=(3,)), None][:2]) == ()
    assert open_data(DataSettings(data=str(large))).watched == (Watched.of(large),)


class OnDisk:
    """A person's own store: reads a file a sample when it is asked."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.shape, self.dtype = folder, (count, 3), np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any, /) -> Any:
        return np.stack([np.fromfile(self.folder / f"{i}.bin", dtype=np.float32) for i in np.arange(len(self))[rows]])


def test_a_store_of_ones_own_whose_folder_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = table()
    (tmp_path / "store").mkdir()
    for i, row in enumerate(base.samples[:]):
        np.asarray(row).tofile(tmp_path / "store" / f"{i}.bin")
    data = Dataset(**{**vars(base), "samples": OnDisk(tmp_path / "store", 40)})
    at_step(monkeypatch, 4, lambda: (tmp_path / "store").rename(tmp_path / "unmounted"))
    with pytest.raises(DataError, match=r"store/\d+\.bin: No such file.*\n.*in step 4; step 3 is saved"):
        quietly(settings(tmp_path / "run", steps=8), data=data)
    assert held(tmp_path / "run").step == 3
    (tmp_path / "unmounted").rename(tmp_path / "store")
    monkeypatch.undo()
    monkeypatch.setattr("ddpm.training.run.loss_figure", lambda folder: None)
    quietly(settings(tmp_path / "run", steps=8), data=data)
    quietly(settings(tmp_path / "straight", steps=8), data=base)
    assert digests(tmp_path / "run") == digests(tmp_path / "straight")


def test_lost_while_the_held_out_loss_is_measured(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = Trainer.evaluate

    def losing(trainer: Trainer, *words: Any) -> dict[str, Any]:
        large.unlink()
        return evaluate(trainer, *words)

    monkeypatch.setattr(Trainer, "evaluate", losing)
    with pytest.raises(DataError, match=r"step 4 is saved"):
        quietly(settings(tmp_path / "run", data=DataSettings(data=str(large), holdout=0.2)))
    assert held(tmp_path / "run").step == 4


def test_pictures_by_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures in memory no longer need their folder; those left in their files do: exit 3, with the file and the step."""
    data = photos(tmp_path / "photos")
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: data.rename(tmp_path / "away"))
        assert main(words(data, tmp_path / "memory", 4)) == 0
    (tmp_path / "away").rename(data)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: data.rename(tmp_path / "away"))
        assert main([*words(data, tmp_path / "files", 4), "--memory-share", "0"]) == 3
    said = capsys.readouterr().err
    assert str(data) in said and ".png: No such file" in said and "in step 3; step 2 is saved" in said and "Traceback" not in said
    (tmp_path / "away").rename(data)
    assert main([*words(data, tmp_path / "files", 4), "--memory-share", "0"]) == 0
    left, right = digests(tmp_path / "files"), digests(tmp_path / "memory")
    assert left == right
