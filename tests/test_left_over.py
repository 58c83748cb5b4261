"""What a start makes of a folder that is not as a run leaves it: checkpoints gone, files damaged, no room; nothing is lost in silence."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ddpm.cli import main
from ddpm.data import DataSettings
from ddpm.data.dataset import Dataset
from ddpm.errors import CheckpointError, DiskError
from ddpm.training import OptimizerSettings, TrainConfig, Trainer, run
from ddpm.training.checkpoints import checkpoint, storage
from ddpm.training.checkpoints.checkpoint import clean
from ddpm.training.logbook import Logbook, read_metrics
from small_runs import digests, held, metrics, quietly, settings, table, trainer_for


@pytest.fixture(autouse=True)
def _no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "loss_figure", lambda folder: None)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return table()


def config(out: Path, **changes: object) -> TrainConfig:
    """Twenty steps with two checkpoints and four snapshots."""
    return replace(settings(out, steps=20, checkpoint_every=10, log_every=1, snapshots=5), **changes)  # type: ignore[arg-type]


def content(folder: Path) -> dict[str, bytes]:
    """Every file, but the lock."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name[:5] != ".lock"}


# checkpoints that are gone ---------------------------------------------------------------------------


@pytest.mark.parametrize("proof", ["latest", "README.md"])
def test_a_run_whose_checkpoints_are_gone_is_refused_and_left_alone(proof: str, tmp_path: Path, data: Dataset) -> None:
    quietly(config(tmp_path / "run"), data=data)
    wanted = digests(tmp_path / "run")
    for path in (tmp_path / "run").glob("step-*"):
        shutil.move(path, tmp_path)
    if proof != "latest":
        (tmp_path / "run" / "latest").unlink()
    before = content(tmp_path / "run")
    with pytest.raises(CheckpointError, match=rf"has been trained \(there is {proof}.*Put the step folders back .* --out") as caught:
        quietly(config(tmp_path / "run", steps=30), data=data)
    assert caught.value.exit_code == 4 and content(tmp_path / "run") == before
    assert ("step-0000020 is missing" in str(caught.value)) == (proof == "latest")
    for path in tmp_path.glob("step-*"):
        shutil.move(path, tmp_path / "run")
    quietly(config(tmp_path / "run"), data=data)
    assert digests(tmp_path / "run") == wanted


def test_a_run_cut_short_before_its_first_checkpoint_begins_again(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Trainer.step

    def dying(trainer: Trainer, *words: object) -> object:
        if trainer.state.step == 7:
            raise KeyboardInterrupt
        return step(trainer, *words)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", dying)
        quietly(config(tmp_path / "cut"), data=data)
    assert [row["step"] for row in metrics(tmp_path / "cut")] == list(range(1, 8)) and any((tmp_path / "cut" / "snapshots").glob("step-*"))
    run.train(config(tmp_path / "cut"), data=data)
    assert "was cut short before its first checkpoint; this one begins at step 0 again" in capsys.readouterr().err
    quietly(config(tmp_path / "whole"), data=data)
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")
    assert [row["step"] for row in metrics(tmp_path / "cut") if "loss" in row] == list(range(1, 21))


# files that are damaged ------------------------------------------------------------------------------


def test_lines_of_the_log_that_no_run_wrote_are_passed_over_and_told(
    tmp_path: Path, data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    quietly(config(tmp_path), data=data)
    log, strange = (
        tmp_path / "metrics.jsonl",
        [b"\xff\xfe", b'{"step":"x","loss":null}', b'{"step": 3, "loss": null}', b"[1]", b"[" * 9999],
    )
    lines = log.read_bytes().splitlines()
    log.write_bytes(b"\n".join([*lines[:4], *strange, *lines[4:], b'{"step": 20, "lo']))
    assert len(read_metrics(tmp_path)) == len(lines)
    run.train(config(tmp_path, steps=25), data=data)
    assert f"{log}: 6 damaged lines left out (line 5, 6, 7, 8, 9, ...)" in capsys.readouterr().err
    assert log.read_bytes().splitlines()[: len(lines)] == lines
    assert [row["step"] for row in metrics(tmp_path) if "loss" in row] == list(range(1, 26))


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"[]", b'{"name": 1}'])
def test_a_damaged_data_card_says_what_to_do(damage: bytes, tmp_path: Path, data: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    quietly(settings(tmp_path), data=data)
    (tmp_path / "data_card.json").write_bytes(damage)
    with pytest.raises(CheckpointError, match=r"data_card.json cannot be read: .*put the file back .* or remove it, and the run goes on"):
        quietly(settings(tmp_path, steps=6), data=data)
    (tmp_path / "data_card.json").unlink()
    run.train(settings(tmp_path, steps=6), data=data)
    assert "data_card.json is missing: whether the data are those the run began with cannot be compared" in capsys.readouterr().err
    run.train(settings(tmp_path, steps=8), data=data)
    assert held(tmp_path).step == 8 and "missing" not in capsys.readouterr().err


def test_what_a_write_of_a_small_file_leaves_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    names = ["config.toml", "data_card.json", "data_keys.npy", "metrics.jsonl", "README.md", "plan.json", "merged.json", "sampling.json"]
    monkeypatch.setattr(storage.os, "replace", die)
    monkeypatch.setattr(storage.Path, "unlink", lambda *_, **__: None)  # nor is anything removed by a process that is gone
    for name in names:
        with pytest.raises(Killed):
            storage.write_text(tmp_path / name, "half")
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == len(names)
    (tmp_path / "notes.tmp").write_text("mine")
    said: list[str] = []
    assert clean(tmp_path, said.append) == 0 and not said
    assert [path.name for path in tmp_path.iterdir()] == ["notes.tmp"]


# no room ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /dev/full")
def test_a_log_on_a_full_disk_names_the_file_the_step_and_what_is_left(tmp_path: Path, data: Dataset) -> None:
    quietly(config(tmp_path, log_every=4), data=data)
    os.replace(tmp_path / "metrics.jsonl", tmp_path / "log")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(DiskError) as caught:
        quietly(config(tmp_path, log_every=4, steps=30), data=data)
    log = tmp_path / "metrics.jsonl"
    assert str(caught.value).startswith(f"cannot write {log} at step 24: No space left on device. Step 20 is intact, ")
    assert "Free some space, then give the same command again" in str(caught.value)


def test_a_start_without_room_for_a_checkpoint_is_refused(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quietly(config(tmp_path), data=data)
    before = content(tmp_path)
    size = sum(record.size for record in held(tmp_path).files.values())
    monkeypatch.setattr(storage, "free_space", lambda folder: size // 3)
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("no step may be done"))
    with pytest.raises(DiskError, match=r"cannot write step 30: need .* free in .*. Step 20 is intact. Nothing was trained; free"):
        quietly(config(tmp_path, steps=100), data=data)
    assert content(tmp_path) == before
    quietly(config(tmp_path), data=data)  # it has all its steps: nothing will be written
    monkeypatch.undo()
    monkeypatch.setattr(storage, "free_space", lambda folder: size)
    monkeypatch.setattr(run, "loss_figure", lambda folder: None)
    monkeypatch.setattr(checkpoint, "begin", lambda staged, *_: staged.mkdir())
    run.train(config(tmp_path, steps=21, snapshots=0), data=data)
    assert "disk nearly full: step 21 takes" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["adamw", "muon", "schedule-free"])
def test_the_size_foretold_is_that_of_the_tensors_saved(kind: str, tmp_path: Path, data: Dataset) -> None:
    changes = {"optimizer": OptimizerSettings(kind=kind), "ema": (0.05, 0.1), "steps": 2}  # type: ignore[arg-type]
    foretold = trainer_for(tmp_path, data, **changes).state.nbytes()
    quietly(settings(tmp_path, **changes), data=data)
    saved = held(tmp_path)
    actual = sum(tensor.nbytes for name in saved.tensor_names for tensor in saved.tensors(name).values())
    assert foretold == pytest.approx(actual, abs=8 * len(saved.tensors("optimizer")))  # the optimizer's counters of steps


# what is told at a resume ----------------------------------------------------------------------------


@pytest.mark.parametrize("decay", ["cosine", "linear", "none"])
def test_a_finished_decay_that_is_made_longer_is_told(
    decay: str, tmp_path: Path, data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    short = settings(tmp_path, steps=20, optimizer=OptimizerSettings(decay=decay, warmup=2, lr=1e-3))  # type: ignore[arg-type]
    quietly(short, data=data)
    run.train(short, data=data)
    assert "learning rate" not in capsys.readouterr().err
    run.train(replace(short, steps=40), data=data)
    said = capsys.readouterr().err
    now = short.optimizer.lr_at(20, 40)
    told = f"{now:.3g} at step 21 of 40: the {decay} decay now ends at step 40, so it goes back up"
    assert (told in said) == ("learning rate" in said) == (decay != "none")


def test_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "table.npy", np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32))
    base = config(tmp_path / "run", data=DataSettings(data=str(tmp_path / "table.npy")))
    quietly(base)
    for path in (tmp_path / "run").glob("step-*"):
        shutil.rmtree(path)
    words = ["--steps", "20", "--batch", "4", "--threads", "1", "--preview", "0", "--network", "mlp-config"]
    assert main(["train", "--data", str(tmp_path / "table.npy"), "--out", str(tmp_path / "run"), *words]) == 4
    assert "Nothing was changed" in capsys.readouterr().err
    assert Logbook(tmp_path / "run", 20, 20, quiet=True).start == 20 and len(list((tmp_path / "run" / "snapshots").glob("step-*"))) == 4
