"""Stop and resume: whatever interrupts a run, its end is that of a run nobody touched, to the last bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch

from ddpm.data import DataSettings
from ddpm.data.dataset import Dataset
from ddpm.errors import CheckpointError, DataError
from ddpm.networks.config import MLPConfig
from ddpm.objective import Denoising
from ddpm.process import Straight
from ddpm.training import TrainConfig, Trainer, run, stop, trainer
from ddpm.training.checkpoints import storage
from ddpm.training.checkpoints.checkpoint import newest
from ddpm.training.feed import Batch, Feed
from small_runs import digests, held, metrics, quietly, settings, start, table, trainer_for

STEPS = 40
posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")


@pytest.fixture(autouse=True)
def _no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "loss_figure", lambda folder: None)


@pytest.fixture(scope="module")
def data() -> Dataset:
    """99 training rows: epochs end in the middle of steps 17 and 33, within an accumulation."""
    return table(110, classes=3)


def config(out: Path, **changes: object) -> TrainConfig:
    """Everything that has a state of its own: dropout, dropped conditions, accumulation, loss history and learned uncertainty."""
    loss = Denoising(uncertainty=True, importance=True)
    network = MLPConfig(width=8, depth=1, dropout=0.2)
    base = settings(out, steps=STEPS, batch=2, accumulate=3, schedule=Straight(), loss=loss, network=network, cond_dropout=0.3)
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, data: Dataset) -> dict[str, str]:
    """What the uninterrupted run ends with; it neither saves, nor measures, nor shows on the way."""
    out = tmp_path_factory.mktemp("straight")
    assert quietly(config(out), data=data).code == 0
    found = digests(out)
    assert {name.split("/")[0] for name in found} == {"model", "ema-0.050", "optimizer", "loss", "state"}
    assert "loss/importance.seen" in found and "loss/uncertainty.linear.weight" in found
    return found


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory, data: Dataset) -> Path:
    """A run that saves, measures and draws at every step."""
    out = tmp_path_factory.mktemp("steps")
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 0)
        quietly(config(out), data=data)
    quietly(config(out, checkpoint_every=1, evaluate_every=1, preview=1, keep=STEPS + 1), data=data)
    return out


def interrupt(patch: pytest.MonkeyPatch, step: int, part: int = 1, number: signal.Signals = signal.SIGINT) -> None:
    """A signal while a pass of the step is fed (0: before the first step)."""
    feed, fit = Feed.drawn, Trainer.fit

    def batch(self: Feed, now: int, place: int, shard: int = 0) -> Batch:
        if (now + 1, place) == (step, part):
            signal.raise_signal(number)
        return feed(self, now, place, shard)

    def begin(self: Trainer, *words: object) -> None:
        signal.raise_signal(number)
        fit(self, *words)  # type: ignore[arg-type]

    patch.setattr(*(Feed, "drawn", batch) if step else (Trainer, "fit", begin))


def test_saving_measuring_and_showing_change_nothing(steps: Path, straight: dict[str, str]) -> None:
    assert digests(steps) == straight


def copied(steps: Path, step: int, out: Path) -> Path:
    """A run that was left after `step` steps."""
    shutil.copytree(steps / f"step-{step:07d}", out / f"step-{step:07d}")
    shutil.copy(steps / "data_card.json", out)
    return out


@pytest.mark.parametrize("first", range(0, STEPS + 1, 8))
def test_resume_at_every_step(first: int, steps: Path, tmp_path: Path, data: Dataset) -> None:
    """One of eight goes to the end, the others over the next five steps: what they reach is compared with that step of the other run."""
    for step in range(first, min(first + 8, STEPS + 1)):
        out, end = copied(steps, step, tmp_path / str(step)), STEPS if step == first else min(step + 5, STEPS)
        quietly(config(out, steps=end), data=data)
        assert digests(out) == digests(steps, end), f"resumed at step {step}"
        shutil.rmtree(out)


@pytest.mark.parametrize("seed", range(20))
def test_two_and_three_stops_in_a_row(seed: int, steps: Path, tmp_path: Path, data: Dataset) -> None:
    rng = np.random.default_rng(seed)
    step = int(rng.integers(STEPS - 16))
    out = copied(steps, step, tmp_path / "run")
    for _ in range(2 + seed % 2):
        step += int(rng.integers(1, 5))
        number = (signal.SIGINT, signal.SIGTERM)[step % 2]
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, step, int(rng.integers(3)), number)
            assert quietly(config(out, log_every=1), data=data).code == 128 + number
        assert digests(out) == digests(steps, step)
    assert quietly(config(out, steps=step + 4, log_every=1), data=data).code == 0
    assert digests(out) == digests(steps, step + 4)
    logged = [(row["step"], *row) for row in metrics(out)]
    assert len(set(logged)) == len(logged)


@pytest.mark.parametrize("where", ["held_out_loss", "preview", "fsync state.json", "rename", "prune rename"])
def test_a_signal_in_a_measurement_a_picture_or_a_save(
    where: str, steps: Path, tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = config(tmp_path, steps=12, checkpoint_every=5, evaluate_every=5, preview=1, keep=1)

    sent: list[str] = []

    def once() -> None:
        if not sent:
            sent.append(where)
            signal.raise_signal(signal.SIGTERM)

    def boundary(name: str) -> None:
        if name == where:
            once()

    with monkeypatch.context() as patch:
        if where in ("held_out_loss", "preview"):
            done = getattr(trainer, where)

            def wrapped(*words: object, **more: object) -> object:
                once()
                return done(*words, **more)

            patch.setattr(trainer, where, wrapped)
        else:
            patch.setattr(storage, "boundary", boundary)
        assert quietly(here, data=data).code == 143
    assert sent and held(tmp_path).step in (5, 10)
    assert quietly(here, data=data).code == 0 and digests(tmp_path) == digests(steps, 12)


def test_a_larger_number_of_steps_continues(
    straight: dict[str, str], tmp_path: Path, data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    quietly(config(tmp_path, steps=15), data=data)
    run.train(config(tmp_path, steps=15), data=data)
    assert "has 15 steps already; a larger --steps continues it" in capsys.readouterr().err
    quietly(config(tmp_path), data=data)
    assert digests(tmp_path) == straight


def test_residual_moments_survive_a_stop_before_the_next_measurement(tmp_path: Path, data: Dataset) -> None:
    quietly(config(tmp_path, steps=5), data=data)
    measured = held(tmp_path).document("config")["residuals"]
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 7)
        quietly(config(tmp_path), data=data)
    assert held(tmp_path).step == 7 and held(tmp_path).document("config")["residuals"] == measured is not None


# --- by the command line ------------------------------------------------------------------------------------------------------------------

FLAGS = ["--batch", "4", "--threads", "1", "--preview", "0", "--network", "mlp-config", "--network.width", "8", "--network.depth", "1"]


def wait_for(path: Path, process: subprocess.Popen[str], text: str) -> None:
    """Until a file of the run says it, for at most a minute."""
    for _ in range(1200):
        if path.is_file() and text in path.read_text(encoding="utf-8"):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"{path} never said {text}")


@posix
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_resume(number: signal.Signals, tmp_path: Path) -> None:
    np.save(tmp_path / "table.npy", np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32))
    out = tmp_path / "my run"
    words = ["train", "--data", str(tmp_path / "table.npy"), "--out", str(out), "--steps", "1000000", "--log-every", "1", *FLAGS]
    with start(*words) as process:
        wait_for(out / "metrics.jsonl", process, '"step": 5,')
        begin = time.monotonic()
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number and time.monotonic() - begin < 10
    step = held(out).step
    assert f"stopping after step {step}; it is saved. Resume: ddpm train" in said and f"--out '{out}'" in said and "Traceback" not in said
    words[words.index("1000000")] = str(step + 2)
    with start(*words) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0 and f"Resumed from step {step} (verified)" in said and held(out).step == step + 2
    logged = [row["step"] for row in metrics(out) if "loss" in row]
    assert logged == list(range(1, step + 3))


def test_a_second_signal_leaves_at_once(tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []

    def leave(code: int) -> NoReturn:
        left.append(code)
        raise SystemExit(code)

    monkeypatch.setattr(stop.os, "_exit", leave)
    fed = Feed.drawn

    def batch(self: Feed, now: int, place: int, shard: int = 0) -> Batch:
        if now == 7:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
        return fed(self, now, place, shard)

    monkeypatch.setattr(Feed, "drawn", batch)
    with pytest.raises(SystemExit):
        quietly(config(tmp_path, checkpoint_every=5), data=data)
    assert left == [143] and held(tmp_path).step == 5


def test_data_may_move_but_not_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    np.save(tmp_path / "here.npy", samples)
    (tmp_path / "elsewhere").mkdir()
    np.save(tmp_path / "elsewhere" / "there.npy", samples)
    samples[3, 1] += 1.0
    np.save(tmp_path / "changed.npy", samples)
    base = settings(tmp_path / "run", data=DataSettings(data=str(tmp_path / "here.npy")))
    quietly(base)
    quietly(replace(base, steps=6, data=DataSettings(data=str(tmp_path / "elsewhere" / "there.npy"))))
    assert held(tmp_path / "run").step == 6
    other = replace(base, steps=8, data=DataSettings(data=str(tmp_path / "changed.npy")))
    with pytest.raises(DataError, match="another fingerprint. Give the same data") as caught:
        quietly(other)
    assert caught.value.exit_code == 3
    with pytest.raises(DataError):  # and again: the refusal itself must not accept them
        quietly(other)
    codec = held(tmp_path / "run").document("config")["codec"]
    quietly(replace(other, accept_data_change=True))
    assert held(tmp_path / "run").step == 8 and held(tmp_path / "run").document("config")["codec"] == codec


def test_weights_of_a_loss_that_are_not_there_any_more_are_named(tmp_path: Path) -> None:
    """As after a loss lost or gained some: nothing is changed then."""
    data = table()
    quietly(settings(tmp_path / "with", loss=Denoising(uncertainty=True)), data=data)
    saved = newest(tmp_path / "with")
    assert saved is not None
    plain = trainer_for(tmp_path / "plain", data)
    before = [weights.clone() for weights in plain.denoiser.parameters()]
    with pytest.raises(CheckpointError, match="trained with a loss that had other weights"):
        plain.state.load(saved)
    assert all(torch.equal(a, b) for a, b in zip(before, plain.denoiser.parameters(), strict=True))
