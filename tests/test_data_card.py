"""Settings, the split and the data card: figures that later rooms trust."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from ddpm.data import DataSettings, describe, doctor, from_arrays, open_data
from ddpm.data.split import split
from ddpm.denoiser.codec import Codec
from ddpm.errors import ConfigError

WRONG: list[dict[str, Any]] = [
    {"data": ""},
    {"size": (0,)},
    {"size": (1, 2, 3)},
    {"size": (10**9,)},
    {"size": ()},
    {"size": (8.5,)},
    {"size": (True,)},
    {"crop": "center", "size": (8,)},
    {"crop": "centre"},
    {"flip": 1},
    {"holdout": -0.1},
    {"holdout": 1.0},
    {"holdout": float("nan")},
    {"holdout": "0.1"},
    {"normalise": "zscore"},
    {"on_bad_image": "ignore"},
    {"max_pixels": 0},
    {"max_pixels": 1e6},
    {"background": "octarine"},
    {"background": "#12345"},
    {"labels": ""},
    {"classes": 0},
    {"classes": 10**9},
    {"channels": "rgba"},
    {"layout": "nhwc"},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_wrong_settings_are_one_sentence_each(wrong: dict[str, Any]) -> None:
    name = next(iter(wrong))
    problems = DataSettings(**wrong).problems()
    assert len(problems) == 1 and problems[0].startswith(f"{name}:")


def test_all_problems_come_at_once_and_good_settings_have_none() -> None:
    assert len(DataSettings(holdout=2, size=(0,), crop="x", background="").problems()) == 4  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="holdout: got 2;.*\n.*size: got"):
        open_data(DataSettings(holdout=2, size=(0,)))
    for good in (DataSettings(), DataSettings(size=(8, 6), crop="random", background="#00fF7f", holdout=0, classes=3, flip=True)):
        assert good.problems() == []
    assert DataSettings(size=(8,)).height_width == (8, 8) and DataSettings(size=(8, 6)).height_width == (8, 6)
    assert all(field.metadata.get("help") for field in dataclasses.fields(DataSettings))


def test_settings_load_without_numpy_and_data_without_torch() -> None:
    code = (
        "import sys; from ddpm.data import DataSettings, open_data as o; assert not {'PIL', 'torch'} & set(sys.modules); "
        "print(o(DataSettings()).card.count, 'torch' in sys.modules)"
    )
    light = "import sys, ddpm.data.settings; print({'numpy', 'torch', 'PIL', 'rich'} & set(sys.modules))"
    for text, expected in ((code, "1797 False"), (light, "set()")):
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True, timeout=120)
        assert done.stdout.strip() == expected


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("count", [1, 2, 3, 10, 997])
def test_split_is_a_partition_of_the_right_size(count: int, share: float) -> None:
    labels = np.random.default_rng(0).integers(0, 4, count)
    for classes in (None, labels):
        train, held = split(count, share, classes)
        assert np.array_equal(np.sort(np.concatenate([train, held])), np.arange(count))
        assert len(held) == (0 if share == 0 or count == 1 else min(max(round(count * share), 1), count - 1))
        assert train.dtype == held.dtype == np.int64 and (np.diff(held) > 0).all() and (np.diff(train) > 0).all()


def test_split_is_stratified_shuffled_and_fixed_for_ever() -> None:
    labels = np.repeat([0, 1, 2], [500, 300, 20])
    _, held = split(820, 0.1, labels)
    assert list(np.bincount(labels[held])) == [50, 30, 2]
    assert np.ptp(held[:50]) > 300  # from all over the class
    assert split(12, 0.25)[1].tolist() == [1, 9, 11]  # a stored split must stay what it was
    assert split(12, 0.25, np.arange(12) // 4)[1].tolist() == [1, 4, 11]


@pytest.mark.parametrize("kind", ["range", "standard", "auto"])
@pytest.mark.parametrize("data", ["kelvin", "levels", "constant", "skewed"])
def test_statistics_are_those_of_the_training_rows_and_sigma_data_of_the_encoded(
    kind: Any, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_CHUNK_BYTES", 3000)
    rng = np.random.default_rng(1)
    x = {
        "kelvin": rng.normal(280, [[[5]], [[0.01]]], (300, 2, 3, 4)),
        "levels": rng.integers(3, 200, (300, 2, 3, 4)).astype("uint8"),
        "constant": np.stack([rng.random((300, 5)), np.full((300, 5), 0.1)], axis=1),
        "skewed": rng.exponential(size=(300, 2, 9)).astype("float32"),
    }[data]
    dataset = from_arrays(x, normalise=kind, holdout=np.arange(200, 300))
    card, train = dataset.card, x[:200].astype(np.float64)
    axes = (0, *range(2, x.ndim))
    for found, expected in (
        (card.low, train.min(axes)),
        (card.high, train.max(axes)),
        (card.mean, train.mean(axes)),
        (card.std, train.std(axes)),
    ):
        assert np.allclose(found, expected, rtol=1e-10, atol=1e-12)
    encoded = Codec.of(card).encode(torch.from_numpy(train))
    assert card.sigma_data == pytest.approx(float(encoded.square().mean().sqrt()), rel=1e-6)
    assert card.normalise == (kind if kind != "auto" else ("range" if data == "levels" else "standard"))
    assert (card.count, card.held_out) == (300, 100)


def test_duplicates_leaks_and_fingerprint() -> None:
    x = np.random.default_rng(0).random((50, 4))
    x[7], x[8], x[30] = x[1], x[1], x[2]
    cond = {"class": np.arange(50) % 5}
    card = from_arrays(x, cond, holdout=np.array([30])).card
    assert card.duplicates == 3 and "1 held-out samples are exact copies of training samples" in card.notices
    assert card.fingerprint == from_arrays(x.copy(), cond, holdout=0.3, name="other").card.fingerprint  # the data, not how they are used
    y = x.copy()
    y[49, 3] += 1e-12
    assert len({from_arrays(data, labels).card.fingerprint for data in (x, y, x[::-1]) for labels in (cond, None)}) == 6


def test_digits() -> None:
    dataset = open_data(DataSettings())
    card = dataset.card
    assert (card.shape, card.count, card.bins, card.levels, card.kind) == ((1, 8, 8), 1797, (0, 16), 17, "image")
    assert card.classes == tuple("0123456789") and sum(card.class_counts) == 1797 and card.duplicates == 0
    assert dataset.samples.dtype == np.uint8 and int(np.asarray(dataset.samples).max()) == 16
    assert (card.held_out, len(dataset.train_rows)) == (180, 1617)
    assert card.fingerprint == "b01240c2d8140c2ea0cc68e5640d5e0abf49d2574dff18cce4c486e3f7a52abe"
    assert list(dataset.cond["class"][:10]) == list(range(10))


def test_the_table_shows_all_and_alters_no_name() -> None:
    x = np.random.default_rng(0).random((60, 3, 4))
    vector = np.zeros((60, 2))
    dataset = from_arrays(
        x, {"class": np.arange(60) % 30, "vector": vector}, name="[red]waves[/red]", classes=[f":smile: {i}" for i in range(30)]
    )
    text = describe(dataclasses.replace(dataset.card, unreadable=tuple(f"bad{i}.png: empty file" for i in range(25))))
    for said in (
        "[red]waves[/red]",
        "60 (54 train, 6 held out)",
        "3 x 4",
        "float64, continuous",
        ":smile: 0",
        "v0, v1",
        "... and 10 more classes",
    ):
        assert said in text
    assert "bad19.png: empty file" in text and "... and 5 more" in text and dataset.card.fingerprint in text
    assert "\x1b" not in text and max(len(line) for line in text.splitlines()) <= 100
