"""Drift of samples against the data: seen where it is, never where samples are as good as data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ddpm.data import DataSettings, from_arrays, open_data
from ddpm.data.dataset import Dataset
from ddpm.training.health.drift import ERRORS, Drift, drift, errors, profile, reference_rows
from ddpm.training.health.monitor import Monitor
from small_runs import pictures


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return open_data(DataSettings(data="digits"))


def against(data: Dataset, samples: NDArray[Any], classes: NDArray[Any] | None = None) -> Drift:
    """Samples against training rows."""
    return drift(samples, *profile(data.batch(reference_rows(data, classes))[0]))


def test_held_out_data_do_not_drift(digits: Dataset) -> None:
    """However few: 16 at a time, 1,000 times over, and all at once."""
    reference = profile(digits.batch(reference_rows(digits))[0])
    rng = np.random.default_rng(0)
    assert not drift(digits.batch(digits.held_rows)[0], *reference).words
    for count in (8, 16, 64):
        for _ in range(300):
            found = drift(digits.batch(rng.choice(digits.held_rows, count, replace=False))[0], *reference)
            assert not found.words and abs(found.values["drift/mean/channel 0"]) < 0.5


@pytest.mark.parametrize("share", [0.1, -0.1])
def test_samples_shifted_by_a_tenth_are_told(share: float, digits: Dataset) -> None:
    raw = digits.batch(digits.held_rows[:100])[0].astype(np.float64)
    found = against(digits, raw + share * 16.0)
    std = digits.card.std[0]
    assert found.values["drift/mean/channel 0"] == pytest.approx(share * 16.0 / std, abs=0.05)
    side = "above" if share > 0 else "below"
    assert found.words.keys() == {"mean"} and f"of a standard deviation {side} the data's mean (" in found.words["mean"]
    assert found.values["drift/quantiles/channel 0"] == pytest.approx(abs(share) * 16.0 / std, abs=0.08)


def test_samples_of_other_contrast_and_of_one_wrong_channel_are_told(digits: Dataset) -> None:
    raw = digits.batch(digits.held_rows[:100])[0].astype(np.float64)
    flat = against(digits, (raw - digits.card.mean[0]) * 0.7 + digits.card.mean[0])
    assert flat.words.keys() == {"std"} and flat.values["drift/std/channel 0"] == pytest.approx(-0.3, abs=0.06)
    data = pictures(3, 4, 4, count=400)
    coloured = data.batch(data.held_rows)[0].astype(np.float64)
    assert not against(data, coloured).words
    coloured[:, 2] += 25.5
    assert against(data, coloured).words["mean"].startswith("channel 2: ") and "channel 1" not in against(data, coloured).words["mean"]


def test_samples_of_classes_in_turn_are_compared_with_data_of_the_same() -> None:
    """Nine in ten are dark and of class 0: a preview of as many of each class is no drift, though its mean is far from the data's."""
    rng = np.random.default_rng(0)
    label = (np.arange(6000) % 10 == 0).astype(np.int64)
    samples = rng.normal(size=(6000, 1, 4, 4)) + 6.0 * label[:, None, None, None]
    data = from_arrays(samples.astype(np.float32), {"class": label}, name="unequal")
    balanced = np.concatenate([data.held_rows[label[data.held_rows] == k][:50] for k in (0, 1)]).reshape(2, -1).T.reshape(-1)
    drawn = data.batch(balanced)[0]
    assert against(data, drawn).words
    assert not against(data, drawn, np.arange(100) % 2).words
    values, lines = Monitor(0).samples(7, drawn, data, 2)
    assert lines == [] and abs(values["drift/mean/channel 0"]) < 0.1


def test_it_is_told_once_and_only_when_due(digits: Dataset) -> None:
    bright, monitor = digits.batch(digits.held_rows)[0] + 2.0, Monitor(settled=10)
    assert monitor.samples(9, bright, digits)[1] == []
    (line,) = monitor.samples(10, bright, digits)[1]
    assert line.startswith(f"step 10: {len(bright)} samples drawn now against the data: channel 0: ")
    values, lines = monitor.samples(11, bright, digits)
    assert lines == [] and values["drift/mean/channel 0"] > 0.2
    broken = bright.astype(np.float64)
    broken[3] = np.nan
    values, lines = monitor.samples(12, broken, digits)
    assert values == {"drift/not_finite": 1.0} and lines[0].endswith(f"against the data: 1 of {len(bright)} samples are not finite")
    assert monitor.samples(13, bright[:1], digits)[1] == []


def test_standard_errors_of_few_samples_are_those_of_a_normal() -> None:
    """As many lie beyond z, for 8 samples against 60, as of a normal: of the plain ratio of shift and error, far more."""
    rng = np.random.default_rng(0)
    drawn, data = rng.normal(size=(8, 100_000)), rng.normal(size=(60, 100_000))
    z = np.abs(errors(drawn, data))
    plain = np.abs(drawn.mean(0) - data.mean(0)) / np.sqrt(drawn.var(0, ddof=1) / 8 + data.var(0, ddof=1) / 60)
    for level in (1.0, 2.0, 3.0):
        expected = 2 * (1 - torch.special.ndtr(torch.tensor(level, dtype=torch.float64)).item())
        assert 0.8 * expected < (z > level).mean() < 2 * expected, level
    assert (plain > 3.0).mean() > 4 * expected
    assert (z > ERRORS).mean() < 1e-4


def test_of_many_channels_the_worst_is_logged() -> None:
    data = from_arrays(np.random.default_rng(0).normal(size=(400, 30)).astype(np.float32), name="wide")
    drawn = data.batch(data.held_rows)[0]
    drawn[:, 17] -= 3.0
    found = against(data, drawn)
    assert found.values.keys() == {"drift/mean/worst", "drift/std/worst", "drift/quantiles/worst"}
    assert found.values["drift/mean/worst"] == pytest.approx(-3.0, abs=0.5) and found.words["mean"].startswith("channel 17: ")
