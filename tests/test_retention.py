"""Which checkpoints stay: the newest by count, the best by held-out loss; never more on the disk than promised, and readers never torn."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm.cli import main
from ddpm.data.dataset import Dataset
from ddpm.errors import CheckpointError, ConfigError
from ddpm.training import Trainer
from ddpm.training.checkpoints import storage
from ddpm.training.checkpoints.checkpoint import best, clean, newest, open_checkpoint, save
from ddpm.training.state import load, open_run
from small_runs import digests, environment, held, metrics, quietly, settings, table

posix = pytest.mark.skipif(os.name == "nt", reason="needs fork and signals")


def write(run: Path, step: int, loss: float | None, keep: int = 1, keep_best: int = 0, of: str = "4 of abc") -> Path:
    model = {"w": torch.full((64, 4), float(step))}
    held_out = None if loss is None else {"loss": loss, "of": of}
    return save(run, step, {"model": model}, {"state": {"step": step, "held_out": held_out}}, keep, keep_best=keep_best)


def steps_of(run: Path) -> set[int]:
    return {int(path.name[5:]) for path in run.glob("step-???????")}


# by metric ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_the_best_of_all_that_were_ever_saved_stay(seed: int, tmp_path: Path) -> None:
    """Against a recount of everything: random losses, ties among them, and saves at steps that were not measured."""
    draw = random.Random(seed)
    keep, keep_best = draw.randint(1, 3), draw.randint(1, 3)
    losses: dict[int, float] = {}
    for step in range(1, 16):
        loss = None if draw.random() < 0.2 else draw.randint(0, 6) / 4
        write(tmp_path, step, loss, keep, keep_best)
        if loss is not None:
            losses[step] = loss
        order = sorted(losses, key=lambda number: (losses[number], -number))
        assert steps_of(tmp_path) == {*range(max(1, step - keep + 1), step + 1), *order[:keep_best]}
        if losses:
            assert best(tmp_path, pytest.fail).step == order[0]


def test_without_it_nothing_changes_and_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddpm.training.checkpoints.checkpoint.ranked", pytest.fail)
    for step, loss in ((1, 0.1), (2, 0.2), (3, 0.3)):
        write(tmp_path, step, loss, keep=2)
    assert steps_of(tmp_path) == {2, 3}


def test_a_damaged_best_gives_way_and_is_named(tmp_path: Path) -> None:
    for step, loss in ((1, 0.1), (2, 0.2), (3, 0.3)):
        write(tmp_path, step, loss, keep=3)
    damaged = tmp_path / "step-0000001" / "model.safetensors"
    size = damaged.stat().st_size
    damaged.write_bytes(b"\0\0\0\0")
    notices: list[str] = []
    assert best(tmp_path, notices.append).step == 2
    assert notices == [f"step 1: model.safetensors has 4 bytes, manifest.json says {size}; using step 2, held-out loss 0.2"]
    state = tmp_path / "step-0000002" / "state.json"
    state.write_text(state.read_text().replace("0.2", "0.0"))  # a loss that is not the saved one counts for nothing
    assert best(tmp_path, notices.append).step == 3
    (tmp_path / "step-0000003" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint that can be called best\n  step 1: .*bytes.*\n  step 3: .*missing") as caught:
        best(tmp_path)
    assert caught.value.exit_code == 4


def test_losses_on_other_samples_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path, 1, 0.1, keep=9, of="4 of the old data")
    write(tmp_path, 2, 0.5, keep=9)
    write(tmp_path, 3, 0.6, keep=9)
    assert best(tmp_path).step == 2
    write(tmp_path, 4, None, keep=1, keep_best=1)
    assert steps_of(tmp_path) == {2, 4}


@pytest.fixture(scope="module")
def data() -> Dataset:
    return table(60)


def test_a_run_keeps_and_opens_its_best(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss is made to fall and rise again by spoiling the average that is measured: the best is neither first nor last."""
    straight = tmp_path / "straight"
    quietly(settings(straight, steps=12), data=data)
    monkeypatch.setattr("ddpm.training.run.loss_figure", lambda folder: None)
    evaluate = Trainer.evaluate

    def spoiled(trainer: Trainer, *words: Any) -> dict[str, object]:
        made = evaluate(trainer, *words)
        trainer.state.scored(float(made["held_out_loss"]) + abs(trainer.state.step - 6), data.card)
        return made

    monkeypatch.setattr(Trainer, "evaluate", spoiled)
    run = tmp_path / "run"
    quietly(settings(run, steps=12, checkpoint_every=2, keep=2, keep_best=1), data=data)
    assert steps_of(run) == {6, 10, 12} and digests(run) == digests(straight)
    (row,) = [row for row in metrics(run) if row["step"] == 6 and "held_out_loss" in row]
    assert held(run, 6).document("state")["held_out"]["loss"] == row["held_out_loss"]
    assert open_run(run, "best").step == 6
    for name, value in load(run, step="best").state_dict().items():
        assert torch.equal(value, held(run, 6).tensors("ema-0.050")[name])
    words = ["sample", str(run), "--n", "3", "--steps", "2", "--threads", "1"][:6]
    assert main([*words, "--step", "best", "--out", str(tmp_path / "a")]) == 0
    assert "step 6" in capsys.readouterr().out
    assert main([*words, "--step", "6", "--out", str(tmp_path / "b")]) == 0
    same = [next((tmp_path / name).glob("*.npz")).read_bytes() for name in ("a", "b")]
    assert same[0] == same[1]
    with pytest.raises(ConfigError, match="best"):
        open_run(run / "step-0000012", "best")


def test_without_held_out_samples_there_is_no_best(tmp_path: Path) -> None:
    quietly(settings(tmp_path, keep_best=1), data=table(holdout=0.0))
    with pytest.raises(CheckpointError, match="samples must be held out"):
        open_run(tmp_path, "best")


# on the disk ----------------------------------------------------------------------------------------------------------------


def used(run: Path) -> int:
    """Bytes of a run, as long as nothing vanishes while it is counted."""
    return sum(path.stat().st_size for path in run.rglob("*") if path.is_file())


@posix
@pytest.mark.parametrize("keep_best", [0, 2])
@pytest.mark.parametrize("keep", [1, 3])
def test_peak_disk_and_good_checkpoints_at_every_boundary(
    keep: int, keep_best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at after every step of every save: room for one more than is kept, and never fewer good ones than are kept."""
    one = used(write(tmp_path / "one", 1, 0.5))
    peak, fewest = 0, 99

    def look(name: str) -> None:
        nonlocal peak, fewest
        peak = max(peak, used(tmp_path / "run"))
        whole = 0
        for path in (tmp_path / "run").glob("step-???????"):
            whole += open_checkpoint(path).step >= 0  # raises where one is not whole
        fewest = min(fewest, whole)

    for step in range(1, 9):
        if step == keep + keep_best + 1:
            monkeypatch.setattr(storage, "boundary", look)
        write(tmp_path / "run", step, 1.0 + step, keep, keep_best)  # the first ones stay the best
    assert len(steps_of(tmp_path / "run")) == keep + keep_best == fewest
    assert one * (keep + keep_best + 0.9) < peak < one * (keep + keep_best + 1) + 200  # 200: `latest`, and numbers of other lengths


SAVER = """
import sys
from pathlib import Path
from typing import Any
sys.path.insert(0, sys.argv[2])
from test_retention import write
for step in range(int(sys.argv[3]), 1_000_000):
    write(Path(sys.argv[1]), step, 1.0, 1, 0)
"""


@posix
def test_readers_race_the_pruner_and_the_pruner_is_killed(tmp_path: Path) -> None:
    """A process that saves and prunes without pause, killed and started again three times, while this one reads all the time."""
    run, read, last = tmp_path / "run", 0, 0
    for _ in range(3):
        words = [sys.executable, "-c", SAVER, str(run), str(Path(__file__).parent), str(last + 1)]
        process = subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True)
        try:
            limit = time.monotonic() + 60
            steps: set[int] = set()
            while len(steps) < 15 and time.monotonic() < limit:
                assert process.poll() is None, process.stderr and process.stderr.read()
                found = newest(run, notice=pytest.fail)
                if found is None:
                    assert not last, "the kept checkpoint is gone"
                    continue
                assert found.step >= last
                last = found.step
                try:
                    assert torch.equal(found.tensors("model")["w"], torch.full((64, 4), float(last)))
                    read += 1
                    steps.add(last)
                except CheckpointError as error:
                    assert "was pruned while it was read; use step" in str(error)
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        left = newest(run, notice=pytest.fail)
        assert left and left.step >= last and len(steps_of(run)) <= 2, "more than the kept one and one that was about to go"
        last = left.step
        clean(run, lambda text: None)
    assert read >= 45


@posix
@pytest.mark.parametrize("wanted", ["prune rename", "prune remove", "rename latest", "fsync run"])
def test_killed_while_pruning_the_best_stays(wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step, loss in ((1, 0.1), (2, 0.5), (3, 0.4)):
        write(tmp_path, step, loss, keep=2, keep_best=1)
    assert steps_of(tmp_path) == {1, 2, 3}
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(storage, "boundary", lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == wanted else None)
        write(tmp_path, 4, 0.3, keep=2, keep_best=1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    clean(tmp_path, lambda text: None)
    assert best(tmp_path, pytest.fail).step == 1 and steps_of(tmp_path) >= {1, 3, 4}
    write(tmp_path, 5, 0.05, keep=2, keep_best=1)
    assert steps_of(tmp_path) == {4, 5} and json.loads((tmp_path / "step-0000005" / "state.json").read_text())["held_out"]["loss"] == 0.05
