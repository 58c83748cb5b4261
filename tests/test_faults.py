"""Numbers that are not finite: the step is skipped and explained, ten in a row end the run, and no checkpoint ever holds one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddpm.cli import main
from ddpm.data.dataset import Dataset
from ddpm.errors import NonFiniteError
from ddpm.training import Trainer, run
from ddpm.training.feed import Batch, Feed
from ddpm.training.health import non_finite as health
from small_runs import digests, held, quietly, settings, table

BAD = [float("nan"), float("inf")]
PLACES = ["loss", "gradient", "input"]


@pytest.fixture(scope="module")
def data() -> Dataset:
    return table()


@dataclass
class Fault:
    """A number that is not finite, put into a place of the computation from step `first` to `last` (counted from 1)."""

    place: str
    value: float
    first: int
    last: int
    accumulate: int = 1

    def inject(self, patch: pytest.MonkeyPatch) -> None:
        """Wrap the feed and the step."""
        feed, step = Feed.drawn, Trainer.step

        def batch(source: Feed, now: int, part: int, shard: int = 0) -> Batch:
            made = feed(source, now, part, shard)
            if self.place == "input" and self.first <= now + 1 <= self.last and part == self.accumulate - 1:
                made.x0[1] = self.value
            return made

        def stepping(trainer: Trainer, *words: object) -> Tensor | None:
            now = trainer.state.step + 1
            if not self.first <= now <= self.last or self.place == "input":
                return step(trainer, *words)  # type: ignore[arg-type]
            some = next(trainer.denoiser.network.parameters())
            if self.place == "weights":
                some.data.view(-1)[0] = self.value
                return step(trainer, *words)  # type: ignore[arg-type]
            if self.place == "gradient":
                hook = some.register_hook(lambda grad: torch.full_like(grad, self.value))
            else:
                hook = trainer.loss.register_forward_hook(lambda module, given, made: made * self.value)  # type: ignore[operator]
            try:
                return step(trainer, *words)  # type: ignore[arg-type]
            finally:
                hook.remove()

        patch.setattr(Feed, "drawn", batch)
        patch.setattr(Trainer, "step", stepping)


def snapshot(trainer: Trainer) -> dict[str, Tensor]:
    """Weights, average and optimizer, copied."""
    out = {f"model/{name}": value.clone() for name, value in trainer.denoiser.state_dict().items()}
    out |= {f"ema/{name}": value.clone() for name, value in trainer.state.ema.weights.items()}
    for index, slots in trainer.state.optimizer.state_dict()["state"].items():
        out |= {f"optimizer/{index}/{name}": value.clone() for name, value in slots.items()}
    return out


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_bad_step_changes_nothing_and_is_explained(
    place: str,
    value: float,
    accumulate: int,
    tmp_path: Path,
    data: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Fault(place, value, 5, 6, accumulate).inject(monkeypatch)
    seen: list[dict[str, Tensor]] = []
    step = Trainer.step

    def watched(trainer: Trainer, *words: object) -> Tensor | None:
        before = snapshot(trainer)
        loss = step(trainer, *words)  # type: ignore[arg-type]
        after = snapshot(trainer)
        same = before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
        assert same == (trainer.state.step in (5, 6)) == (loss is None)
        seen.append(after)
        return loss

    monkeypatch.setattr(Trainer, "step", watched)
    run.train(settings(tmp_path, steps=8, accumulate=accumulate), data=data)
    assert len(seen) == 8 and all(tensor.isfinite().all() for tensor in seen[-1].values())
    assert held(tmp_path).document("state")["good_steps"] == 6
    said = capsys.readouterr().err
    where = {"loss": "the loss of data rows", "gradient": "the gradient of network.", "input": "the batch: data rows"}[place]
    assert f"step 5: not finite in {where}" in said and "the step was skipped, nothing changed" in said and said.count("skipped") == 2


def test_the_rows_named_are_those_of_the_data(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fed: list[int] = []
    Fault("input", float("nan"), 2, 2).inject(monkeypatch)
    feed = Feed.drawn

    def batch(source: Feed, now: int, part: int, shard: int = 0) -> Batch:
        made = feed(source, now, part, shard)
        fed.append(int(made.rows[1]))
        return made

    monkeypatch.setattr(Feed, "drawn", batch)
    run.train(settings(tmp_path), data=data)
    assert f"the batch: data rows [{fed[1]}]" in capsys.readouterr().err


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("place", [*PLACES, "weights"])
def test_ten_in_a_row_end_the_run_with_the_last_checkpoint_intact(
    place: str, value: float, tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    quietly(settings(tmp_path, steps=20), data=data)
    good = digests(tmp_path)
    Fault(place, value, 23, 10**9).inject(monkeypatch)
    with pytest.raises(NonFiniteError) as caught:
        quietly(settings(tmp_path, steps=60, checkpoint_every=1 if place != "weights" else 100), data=data)
    text = str(caught.value)
    assert caught.value.exit_code == 6 and "not finite since step 23" in text and f"{health.PATIENCE} steps in a row" in text
    assert f"; step-00000{20 if place == 'weights' else 31} is the last checkpoint. Try" in text
    assert ("the weights: network." in text) == (place == "weights")
    newest = held(tmp_path)
    assert digests(tmp_path, 20) == good if place == "weights" else newest.step == 31
    for group in newest.tensor_names:
        assert all(tensor.isfinite().all() for tensor in newest.tensors(group).values())


def test_nine_in_a_row_are_survived_and_the_count_starts_anew(tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    Fault("loss", float("nan"), 3, 11).inject(monkeypatch)
    Fault("loss", float("nan"), 13, 21).inject(monkeypatch)
    assert quietly(settings(tmp_path, steps=24), data=data).code == 0
    assert held(tmp_path).document("state")["good_steps"] == 6


def test_no_checkpoint_holds_a_number_that_is_not_finite(tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that became NaN just before a save: the save is refused, the one before remains."""
    Fault("weights", float("nan"), 6, 6).inject(monkeypatch)
    with pytest.raises(NonFiniteError, match="model"):
        quietly(settings(tmp_path, steps=20, checkpoint_every=3), data=data)
    assert held(tmp_path).step == 3
    assert not list(tmp_path.glob("*.tmp-*"))


class Diverging(nn.Module):
    """A person's own network that returns NaN at its seventh call in training."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(3, 3), 0

    def forward(self, x: Tensor, c_noise: Tensor, cond: object) -> Tensor:
        self.calls += self.training
        return self.layer(x) * (float("nan") if self.training and self.calls == 7 else 1.0)


def test_a_network_of_ones_own_that_returns_nan_once(tmp_path: Path, data: Dataset) -> None:
    quietly(settings(tmp_path, steps=10), network=Diverging(), data=data)
    state = held(tmp_path).document("state")
    assert (state["step"], state["good_steps"]) == (10, 9)


def test_divergence_by_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Fault("loss", float("nan"), 5, 10**9).inject(monkeypatch)
    np.save(tmp_path / "table.npy", table().samples[:])
    words = [
        "train",
        "--data",
        str(tmp_path / "table.npy"),
        "--out",
        str(tmp_path / "run"),
        "--batch",
        "4",
        "--threads",
        "1",
        "--preview",
        "0",
    ]
    assert main([*words, "--network", "mlp-config", "--network.width", "8", "--network.depth", "1"]) == 6
    said = capsys.readouterr().err
    assert "ddpm train: error: loss or gradient not finite since step 5" in said
    assert "Try a smaller --lr" in said and "Traceback" not in said
