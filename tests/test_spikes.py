"""Leaps of the loss: seen, gone back from, passed over; and never seen where there are none."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm.errors import NonFiniteError
from ddpm.training import OptimizerSettings, TrainConfig, Trainer, train
from ddpm.training.feed import Feed
from ddpm.training.health import spikes
from ddpm.training.health.spikes import Spikes
from many import FLAGS, Many, numbers
from small_runs import digests, environment, held, metrics, quietly, settings, start, table, trainer_for

TRAINED = OptimizerSettings(lr=1e-3, warmup=10)


def leaping(monkeypatch: pytest.MonkeyPatch, *, times: int) -> list[int]:
    """Weights 30 times as large after step 90, so that step 91 meets them; the steps at which that was done."""
    step, done = Trainer.step, list[int]()

    def stepping(trainer: Trainer, *words: Any) -> Tensor | None:
        if trainer.state.step == 90 and len(done) < times:
            done.append(trainer.state.step)
            with torch.no_grad():
                for parameter in trainer.parameters:
                    parameter.mul_(30.0)
        return step(trainer, *words)

    monkeypatch.setattr(Trainer, "step", stepping)
    return done


def config(out: Path, **changes: Any) -> TrainConfig:
    """A run of 120 steps with checkpoints at every twentieth."""
    return settings(out, **{"steps": 120, "checkpoint_every": 20, "log_every": 1, "optimizer": TRAINED, **changes})


def test_after_a_leap_the_run_is_that_of_its_checkpoint_with_other_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps 91 to 100 leap; back to 80, and steps 81.. take batches 101..: to the last bit the run that was stopped at 80 and fed those.

    Stopped and resumed after it, it ends the same; the log has every step once.
    """
    data = table()
    with monkeypatch.context() as patch:
        done = leaping(patch, times=1)
        train(config(tmp_path / "leapt"), data=data)
        assert done == [90]
    said = capsys.readouterr().err
    assert "the loss leapt at step 91 and stayed above" in said and "back to step 80 (verified), 20 batches passed over (1/3)" in said
    rows = metrics(tmp_path / "leapt")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 121))
    assert [(row["step"], row["rolled_back_from"]) for row in rows if "rolled_back_from" in row] == [(80, 100)]
    assert max(row["loss"] for row in rows if "loss" in row) < 20  # nothing of the leap is left
    with monkeypatch.context() as patch:
        leaping(patch, times=1)
        quietly(config(tmp_path / "stopped", steps=110), data=data)
    quietly(config(tmp_path / "stopped"), data=data)
    feed = Feed.drawn
    quietly(config(tmp_path / "clean", steps=80), data=data)
    monkeypatch.setattr(Feed, "drawn", lambda source, now, *rest: feed(source, now + 20, *rest))
    quietly(config(tmp_path / "clean"), data=data)
    wanted = digests(tmp_path / "clean")
    assert digests(tmp_path / "leapt") == wanted == digests(tmp_path / "stopped")
    state = held(tmp_path / "leapt").document("state")
    assert state["skipped"] == 20 and state["step"] == state["good_steps"] == 120


def test_a_second_leap_passes_over_other_batches_than_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice from 100 back to 80: the second time 20 batches more are passed over, none is met again."""
    leaping(monkeypatch, times=2)
    fed, feed = list[int](), Feed.drawn

    def batch(source: Feed, now: int, *rest: int) -> Any:
        fed.append(now)
        return feed(source, now, *rest)

    monkeypatch.setattr(Feed, "drawn", batch)
    quietly(config(tmp_path, prefetch=0), data=table())
    assert held(tmp_path).document("state")["skipped"] == 40
    assert fed == list(range(160))


def test_a_resumed_run_remembers_what_was_usual(tmp_path: Path) -> None:
    """A leap is seen at the same step whether or not the run was stopped before it."""
    trainer = trainer_for(tmp_path, table(), steps=60)
    watch = trainer.state.spikes
    for step in range(60):
        watch.lasting(1.0 + 0.01 * (step % 7), step)
    assert not watch.lasting(50.0, 60)
    watch.returns, watch.until = 2, 57
    trainer.save(lambda text: None)
    again = trainer_for(tmp_path, table(), steps=60).state
    again.load(held(tmp_path))
    assert again.spikes.state() == watch.state() and len(again.spikes.usual) == 60
    assert [again.spikes.lasting(50.0, step) for step in range(61, 70)] == [False] * 8 + [True] and again.spikes.began == 60


def test_a_leap_that_always_comes_back_ends_the_run_with_a_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = leaping(monkeypatch, times=100)
    with pytest.raises(NonFiniteError, match="the loss leapt at step 91 .* after 3 roll-backs, .* step-0000080 is good") as caught:
        quietly(config(tmp_path), data=table())
    assert caught.value.exit_code == 6 and len(done) == 4 and held(tmp_path).step == 80
    assert (tmp_path / "latest").read_text(encoding="utf-8").strip() == "step-0000080"


def test_without_a_checkpoint_or_when_told_not_to_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leaping(monkeypatch, times=1)
    train(config(tmp_path / "a", checkpoint_every=1000), data=table())
    assert capsys.readouterr().err.count("no checkpoint is older, so training goes on") == 1
    leaping(monkeypatch, times=1)
    train(config(tmp_path / "b", rollback=0), data=table())
    assert "leapt" not in capsys.readouterr().err
    assert held(tmp_path / "a").document("state")["skipped"] == held(tmp_path / "b").document("state")["skipped"] == 0


def test_a_checkpoint_written_within_a_leap_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaping(monkeypatch, times=1)
    left, drop = list[list[str]](), spikes.drop_after

    def dropping(run: Path, *rest: Any) -> int:
        left.append(sorted(path.name for path in run.glob("step-*")))
        return drop(run, *rest)

    monkeypatch.setattr(spikes, "drop_after", dropping)
    quietly(config(tmp_path, checkpoint_every=19, keep=3, steps=101), data=table())  # one at 95, in the leap of 91 to 100
    assert left == [["step-0000057", "step-0000076"]]
    assert held(tmp_path).document("state")["skipped"] == held(tmp_path, 95).document("state")["skipped"] == 100 - 76


@pytest.mark.parametrize("seed", range(3))
def test_no_false_alarm_in_clean_runs(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddpm.training.trainer.roll_back", lambda *_: pytest.fail("a false alarm"))
    quietly(settings(tmp_path, seed=seed, steps=300, batch=2, optimizer=OptimizerSettings(lr=1e-2, warmup=1)), data=table())


@pytest.mark.parametrize("kind", ["normal", "heavy tails", "falling", "negative"])
def test_no_false_alarm_in_noise_of_any_kind_and_a_leap_is_seen(kind: str) -> None:
    rng, steps = np.random.default_rng(1), np.arange(3000)
    losses = {
        "normal": 1.0 + 0.2 * rng.normal(size=3000),
        "heavy tails": np.exp(1.5 * rng.normal(size=3000)),  # single losses hundreds of times the median
        "falling": 0.02 + 3.0 * np.exp(-steps / 300) * (1 + 0.1 * rng.normal(size=3000)),
        "negative": -3.0 + 0.1 * rng.normal(size=3000),
    }[kind]
    watch = Spikes()
    assert not any(watch.lasting(float(loss), step) for step, loss in enumerate(losses))
    level = float(np.median(losses[-200:]) + 100 * np.std(losses[-200:]) + 10)
    assert [watch.lasting(level, 3000 + k) for k in range(10)] == [False] * 9 + [True] and watch.began == 3000
    again = Spikes()
    again.load(watch.state())
    assert again.state() == watch.state()


BAD_BATCHES = """
import ddpm.training.feed as feed
real = feed.Feed.drawn
def batch(self, step, part, shard=0):
    made = real(self, step, part, shard)
    return made._replace(x0=made.x0 * 100.0) if 90 <= step < 100 and shard == 1 else made
feed.Feed.drawn = batch
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="starts processes")
def test_two_processes_go_back_together(tmp_path: Path) -> None:
    """Batches of one rank are bad: both decide at the same step, and end with the bits of one process that met the same."""
    (tmp_path / "sitecustomize.py").write_text(BAD_BATCHES, encoding="utf-8")
    where = {"PYTHONPATH": os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])}
    words = "--steps 120 --checkpoint-every 20 --lr 1e-3 --warmup 10"
    code, said = Many.start(tmp_path / "two", words, env=where).end()
    told = "back to step 80 (verified), 20 batches passed over (1/3)"
    assert code == 0 and said.count(told) == 1 and "the loss leapt at step 91 " in said, said
    run = ["train", "--data", str(numbers(tmp_path)), "--out", str(tmp_path / "one"), "--logical-shards", "2"]
    with start(*run, *FLAGS.split(), *words.split(), **where) as process:
        _, said = process.communicate(timeout=240)
    assert process.returncode == 0 and told in said, said
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
