"""What a training step is fed, how it moves the weights, and how they are averaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddpm.objective import Draws
from ddpm.training import OptimizerSettings
from ddpm.training.averaging.ema import PowerEMA, exponent, swapped
from ddpm.training.feed import Feed, rows_of
from small_runs import table, trainer_for


def test_every_epoch_visits_each_training_row_once_in_an_order_of_its_own() -> None:
    data = table(50, holdout=0.2)
    size = len(data.train_rows)
    epochs = [rows_of(data, 7, epoch * size, size) for epoch in range(3)]
    assert all(sorted(rows) == sorted(data.train_rows) for rows in epochs)
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[0], rows_of(data, 8, 0, size))
    whole = np.concatenate(epochs)
    for first, count in ((0, 3), (38, 7), (39, 70), (79, 2)):
        assert np.array_equal(rows_of(data, 7, first, count), whole[first : first + count])


def test_the_feed_is_a_function_of_seed_and_step(tmp_path: Path) -> None:
    data = table(classes=3)
    feeds = [trainer_for(tmp_path, data, accumulate=2, seed=seed).feed for seed in (0, 0, 1)]
    for other in (4, 0, 3):
        feeds[1].batch(other, 1)  # what was asked for before must not matter
    for step, part in ((0, 0), (9, 1), (30, 0)):
        a, b, c = (feed.batch(step, part) for feed in feeds)
        assert np.array_equal(a.rows, b.rows) and torch.equal(a.x0, b.x0) and not torch.equal(a.draws.eps, c.draws.eps)
        assert all(torch.equal(x, y) for x, y in zip(a.draws, b.draws, strict=True))
        assert a.cond and b.cond and a.cond.keys() == {"class", "null"} and all(torch.equal(a.cond[key], b.cond[key]) for key in a.cond)
        assert torch.equal(a.cond["class"], torch.from_numpy(data.cond["class"][a.rows]))
    streams = [draw for step, part in ((0, 0), (0, 1), (1, 0)) for draw in feeds[0].batch(step, part).draws[1:]]
    assert not any(torch.equal(a, b) for i, a in enumerate(streams) for b in streams[:i])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_share_of_dropped_conditions(share: float, tmp_path: Path) -> None:
    feed = trainer_for(tmp_path, table(classes=3), cond_dropout=share, batch=30).feed
    conditions = [feed.batch(step, 0).cond or {} for step in range(100)]
    if share == 0.0:
        assert all("null" not in cond for cond in conditions)
        return
    dropped = torch.stack([cond["null"] for cond in conditions]).double().mean().item()
    assert abs(dropped - share) <= 4.5 * (share * (1 - share) / 3000) ** 0.5


def test_without_conditions_nothing_is_handed_over(tmp_path: Path) -> None:
    assert trainer_for(tmp_path, table(classes=3), conditional=False).feed.batch(0, 0).cond is None
    assert trainer_for(tmp_path, table()).feed.batch(0, 0).cond is None


def test_accumulation_equals_one_large_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = table(classes=3)
    optimizer = OptimizerSettings(lr=1e-2, warmup=0, grad_clip=1e9)
    small = trainer_for(tmp_path, data, accumulate=3, batch=4, optimizer=optimizer)
    large = trainer_for(tmp_path, data, accumulate=1, batch=12, optimizer=optimizer)
    assert all(torch.equal(a, b) for a, b in zip(small.parameters, large.parameters, strict=True))

    def joined(feed: Feed, step: int, part: int, like: Tensor) -> Draws:
        parts = [own(small.feed, step, part, like[:4]) for part in range(3)]
        return Draws(*(torch.cat(column) for column in zip(*parts, strict=True)))

    fed = [small.feed.batch(0, part) for part in range(3)]
    own = Feed.draws
    hidden = torch.cat([batch.cond["null"] for batch in fed if batch.cond])
    assert np.array_equal(np.concatenate([batch.rows for batch in fed]), large.feed.batch(0, 0).rows)
    loss = small.step(print)
    gradients = [p.grad.clone() for p in small.parameters if p.grad is not None]
    monkeypatch.setattr(Feed, "draws", joined)
    batch = large.feed.drawn
    monkeypatch.setattr(large.feed, "drawn", lambda *key: (made := batch(*key))._replace(cond={**(made.cond or {}), "null": hidden}))
    assert loss is not None and torch.allclose(loss, large.step(print) or torch.zeros(()), rtol=1e-5)
    for mine, theirs in zip(gradients, large.parameters, strict=True):
        assert theirs.grad is not None and (mine - theirs.grad).abs().max() <= 1e-5 * mine.abs().max() + 1e-8


def test_the_learning_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = OptimizerSettings(lr=1.0, warmup=4)
    assert [plain.lr_at(step, 10) for step in (0, 1, 3, 4, 9)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    linear, cosine = replace(plain, decay="linear"), replace(plain, decay="cosine")
    assert [linear.lr_at(step, 12) for step in (3, 4, 8, 12)] == [1.0, 1.0, 0.5, 0.0]
    assert [round(cosine.lr_at(step, 12), 12) for step in (4, 6, 8, 12)] == [1.0, round(0.5 + 0.5**1.5, 12), 0.5, 0.0]
    assert OptimizerSettings(lr=1.0, warmup=0).lr_at(0, 5) == 1.0
    trainer = trainer_for(tmp_path, table(), optimizer=OptimizerSettings(warmup=3))
    used = []
    for _ in range(4):
        trainer.step(print)
        used.append(trainer.state.optimizer.param_groups[0]["lr"])
    assert used == pytest.approx([2e-4 / 3, 4e-4 / 3, 2e-4, 2e-4])


def test_gradients_are_clipped(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, table(), optimizer=OptimizerSettings(grad_clip=1e-3))
    trainer.step(print)
    assert torch.stack([p.grad.norm() for p in trainer.parameters if p.grad is not None]).norm().item() == pytest.approx(1e-3, rel=1e-3)


# --- the average of the weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2, 0.279])
def test_the_profile_has_the_width_asked_for(width: float) -> None:
    gamma = exponent(width)
    t = (np.arange(200_000) + 0.5) / 200_000
    profile = (gamma + 1) * t**gamma
    mean = (profile * t).mean()
    assert gamma > 0 and np.sqrt((profile * (t - mean) ** 2).mean()) == pytest.approx(width, rel=1e-4)


class Scalar(nn.Module):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((2,), 1e6, dtype=torch.float64))


def test_the_average_is_that_of_the_profile_and_forgets_the_start() -> None:
    module, values = Scalar(), torch.randn(400, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ema = PowerEMA(module, 0.05)
    for step, value in enumerate(values, start=1):
        module.w.data.copy_(value)
        ema.update(module, step)
        if step == 1:
            assert torch.equal(ema.weights["w"], value)
        # the weight of step i in the average after k is its share of the profile: (i/k)^(g+1) - ((i-1)/k)^(g+1)
        edges = (torch.arange(step + 1, dtype=torch.float64) / step) ** (ema.gamma + 1)
        assert torch.allclose(ema.weights["w"], edges.diff() @ values[:step], rtol=0, atol=1e-12)
    share = edges.diff()
    place = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    std = (share @ place**2 - (share @ place) ** 2).sqrt().item()
    assert std == pytest.approx(0.05, rel=1e-2)


def test_swapping_the_average_in_and_out_again() -> None:
    module = Scalar()
    ema = PowerEMA(module, 0.05)
    module.w.data.fill_(3.0)
    with pytest.raises(ZeroDivisionError), swapped(module, ema.weights) as inside:
        assert inside is module and module.w[0] == 1e6
        raise ZeroDivisionError
    assert module.w[0] == 3.0 and ema.weights["w"][0] == 1e6


def test_a_run_averages_every_step_that_changed_the_weights(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, table(), optimizer=OptimizerSettings(lr=1e-2, warmup=0))
    name = next(iter(trainer.state.ema.weights))
    history = []
    for _ in range(6):
        trainer.step(print)
        history.append(dict(trainer.denoiser.named_parameters())[name].detach().clone())
    edges = (torch.arange(7) / 6) ** (trainer.state.ema.gamma + 1)
    expected = sum(share * value for share, value in zip(edges.diff(), history, strict=True))
    assert torch.allclose(trainer.state.ema.weights[name], torch.as_tensor(expected), rtol=1e-5, atol=1e-6)
