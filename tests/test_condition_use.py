"""Whether a model uses its condition: told by the held-out loss, in training's log and by `ddpm inspect RUN`."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import ddpm
from ddpm.cli import main
from ddpm.denoiser import Codec, Cond, Denoiser, Prediction
from ddpm.process import At, Cosine, Process
from ddpm.training.health.condition_use import condition_use, pairs
from ddpm.training.health.monitor import Monitor
from ddpm.training.held_out import held_out_loss
from ddpm.training.logbook import read_metrics
from small_runs import settings


def clouds(shuffled: bool, count: int = 600) -> ddpm.Dataset:
    """Two well separated clouds, named rightly or at random."""
    rng = np.random.default_rng(0)
    which = np.arange(count) % 2
    x = (np.where(which[:, None], 2.0, -2.0) + rng.normal(0.0, 0.5, (count, 3))).astype(np.float32)
    return ddpm.from_arrays(x, {"class": rng.permutation(which) if shuffled else which}, name="clouds", classes=("low", "high"))


@pytest.fixture(scope="module", params=[False, True], ids=["right", "shuffled"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bool, Path, str]:
    """A run on either, and what it said."""
    out = tmp_path_factory.mktemp("used") / "run"
    optimizer = ddpm.training.OptimizerSettings(lr=3e-3, warmup=10)
    config = settings(out, steps=200, batch=64, evaluate_every=100, checkpoint_every=200, log_every=50, optimizer=optimizer, ema=0.2)
    with contextlib.redirect_stderr(io.StringIO()) as text:
        ddpm.train(config, data=clouds(request.param))
    return request.param, out, text.getvalue()


def test_fires_on_shuffled_labels_and_is_silent_on_the_right_ones(run: tuple[bool, Path, str]) -> None:
    shuffled, out, said = run
    assert ("ignores its class" in said) == shuffled
    last = [row for row in read_metrics(out) if "condition_gain" in row][-1]
    assert last["condition_gain"] == last["condition_gain/class"]
    assert (abs(last["condition_gain"]) < 0.02) if shuffled else (last["condition_gain"] > 0.05)
    found = condition_use(ddpm.load(str(out)), clouds(shuffled), frozenset({"class"}), hidden=True)
    assert found is not None and found.used != shuffled
    assert found.hidden is not None and (shuffled or found.own < found.hidden < found.all.other)


def test_the_loss_of_the_own_condition_is_the_held_out_loss(run: tuple[bool, Path, str]) -> None:
    shuffled, out, _ = run
    model, data = ddpm.load(str(out)), clouds(shuffled)
    known = held_out_loss(model, data, frozenset({"class"}))
    assert known is not None
    whole, reused = (condition_use(model, data, frozenset({"class"}), own=own) for own in (None, known))
    assert whole is not None and reused is not None and whole == reused and whole.own == known.loss
    assert condition_use(model, data, frozenset()) is None


def test_inspect_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "digits"
    config = settings(out, network=ddpm.UNetConfig(channels=8, mults=(1,), attention=(), blocks=1), batch=16)
    ddpm.train(config, quiet=True)
    assert main(["inspect", str(out)]) == 0
    shown = capsys.readouterr().out
    assert (
        "another's" in shown and "class, 10: 0, 1, 2" in shown and "WARNING: " in shown and "ignores its class" in shown
    )  # 4 steps teach nothing
    assert main(["inspect", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["condition"]["used"] is False and len(told["condition"]["bins"]) > 3
    assert told["condition"]["keys"]["class"]["used"] is False and told["condition"]["keys"]["class"]["pairs"] == told["condition"]["pairs"]


def test_a_run_on_data_from_python_shows_its_facts_and_says_where_the_rest_is(
    run: tuple[bool, Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(run[1])]) == 3
    shown = capsys.readouterr()
    assert "class, 2: low, high" in shown.out and "not the data" in shown.err and "metrics.jsonl (condition_gain)" in shown.err


@pytest.mark.parametrize("reads", [True, False])
def test_a_network_that_is_deaf_to_null_is_told_of(reads: bool, tmp_path: Path) -> None:
    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(3, 8)
            self.net = torch.nn.Sequential(torch.nn.Linear(12, 64), torch.nn.SiLU(), torch.nn.Linear(64, 3))

        def forward(self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor]) -> Tensor:
            which = cond["class"].masked_fill(cond["null"], 2) if reads and "null" in cond else cond["class"]
            return self.net(torch.cat([x, (c_noise / 1000)[:, None], self.table(which)], 1))

    optimizer = ddpm.training.OptimizerSettings(lr=3e-3, warmup=10)
    config = settings(
        tmp_path / "run", steps=200, batch=64, evaluate_every=200, checkpoint_every=200, optimizer=optimizer, ema=0.2, network=None
    )
    with contextlib.redirect_stderr(io.StringIO()) as text:
        ddpm.train(config, data=clouds(shuffled=False), network=Own())
    assert ("the network answers the same when" in text.getvalue()) != reads


class Named(Denoiser):
    """Knows each class's mean, and nothing else; a vector says nothing to it."""

    def __init__(self) -> None:
        super().__init__()
        self.process, self.shape = Process(Cosine(clip=0.999)), (1,)
        self.codec = Codec(shift=(0.0,), scale=(1.0,))

    def forward(self, x: Tensor, at: At, cond: Cond = None) -> Prediction:
        assert cond is not None
        x0 = torch.where(cond["class"] == 1, 2.0, -2.0)[:, None].to(x).expand_as(x)
        return Prediction(x0, (x - at.alpha * x0) / at.sigma, None)

    def residual(self, at: At) -> Tensor:
        return torch.zeros_like(at.t)


def two(which: np.ndarray, **cond: np.ndarray) -> ddpm.Dataset:
    """Samples about -2 and 2, by class."""
    x = (np.where(which[:, None], 2.0, -2.0) + np.random.default_rng(0).normal(0.0, 0.5, (len(which), 1))).astype(np.float32)
    return ddpm.from_arrays(x, {"class": which, **cond}, name="two")


def test_data_sorted_by_class_are_seen_evenly() -> None:
    """The first held-out samples of class folders are all of one class, whose conditions tell nothing from each other."""
    data = two(np.repeat([0, 1], 3000))
    assert len(set(data.cond["class"][data.held_rows[:256]])) == 1
    found = condition_use(Named(), data, frozenset({"class"}))
    assert found is not None and found.used
    alike = ddpm.from_arrays(np.asarray(data.samples), {"class": np.zeros(6000, dtype=int)}, name="alike")
    assert condition_use(Named(), alike, frozenset({"class"})) is None  # nothing to tell apart


def test_every_bin_has_the_losses_of_its_own_noise_levels() -> None:
    """The error of x0 is the same at all: 1/4 with the own class, 16 + 1/4 with the other, and in noise alpha^2/sigma^2 times that."""
    found = condition_use(Named(), two(np.arange(4000) % 2), frozenset({"class"}), samples=800)
    assert found is not None and len(found.bins) >= 4
    for name, (own, _, other) in found.bins.items():
        assert other / own == pytest.approx(65.0, rel=0.4), name
        low, high = (float(end) for end in name.split(".."))
        snr = own / 0.25
        assert np.exp(low) * 0.8 < snr < np.exp(high) * 1.25, name


def test_a_condition_that_is_heeded_does_not_hide_one_that_is_ignored() -> None:
    which = np.arange(2000) % 2
    data = two(which, vector=np.random.default_rng(1).normal(size=(2000, 2)))
    found = condition_use(Named(), data, frozenset({"class", "vector"}))
    assert found is not None and found.all.used and found.keys["class"].used
    assert found.ignored == ["vector"] and found.keys["vector"].gain == 0.0 and not found.used
    assert found.logged()["condition_gain/vector"] == 0.0 < found.logged()["condition_gain/class"]
    monitor = Monitor(settled=0)
    (line,) = monitor.condition_used(3, found)
    assert "step 3: " in line and "ignores its vector" in line and monitor.condition_used(4, found) == []


def test_partners_differ_where_they_can_and_few_pairs_accuse_nobody() -> None:
    first, second = pairs([np.repeat([0, 1, 2], [10, 7, 3])])
    assert sorted(first) == sorted(second) == list(range(20))  # no class has more than half: each has a partner of another class
    told = np.repeat([0, 1], [95, 5])
    first, second = pairs([told])
    assert len(first) == 10 and (told[first] != told[second]).all()
    both = pairs([told, np.arange(100)])  # one of two conditions is enough
    assert len(both[0]) == 100
    rare = two(np.arange(2000) % 100 // 99)  # 1 in 100
    found = condition_use(Named(), rare, frozenset({"class"}))
    assert found is not None and not found.keys["class"].enough and found.ignored == []
    assert found.words("class").startswith("too few rows differ in class") and Monitor(settled=0).condition_used(3, found) == []
    assert found.own < found.all.other  # measured on the pairs that differ alone
    some = two(np.arange(2000) % 8 // 7)  # 1 in 8: more than 20 pairs, and most of the samples in none
    found = condition_use(Named(), some, frozenset({"class"}))
    assert found is not None and 40 < found.all.pairs < 60 and found.used
    assert found.all.share > 0.9  # not diluted by those that are told the same
