"""Augmentation that does not leak: the maps, what the network is told of them, and what is untouched."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm.networks.config import CondSpec
from ddpm.random import generator
from ddpm.training import Tricks
from ddpm.training.augment import ENTRIES, draw, matrices, warp
from ddpm.training.feed import encoded
from small_runs import SMALL_UNET, pictures, trainer_for


def told(**changes: float) -> Tensor:
    """The entries (1, 9) of a change given by its own quantities: flip_x, flip_y, size, turn, stretch along axis, move_x, move_y."""
    get = changes.get
    turn, stretch, axis = get("turn", 0.0), get("stretch", 0.0), get("axis", 0.0)
    return torch.tensor(
        [
            [
                get("flip_x", 0.0),
                get("flip_y", 0.0),
                get("size", 0.0),
                math.cos(turn) - 1,
                math.sin(turn),
                stretch * math.cos(2 * axis),
                stretch * math.sin(2 * axis),
                get("move_x", 0.0),
                get("move_y", 0.0),
            ]
        ],
        dtype=torch.float64,
    )


def textbook(height: int, width: int, **changes: float) -> np.ndarray:
    """The same map as a product of elementary ones, as the paper's table lists them: the flips act first."""
    get = changes.get

    def scale(x: float, y: float) -> np.ndarray:
        return np.diag([x, y, 1.0])

    def rotate(angle: float) -> np.ndarray:
        return np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1.0]])

    move = np.eye(3)
    move[:2, 2] = get("move_x", 0.0) * width / 8, get("move_y", 0.0) * height / 8
    size, stretch, axis = 2 ** (0.2 * get("size", 0.0)), 2 ** (0.2 * get("stretch", 0.0)), get("axis", 0.0)
    flips = scale(1 - 2 * get("flip_x", 0.0), 1 - 2 * get("flip_y", 0.0))
    return move @ rotate(axis) @ scale(stretch, 1 / stretch) @ rotate(-axis) @ rotate(get("turn", 0.0)) @ scale(size, size) @ flips


CHANGES = [
    {"flip_x": 1.0},
    {"flip_y": 1.0},
    {"size": 1.3},
    {"turn": 0.7},
    {"stretch": 0.9, "axis": 0.4},
    {"stretch": -0.9, "axis": 0.4},
    {"move_x": 0.5, "move_y": -1.2},
    {"flip_x": 1.0, "size": -0.8, "turn": -2.5, "stretch": 1.1, "axis": -1.3, "move_x": 0.3, "move_y": 0.6},
]


@pytest.mark.parametrize("changes", CHANGES, ids=repr)
def test_the_entries_give_the_map_of_the_paper(changes: dict[str, float]) -> None:
    got = matrices(told(**changes), 12, 20)[0].numpy()
    np.testing.assert_allclose(got, textbook(12, 20, **changes), atol=1e-12)


def test_a_stretch_is_told_without_ambiguity() -> None:
    """A stretch along an axis is a squeeze across it, and half a turn of the axis changes nothing: maps that differ are told apart."""
    for stretch, axis in ((0.9, 0.4), (-0.3, 2.0)):
        same = [
            told(stretch=stretch, axis=axis),
            told(stretch=stretch, axis=axis + math.pi),
            told(stretch=-stretch, axis=axis + math.pi / 2),
        ]
        assert all(torch.allclose(one, same[0], atol=1e-12) for one in same)
        other = told(stretch=-stretch, axis=axis + math.pi)  # in the published entries the same as the first
        assert not torch.allclose(matrices(other, 8, 8), matrices(same[0], 8, 8), atol=0.05)


def test_exact_changes_are_exact() -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 2, 8, 8)).astype(np.float32))
    cases = {
        "flip_x": (told(flip_x=1.0), x.flip(3)),
        "flip_y": (told(flip_y=1.0), x.flip(2)),
        "half a turn": (told(turn=math.pi), x.flip(2, 3)),
        "a quarter turn, x axis to y axis: clockwise on the screen": (told(turn=math.pi / 2), torch.rot90(x, -1, (2, 3))),
        "to the right by two": (told(move_x=2.0), torch.cat([x[..., :2].flip(3), x[..., :-2]], 3)),
        "down by one": (told(move_y=1.0), torch.cat([x[..., :1, :], x[..., :-1, :]], 2)),
    }
    for name, (how, wanted) in cases.items():
        assert torch.allclose(warp(x, how.float()), wanted, atol=1e-5), name


def test_untouched_pictures_are_untouched() -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 1, 6, 10)).astype(np.float32))
    assert torch.equal(warp(x, draw(generator(0, "warp"), 50, 0.0)), x)
    how = draw(generator(0, "warp"), 50, 0.1)
    still = (how == 0).all(1)
    assert 5 < still.sum() < 45
    moved = warp(x, how)
    assert torch.equal(moved[still], x[still]) and not any(torch.equal(a, b) for a, b in zip(moved[~still], x[~still], strict=True))


def test_the_inverse_map_brings_a_smooth_picture_back() -> None:
    along = torch.linspace(-1, 1, 96, dtype=torch.float64)
    x = torch.exp(-20 * ((along[:, None] - 0.1) ** 2 + 2 * (along[None] + 0.2) ** 2))[None, None]
    how, undone = told(turn=0.8, move_x=0.4), np.linalg.inv(textbook(96, 96, turn=0.8, move_x=0.4))
    back = told(turn=-0.8, move_x=undone[0, 2] / 12, move_y=undone[1, 2] / 12)
    assert torch.allclose(matrices(back, 96, 96) @ matrices(how, 96, 96), torch.eye(3, dtype=torch.float64), atol=1e-12)
    there = warp(x, how)
    middle = slice(24, 72)  # where nothing came in over an edge
    assert (there - x).abs().max() > 0.3 and (warp(there, back) - x)[..., middle, middle].abs().max() < 0.02


def test_how_often_and_how_much() -> None:
    chance, count = 0.3, 20_000
    how = draw(generator(0, "warp"), count, chance).double()
    for group, share in (((0,), chance / 2), ((1,), chance / 2), ((2,), chance), ((3, 4), chance), ((5, 6), chance), ((7, 8), chance)):
        changed = (how[:, group] != 0).any(1).double().mean().item()
        assert abs(changed - share) < 4.5 * math.sqrt(share * (1 - share) / count), group
    axes = [how[:, i][how[:, i] != 0] for i in (2, 7, 8)]
    axes.append(how[:, 5:7].norm(dim=1)[how[:, 5] != 0] * torch.tensor([1.0, -1.0]).repeat(count)[: int((how[:, 5] != 0).sum())])
    for values in axes:  # unit normals
        assert abs(values.mean()) < 4.5 / math.sqrt(len(values)) and abs(values.square().mean() - 1) < 4.5 * math.sqrt(2 / len(values))
    turned = torch.atan2(how[:, 4], how[:, 3] + 1)[how[:, 4] != 0]
    assert abs(turned.mean()) < 4.5 * math.pi / math.sqrt(3 * len(turned)) and turned.abs().max() > 3.1


def test_the_network_is_told_what_was_done(tmp_path: Path) -> None:
    data = pictures(2, 8, 8)
    feed = trainer_for(tmp_path, data, network=SMALL_UNET, batch=16, tricks=Tricks(augment=0.3)).feed
    plain = trainer_for(tmp_path, data, network=SMALL_UNET, batch=16).feed
    for step in range(3):
        batch, other = feed.batch(step, 0), plain.batch(step, 0)
        assert batch.cond is not None and batch.cond["augment"].shape == (16, ENTRIES) and other.cond is None
        x0 = encoded(feed.codec, data.samples[batch.rows], feed.device)
        assert torch.equal(batch.x0, warp(x0, batch.cond["augment"])) and not torch.equal(batch.x0, x0)
        assert torch.equal(batch.draws.eps, other.draws.eps) and np.array_equal(batch.rows, other.rows)
    assert not torch.equal(feed.batch(0, 0).cond["augment"], feed.batch(1, 0).cond["augment"])  # type: ignore[index]


@pytest.mark.parametrize("ahead", [0, 2])
def test_the_network_is_shown_what_it_is_told(ahead: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether batches are drawn ahead, before they are changed, or not."""
    trainer = trainer_for(tmp_path, pictures(2, 8, 8), network=SMALL_UNET, batch=16, tricks=Tricks(augment=0.3), prefetch=ahead)
    seen: list[torch.Tensor] = []
    plain = trainer.gradients.passes.forward
    monkeypatch.setattr(trainer.gradients.passes, "forward", lambda x0, *rest: seen.append(x0) or plain(x0, *rest))
    with trainer.batches:
        for _ in range(2):
            trainer.step(print)
    assert len(seen) == 2 and all(torch.equal(x0, trainer.feed.batch(step, 0).x0) for step, x0 in enumerate(seen))


def test_no_word_of_augmentation_means_none() -> None:
    torch.manual_seed(0)
    network = replace(SMALL_UNET, zero_init=False).build((1, 8, 8), 1, CondSpec(classes=3, augment=ENTRIES)).eval()
    x, c_noise, how = torch.randn(2, 1, 8, 8), torch.zeros(2), draw(generator(0, "warp"), 2, 1.0)
    for cond in ({"class": torch.tensor([0, 2])}, {"null": torch.ones(2, dtype=torch.bool)}):
        nothing = network(x, c_noise, cond)
        assert torch.equal(nothing, network(x, c_noise, {**cond, "augment": torch.zeros(2, ENTRIES)}))
        assert not torch.allclose(nothing, network(x, c_noise, {**cond, "augment": how}), atol=1e-4)  # also where the class is hidden
