"""What watches over a run: which layer and which file a bad number came from, and every noise level by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ddpm.data import DataSettings, from_arrays, open_data
from ddpm.data.dataset import Dataset
from ddpm.denoiser import Codec
from ddpm.denoiser.exact import gaussian
from ddpm.networks.config import MLPConfig
from ddpm.objective import Denoising
from ddpm.objective.settings import VariationalBound
from ddpm.objective.times import LogNormalSigma, Stratified
from ddpm.process import Cosine, Linear, Process, Straight
from ddpm.training import Trainer, train
from ddpm.training.feed import Batch, Feed
from ddpm.training.health.monitor import Monitor, bin_gradients
from ddpm.training.held_out import BINS, binned, gaussian_floors, held_out_loss
from small_runs import SMALL_UNET, digests, held, metrics, quietly, settings, table, trainer_for

Broken = Callable[[Tensor], Tensor]


class NaNBackwards(torch.autograd.Function):
    """The identity, whose gradient is NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * float("nan")


class Middle(nn.Module):
    """A layer that does to its input whatever it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.act: Broken | None = None

    def forward(self, x: Tensor) -> Tensor:
        return x if self.act is None else self.act(x)


class Layers(nn.Module):
    """A person's own network of three layers, with running statistics; `between` is done to what the last one is given."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 3)  # named first: a list of all parameters begins with it
        self.first, self.norm, self.middle = nn.Linear(3, 8), nn.BatchNorm1d(8), Middle()
        self.between: Broken | None = None

    def forward(self, x: Tensor, c_noise: Tensor, cond: object) -> Tensor:
        hidden = self.middle(torch.relu(self.norm(self.first(x))))
        return self.last(hidden if self.between is None else self.between(hidden))


@pytest.mark.parametrize(
    ("place", "what", "told"),
    [
        ("middle", lambda x: x * float("inf"), "it came first out of network.middle (Middle), whose input is finite (up to "),
        ("between", lambda x: x * float("nan"), "it is in the input of network.last (Linear) already, so the code that calls that made it"),
        ("loss", None, "every layer is finite, so the loss itself made it"),
        ("once", None, "the same pass again is finite: chance, or the machine"),
        (
            "middle",
            NaNBackwards.apply,
            "in the gradient of network.first.weight, network.first.bias, network.norm.weight; the step",
        ),
    ],
)
def test_the_layer_that_made_it_is_named(
    place: str, what: Broken | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network, step = Layers(), Trainer.step

    def stepping(trainer: Trainer, *words: Any) -> Tensor | None:
        bad = trainer.state.step == 4
        network.middle.act = what if bad and place == "middle" else None
        network.between = what if bad and place == "between" else None
        calls: list[int] = []

        def hook(module: nn.Module, given: object, made: Tensor) -> Tensor:
            calls.append(1)
            return made * float("nan") if place == "loss" or len(calls) == 1 else made

        handle = trainer.loss.register_forward_hook(hook) if bad and place in ("loss", "once") else None
        loss = step(trainer, *words)
        if handle:
            handle.remove()
        return loss

    monkeypatch.setattr(Trainer, "step", stepping)
    train(settings(tmp_path, steps=6), network=network, data=table())
    said = capsys.readouterr().err
    assert "step 5: not finite in " in said and told in said
    assert held(tmp_path).document("state")["good_steps"] == 5


def test_the_files_of_the_bad_rows_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rng, folder = np.random.default_rng(0), tmp_path / "pictures"
    folder.mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8)).save(folder / f"scan {i}.png")
    feed, fed = Feed.drawn, list[int]()

    def batch(source: Feed, now: int, part: int, shard: int = 0) -> Batch:
        made = feed(source, now, part, shard)
        if now == 2:
            made.x0[1] = float("nan")
            fed.append(int(made.rows[1]))
        return made

    monkeypatch.setattr(Feed, "drawn", batch)
    memory = open_data(DataSettings(data=str(folder), holdout=0.0))
    train(settings(tmp_path / "run", network=SMALL_UNET), data=memory)
    assert f"not finite in the batch: data rows [{fed[0]}] (scan {fed[0]}.png); the step" in capsys.readouterr().err
    monkeypatch.setattr("ddpm.data.pictures.allowance", lambda share: 1)  # the same pictures, left in their files
    on_demand = open_data(DataSettings(data=str(folder), holdout=0.0, channels="grey"))
    assert type(on_demand.samples) is not type(memory.samples) and on_demand.name(7) == memory.name(7) == "scan 7.png"
    assert table().name(3) is None


# --- every noise level by itself ----------------------------------------------------------------------------------------------------------


def everything(out: Path, **changes: Any) -> Any:
    """Settings with dropout, hidden conditions, a loss that learns from what it sees, and an evaluation at every third step."""
    base = settings(out, steps=12, batch=6, accumulate=2, schedule=Straight(), loss=Denoising(uncertainty=True, importance=True))
    network = MLPConfig(width=8, depth=1, dropout=0.2)
    return replace(base, preview=8, network=network, cond_dropout=0.3, evaluate_every=3, checkpoint_every=5, **changes)


@pytest.mark.parametrize("own", [False, True])
def test_watching_changes_nothing(own: bool, tmp_path: Path) -> None:
    data = table(60, classes=0 if own else 3)
    for out, monitor in ((tmp_path / "on", True), (tmp_path / "off", False)):
        torch.manual_seed(0)
        quietly(everything(out, monitor=monitor), data=data, network=Layers() if own else None)
    assert digests(tmp_path / "on") == digests(tmp_path / "off")
    on, off = ({key for row in metrics(tmp_path / name) for key in row} for name in ("on", "off"))
    watched = {"gradient_norm", "drift"} if own else {"gradient_norm", "drift", "condition_gain"}
    assert {key.split("/")[0] for key in on - off} == watched and not off - on


def test_the_floor_of_a_bin_is_the_loss_of_the_exact_denoiser(tmp_path: Path) -> None:
    std = np.array([0.2, 1.0, 3.0])
    samples = np.random.default_rng(0).normal(size=(4000, 3)) * std + [5.0, -1.0, 0.0]
    data = from_arrays(samples.astype(np.float32), name="normal", holdout=0.5)
    codec = Codec.of(data.card)
    for schedule in (Cosine(), Straight(), Linear()):
        process = Process(schedule)
        variances = tuple((deviation / unit) ** 2 for deviation, unit in zip(data.card.std, codec.scale, strict=True))
        mean = torch.tensor([(m - s) / unit for m, s, unit in zip(data.card.mean, codec.shift, codec.scale, strict=True)])
        exact = gaussian(process, mean, torch.diag(torch.tensor(variances, dtype=torch.float64)))
        exact.codec = codec
        measured = held_out_loss(exact, data, frozenset(), samples=2000, batch=2000)
        assert measured is not None
        floors = gaussian_floors(process, variances, measured.t)
        assert list(floors) == list(measured.bins) and len(floors) >= 6
        for name, floor in floors.items():
            assert measured.bins[name] == pytest.approx(floor, rel=0.08), name


@pytest.mark.parametrize(
    "loss", [Denoising(), Denoising(times=LogNormalSigma()), Denoising(times=Stratified()), VariationalBound()], ids=["t", "s", "even", "L"]
)
def test_the_gradient_of_a_bin_is_that_of_its_instants(loss: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data: Dataset = table(60)
    training = trainer_for(tmp_path, data, batch=8, loss=loss, schedule=Linear() if isinstance(loss, VariationalBound) else Cosine())
    training.step(print)
    before = [None if parameter.grad is None else parameter.grad.clone() for parameter in training.parameters]
    seen: list[Tensor] = []
    training.denoiser.register_forward_pre_hook(lambda module, given: seen.append(given[1].log_snr.reshape(-1)))
    norms = bin_gradients(training.denoiser, training.loss, training.feed, training.parameters)
    asked = torch.cat(seen).reshape(len(norms), 8)
    for name, levels in zip(norms, asked, strict=True):
        assert set(binned(levels)) == {name}
    assert (
        len(norms) >= 5
        and all(norm > 0 for norm in norms.values())
        and norms == bin_gradients(training.denoiser, training.loss, training.feed, training.parameters)
    )
    after = [parameter.grad for parameter in training.parameters]
    assert all(a is b if a is None or b is None else torch.equal(a, b) for a, b in zip(after, before, strict=True))
    if loss == Denoising():  # the whole loss's gradient, where a bin is all there is
        monkeypatch.setattr("ddpm.training.held_out.BINS", (BINS[0], BINS[-1]))
        whole = bin_gradients(training.denoiser, training.loss, training.feed, training.parameters)
        batch = training.feed.dataset.train_rows[np.linspace(0, len(data.train_rows) - 1, 8).astype(np.int64)]
        x0 = training.denoiser.codec.encode(torch.from_numpy(data.batch(batch)[0])).float()
        u = (torch.linspace(0, 1023, 8).long().double() + 0.5) / 1024
        training.state.optimizer.zero_grad()
        training.loss(training.denoiser, x0, None, training.feed.draws(0, 0, x0)._replace(u=u)).mean().backward()
        by_hand = torch.stack([p.grad.square().sum() for p in training.parameters if p.grad is not None]).sum().sqrt()
        assert list(whole.values()) == pytest.approx([by_hand.item()], rel=1e-5)


def test_trouble_is_told_once_a_run_and_not_before_it_is_due() -> None:
    monitor, floors = Monitor(settled=100), {"-1..1": 0.5, "1..3": 0.9}
    assert monitor.losses(50, {"-1..1": 0.8, "1..3": 0.5}, floors) == []
    assert monitor.losses(100, {"-1..1": 0.54, "1..3": 0.5}, floors) == []  # within a tenth
    (line,) = monitor.losses(100, {"-1..1": 0.8, "1..3": 0.5}, floors)
    assert "1.60 times at log_snr -1..1." in line and "1..3" not in line
    assert monitor.losses(200, {"-1..1": 0.8, "1..3": 0.5}, floors) == []
    for step in range(4):
        assert monitor.gradients(step, {"-1..1": 1.0 + step, "1..3": 1.0}) == []
    (line,) = monitor.gradients(5, {"-1..1": 1.0, "1..3": 1e-5})
    assert "log_snr 1..3 has vanished" in line
    (line,) = monitor.gradients(6, {"-1..1": 1e5, "1..3": 1e-5})
    assert "log_snr -1..1 has exploded" in line
    assert "exploded" in Monitor(0).gradients(0, {"-1..1": float("nan")})[0]
