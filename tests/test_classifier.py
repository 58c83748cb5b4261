"""The noisy classifier of a run: trained, kept, verified, followed; and `ddpm sample` refuses guidance that cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm import load, sample
from ddpm.cli import main
from ddpm.data import Dataset, from_arrays
from ddpm.errors import CheckpointError, ConfigError, DataError
from ddpm.guidance import ClassifierGuided
from ddpm.training import ClassifierConfig, OptimizerSettings, load_classifier, train_classifier
from small_runs import SMALL_MLP, quietly, settings


def blobs(count: int = 200, classes: int = 2, seed: int = 0) -> Dataset:
    """Class k round (6k, -6k), as far apart as their noise is wide at sigma/alpha = 6."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % classes
    points = rng.normal(0.0, 1.0, (count, 2)) + np.stack([6.0 * label, -6.0 * label], 1)
    return from_arrays(points.astype(np.float32), {"class": label}, name="blobs", classes=tuple("abc"[:classes]), normalise="standard")


QUICK = ClassifierConfig(steps=80, batch=64, threads=1, network=SMALL_MLP, optimizer=OptimizerSettings(lr=1e-2, warmup=5))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the blobs with an earlier checkpoint, and its classifier."""
    folder = tmp_path_factory.mktemp("guided") / "run"
    quietly(settings(folder, steps=20, checkpoint_every=10, batch=32), data=blobs())
    train_classifier(folder, QUICK, data=blobs(), quiet=True)
    return folder


def test_it_finds_classes_where_they_can_be_found(run: Path) -> None:
    trained = train_classifier(run, QUICK, data=blobs(), quiet=True)
    ratios, shares = list(trained.accuracy), list(trained.accuracy.values())
    assert ratios == sorted(ratios) and shares[0] > 0.97 and shares[0] >= shares[-1] - 0.05


def test_it_is_the_same_again_and_loads_as_it_was_trained(run: Path, tmp_path: Path) -> None:
    quietly(settings(tmp_path / "other", steps=2, batch=32), data=blobs())
    again = train_classifier(tmp_path / "other", QUICK, data=blobs(), quiet=True)
    loaded, (x, at) = load_classifier(run), (torch.randn(5, 2), again.classifier.process.at(0.4))
    at = at.like(x)
    assert torch.equal(loaded(x, at), again.classifier(x, at)) and loaded.names == ("a", "b") and not loaded.training
    assert torch.equal(load_classifier(run / "step-0000020")(x, at), loaded(x, at))  # of a step folder: its run's


def test_the_newest_training_counts_even_when_it_was_shorter(tmp_path: Path) -> None:
    quietly(settings(tmp_path, steps=2, batch=32), data=blobs())
    for steps in (6, 4):
        train_classifier(tmp_path, replace(QUICK, steps=steps), data=blobs(), quiet=True)
        assert (tmp_path / "classifier" / "latest").read_text().strip() == f"step-000000{steps}"
    x = torch.randn(5, 2)
    four, at = load_classifier(tmp_path), load(tmp_path).process.at(0.4).like(x)
    train_classifier(tmp_path, replace(QUICK, steps=6), data=blobs(), quiet=True)
    assert not torch.equal(four(x, at), load_classifier(tmp_path)(x, at))


def test_a_damaged_or_missing_classifier_says_how_to_train_it(tmp_path: Path) -> None:
    quietly(settings(tmp_path, steps=2, batch=32), data=blobs())
    with pytest.raises(CheckpointError, match=f"no classifier; train it with ddpm classifier {tmp_path}"):
        load_classifier(tmp_path)
    train_classifier(tmp_path, replace(QUICK, steps=2), data=blobs(), quiet=True)
    weights = tmp_path / "classifier" / "step-0000002" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"SHA-256.*train it anew with ddpm classifier"):
        load_classifier(tmp_path)


def test_an_unconditional_run_is_steered_by_a_classifier_and_not_without(tmp_path: Path) -> None:
    """The class asked for is where the samples go, though the model never saw a label."""
    quietly(settings(tmp_path, steps=120, batch=64, conditional=False, optimizer=OptimizerSettings(lr=1e-2, warmup=10)), data=blobs())
    train_classifier(tmp_path, QUICK, data=blobs(), quiet=True)
    model, asked = load(tmp_path), torch.arange(64) % 2
    guided = ClassifierGuided(model, load_classifier(tmp_path), 3.0)
    found = (sample(guided, 64, steps=20, cond={"class": asked})[:, 0] > 3.0).long()
    assert float((found == asked).float().mean()) > 0.9
    model.conditions = frozenset({"vector"})  # whatever else a model is told, the classifier is asked for a class
    assert len(sample(ClassifierGuided(model, load_classifier(tmp_path), 3.0), 2, steps=2, cond={"class": asked[:2]})) == 2
    model.conditions = frozenset()
    plain = (sample(model, 64, steps=20)[:, 0] > 3.0).long()
    assert 0.25 < float((plain == asked).float().mean()) < 0.75
    assert main(["sample", str(tmp_path), "--guidance-kind", "classifier", "--classes", "b", "--n", "4", "--steps", "5"]) == 0


def test_data_that_are_not_the_runs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three = blobs(classes=3)
    with pytest.raises(DataError, match="does not fit the model"):
        train_classifier(run, QUICK, data=three, quiet=True)
    unlabelled = from_arrays(np.zeros((200, 2), np.float32) + np.arange(200)[:, None].astype(np.float32), name="plain")
    with pytest.raises(DataError, match="no labels"):
        train_classifier(run, QUICK, data=unlabelled, quiet=True)
    assert main(["classifier", str(run)]) == 3  # the run was given its data in Python, and its settings say digits
    assert "does not fit the model" in capsys.readouterr().err
    assert main(["classifier", str(run), "--steps", "0", "--data", "digits"]) == 2
    with pytest.raises(ConfigError, match="lr"):
        replace(QUICK, optimizer=OptimizerSettings(lr=-1.0))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the bundled digits, as `ddpm train` would have it: its own data are found again."""
    from ddpm.networks.config import UNetConfig
    from ddpm.training import train

    small = UNetConfig(channels=8, mults=(1, 2), blocks=1, attention=())
    train(settings(tmp_path, steps=2, network=small), quiet=True)
    words = ["--network", "unet-config", "--network.channels", "8", "--network.mults", "1,2", "--network.blocks", "1"]
    assert main(["classifier", str(tmp_path), "--steps", "3", "--threads", "1", *words]) == 0
    said = capsys.readouterr().out
    assert "held-out accuracy at noise/signal" in said and f"ddpm sample {tmp_path} --guidance-kind classifier" in said
    assert main(["sample", str(tmp_path), "--guidance-kind", "classifier", "--guidance", "2", "--n", "2", "--steps", "2"]) == 0
    assert "guidance 2 (classifier)" in capsys.readouterr().out


CHANGES = (
    "--guidance 3",
    "--guidance 3 --guidance-interval 0.3,3",
    "--guidance 3 --rescale 0.7",
    "--autoguide 10 --guidance 2",
    "--autoguide {} --guidance 2",
)


@pytest.mark.parametrize("words", CHANGES)
def test_every_flag_changes_the_samples(run: Path, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def drawn(name: str, *more: str) -> np.ndarray:
        assert main(["sample", str(run), "--n", "6", "--steps", "8", "--out", str(tmp_path / name), *more]) == 0
        return np.load(next((tmp_path / name).glob("*.npz")))["arr_0"]

    given = words.format(run / "step-0000010").split()
    assert not np.array_equal(drawn("plain"), drawn("guided", *given))
    if words != "--guidance 3":
        assert not np.array_equal(drawn("free", "--guidance", "3"), drawn("again", *given))


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        ("--guidance 2 --guidance-interval 3,0.3", ["--guidance-interval: got 3,0.3", "the lower first"]),
        ("--guidance 2 --guidance-interval 3", ["--guidance-interval: got 3", "two numbers"]),
        ("--guidance 2 --guidance-interval 1e7,1e8", ["interval: got 1e+07,1e+08", "never act"]),
        ("--guidance 2 --guidance-interval 0.1,nan", ["--guidance-interval", "not finite"]),
        ("--guidance 2 --rescale 1.5", ["--rescale is 1.5", "<= 1"]),
        ("--guidance inf", ["--guidance is inf", "not finite"]),
        ("--guidance 2 --guidance-kind cgf", ["--guidance-kind is cgf", "did you mean cfg"]),
        ("--guidance 2 --guidance-kind autoguide", ["--guidance-kind: autoguide needs a weaker model"]),
        ("--guidance 2 --guidance-kind cfg --autoguide 10", ["--autoguide: names a weaker model, but --guidance-kind is cfg"]),
        ("--autoguide 10", ["--autoguide: does nothing at guidance scale 1"]),
        ("--rescale 0.7", ["--rescale: does nothing"]),
        ("--guidance 2 --autoguide 11", ["step 11", "20, 10"]),
        ("--guidance 2 --autoguide nowhere", ["nowhere: there is no such run folder"]),
        ("--clip-quantile 0", ["--clip-quantile is 0", "> 0"]),
    ],
)
def test_what_the_command_line_refuses(run: Path, words: str, texts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["sample", str(run), "--n", "2", "--steps", "2", *words.split()])
    said = capsys.readouterr().err
    assert code in (2, 4) and all(text in said for text in texts) and "Traceback" not in said, said


def test_weak_models_that_do_not_fit(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quietly(settings(tmp_path / "classes", steps=2, batch=32), data=blobs(classes=3))
    quietly(settings(tmp_path / "plain", steps=2, batch=32, conditional=False, cond_dropout=0.0), data=blobs())
    for other, text in (("classes", "knows other classes (a, b, c) than"), ("plain", "knows other classes (none) than")):
        assert main(["sample", str(run), "--guidance", "2", "--autoguide", str(tmp_path / other), "--n", "2"]) == 2
        assert text in capsys.readouterr().err
    assert main(["sample", str(tmp_path / "plain"), "--guidance", "2", "--n", "2"]) == 2
    assert "no condition to be guided by" in capsys.readouterr().err
