"""Scores of samples against references: what they are keyed by, what they say, what is refused."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.data import from_arrays
from ddpm.data.dataset import Dataset
from ddpm.errors import ConfigError, DataError, DiskError
from ddpm.evaluation.extractors import Extractor, Raw
from ddpm.evaluation.reference import Protocol, Reference, foreign_statistics, reference
from ddpm.evaluation.scoring import embedded, mixed, score
from ddpm.metrics import Moments, frechet, manifold


def data(seed: int = 0, count: int = 400) -> Dataset:
    """A table of six numbers, a quarter of it held out."""
    samples = np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)
    return from_arrays(samples, name="table", holdout=0.25)


class Counting(Raw):
    """Counts what it is asked for."""

    seen = 0

    def embed(self, samples: torch.Tensor) -> torch.Tensor:
        self.seen += len(samples)
        return super().embed(samples)


def drawn(n: int, seed: int = 9) -> torch.Tensor:
    """Samples of the data's law."""
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))


def test_references_are_made_once_for_data_rows_and_extractor(tmp_path: Path) -> None:
    """And again for others."""
    one = data()
    extractor = Counting(one.card)
    first, again = (reference(one, "train", extractor, cache=tmp_path) for _ in range(2))
    assert extractor.seen == len(one.train_rows) and torch.equal(first.features, again.features) and first.protocol == again.protocol
    raw, _ = one.batch(one.train_rows)
    assert torch.equal(first.features, torch.from_numpy(raw))
    held = reference(one, "held out", extractor, cache=tmp_path)
    assert len(held.features) == len(one.held_rows) and extractor.seen == 400
    reference(data(1), "train", extractor, cache=tmp_path)
    assert extractor.seen == 700
    fewer = replace(one, train_rows=one.train_rows[:200])  # another split of the same data
    assert len(reference(fewer, "train", extractor, cache=tmp_path).features) == 200 and extractor.seen == 900
    with pytest.raises(DataError, match="table has no held out samples"):
        reference(from_arrays(np.zeros((9, 6), np.float32), name="table", holdout=0.0), "held out", extractor, cache=tmp_path)


def test_the_moments_of_a_reference_are_made_once(tmp_path: Path) -> None:
    """However many points of curves are compared with it."""
    rows = reference(data(), "train", Raw(data().card), cache=tmp_path)
    assert rows.moments is rows.moments


@pytest.mark.parametrize("damage", [b"", b"no tensors"])
def test_damaged_features_are_made_again(damage: bytes, tmp_path: Path) -> None:
    """Saying so; and where the folder cannot be written, what to do."""
    one, told = data(), []
    extractor = Counting(one.card)
    first = reference(one, "train", extractor, cache=tmp_path)
    (kept,) = (tmp_path / "statistics").glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:-7] + damage)
    again = [reference(one, "train", extractor, told.append, cache=tmp_path) for _ in range(2)]
    assert told == [f"{kept} is damaged; it is made again"] and extractor.seen == 2 * len(one.train_rows)
    assert all(torch.equal(found.features, first.features) for found in again)
    with pytest.raises(DiskError, match="cannot be written.*DDPM_CACHE names another folder"):
        reference(one, "train", extractor, cache=kept)


def test_of_two_that_want_the_same_reference_one_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other waits, says so, and reads it."""

    class Slow(Counting):
        def embed(self, samples: torch.Tensor) -> torch.Tensor:
            time.sleep(0.3)
            return super().embed(samples)

    monkeypatch.setattr("ddpm.evaluation.cached.PATIENCE", 0.05, raising=False)
    one, told = data(), []
    extractor = Slow(one.card)
    both = [threading.Thread(target=reference, args=(one, "train", extractor, told.append), kwargs={"cache": tmp_path}) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert extractor.seen == len(one.train_rows) and [line.split(",")[0] for line in told] == ["waiting for another process"]


def test_protocols_that_differ_are_refused() -> None:
    """With the part that does."""
    one = Protocol("a" * 8, "train", "raw-1")
    one.check(Protocol("a" * 8, "train", "raw-1"))
    with pytest.raises(ConfigError, match="extractor: raw-1 and inception-77.*same data and extractor") as raised:
        one.check(one._replace(extractor="inception-77"))
    assert "data:" not in str(raised.value)


def test_scores_of_the_law_itself_and_of_another(tmp_path: Path) -> None:
    """The interval of the first holds the truth; the second is far; its number is in the JSON."""
    against = reference(data(count=4000), "train", Counting(data().card), cache=tmp_path)
    same = score(drawn(2000), against)
    far = score(drawn(2000) + 1.0, against)
    found = same.estimates["frechet"]
    assert found.low < 6 / 3000 * 4 and abs(found.value) < 0.05 and found.raw > found.value
    assert far.estimates["frechet"].low > 5.0 and far.estimates["kernel"].low > 0.5 > same.estimates["kernel"].value
    assert same.estimates["precision"].low > 0.93 > far.estimates["precision"].high > far.estimates["precision"].value
    few = score(drawn(2000), against, alike=150).estimates
    picked = [vectors[mixed(len(vectors), 150)] for vectors in (drawn(2000), against.features)]
    expected = manifold(picked[0], picked[1], 5)._asdict()
    assert {name: few[name].value for name in expected} == expected != {name: same.estimates[name].value for name in expected}
    assert few["recall"].low < few["recall"].value <= few["recall"].high and few["recall"].samples == 150
    assert "frechet_alike" not in few  # 150 are enough for a correction
    told = json.loads(json.dumps(same.to_dict()))
    assert told["frechet"]["value"] == found.value and told["warnings"] == [] and told["frechet"]["samples"] == 2000


def test_few_samples_are_said_to_be_few(tmp_path: Path) -> None:
    """With the size of the bias."""
    against = reference(data(), "train", Counting(data().card), cache=tmp_path)
    (line,) = score(drawn(50), against).warnings
    assert "50 samples for vectors of 6 numbers" in line and "too large" in line
    small = replace(against, features=against.features[:15])
    assert any("15 data for vectors of 6 numbers" in line for line in score(drawn(400), small).warnings)
    with pytest.raises(DataError, match="got 12; a Frechet distance with an interval needs at least 40"):
        score(drawn(12), against)


def test_copies_are_told_and_new_samples_are_not(tmp_path: Path) -> None:
    """Against held-out data of the same protocol only."""
    one, extractor = data(), Counting(data().card)
    train, held = (reference(one, kind, extractor, cache=tmp_path) for kind in ("train", "held out"))
    copied = score(train.features[:200] + 0.01 * drawn(200), train, held_out=held)
    assert copied.copies is not None and copied.copies.found and any("memory: 9" in line for line in copied.warnings)
    fresh = score(drawn(200), train, held_out=held)
    assert fresh.copies is not None and not fresh.copies.found and not any("memory" in line for line in fresh.warnings)
    other = Reference(held.protocol._replace(data="other"), held.features)
    with pytest.raises(ConfigError, match="do not compare"):
        score(drawn(200), train, held_out=other)


def test_statistics_of_other_tools_are_read(tmp_path: Path) -> None:
    """As exact moments; anything else is refused with the reason."""
    mean, cov = np.arange(6.0), np.diag(np.arange(1.0, 7.0))
    np.savez(tmp_path / "good.npz", mu=mean, sigma=cov)
    theirs = foreign_statistics(tmp_path / "good.npz", 6)
    assert frechet(theirs, Moments.given(torch.from_numpy(mean), torch.from_numpy(cov))) == pytest.approx(0.0, abs=1e-9)
    one = data()
    rows = reference(one, "train", Raw(one.card), cache=tmp_path)
    far = Moments.given(rows.moments.mean + 1.0, rows.moments.cov)
    beside = [score(rows.features, rows, theirs=other) for other in (None, far)]
    assert beside[1].estimates["frechet"].value - beside[0].estimates["frechet"].value == pytest.approx(len(far.mean), rel=0.01)
    assert all(beside[0].estimates[name] == one for name, one in beside[1].estimates.items() if name != "frechet")
    np.savez(tmp_path / "short.npz", mu=mean[:3], sigma=cov[:3, :3])
    np.savez(tmp_path / "nan.npz", mu=mean * np.nan, sigma=cov)
    np.savez(tmp_path / "other.npz", x=mean)
    (tmp_path / "text.npz").write_text("<html>")
    words = {
        "short": "makes vectors of 6",
        "nan": "not finite",
        "other": "holds no mu and sigma",
        "text": "holds no mu",
        "none": "holds no mu",
    }
    for name, what in words.items():
        with pytest.raises(ConfigError, match=what):
            foreign_statistics(tmp_path / f"{name}.npz", 6)


def test_samples_that_are_not_finite_are_not_scored(tmp_path: Path) -> None:
    """How many, and what may help."""
    x = drawn(50)
    x[7, 3] = float("nan")
    with pytest.raises(DataError, match="1 of 50 are not finite.*clipping"):
        embedded(Raw(data().card), x)
    features = embedded(Raw(data().card), drawn(50))
    assert features.shape == (50, 6) and Raw(data().card).logits(features) is None
    against = reference(data(), "train", Raw(data().card), cache=tmp_path)
    with pytest.raises(DataError, match="vectors of 6 numbers, the reference has 4"):
        score(features, against, theirs=Moments.given(torch.zeros(4), torch.eye(4)))


def test_a_classifier_gives_an_inception_score(tmp_path: Path) -> None:
    """Of its logits."""

    class Sure(Raw):
        def logits(self, features: torch.Tensor) -> torch.Tensor:
            return torch.eye(5)[torch.arange(len(features)) % 5] * 50

    extractor: Extractor = Sure(data().card)
    against = reference(data(), "train", extractor, cache=tmp_path)
    features = embedded(extractor, drawn(100))
    assert score(features, against, logits=extractor.logits(features)).estimates["inception_score"].value == pytest.approx(5.0, rel=1e-6)
