"""Conditions from files and flags: tags, vectors by name, and how their numbers reach the network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ddpm
from ddpm.cli import main
from ddpm.cli.sample import far_off, vector_of
from ddpm.data.label_files import match, read_lines
from ddpm.denoiser import Codec
from ddpm.errors import CheckpointError, ConfigError, DataError
from ddpm.networks.embeddings import Embedding
from ddpm.training.build import described_vector, rebuild
from small_runs import held, quietly, settings


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_tags_are_a_column_each(kind: str) -> None:
    tags = {"a.png": ["red", "round"], "b.png": [], "c.png": ["round", "size 10"]}
    if kind == "csv":
        text = "file_name,tags,weight\n" + "".join(f"{name},{'|'.join(names)},{i}\n" for i, (name, names) in enumerate(tags.items()))
    else:
        text = "".join(json.dumps({"file_name": name, "tags": names, "weight": i}) + "\n" for i, (name, names) in enumerate(tags.items()))
    found = match(read_lines(text.encode(), f"metadata.{kind}"), list(tags), list(tags), "metadata", None)
    assert found.vector_names == ("red", "round", "size 10", "weight")
    assert found.vector is not None and found.tags == ("red", "round", "size 10")
    np.testing.assert_array_equal(found.vector, [[1, 1, 0, 0], [0, 0, 0, 1], [0, 1, 1, 2]])


def test_tags_that_are_no_names() -> None:
    lines = read_lines(b'{"file_name": "a.png", "tags": [1]}\n{"file_name": "b.png", "tags": ["x"]}\n', "metadata.jsonl")
    with pytest.raises(DataError, match="metadata.jsonl line 1: tags .* no list of names"):
        match(lines, ["a.png", "b.png"], ["a.png", "b.png"], "metadata.jsonl", None)


@pytest.mark.parametrize(
    ("given", "names", "numbers"),
    [
        (("1", "2.5"), ["a", "b"], [1.0, 2.5]),
        (("b=2.5", "a=-1"), ["a", "b"], [-1.0, 2.5]),
        (("b",), ["a", "b", "c"], [0.0, 1.0, 0.0]),
        (("c", "a"), ["a", "b", "c"], [1.0, 0.0, 1.0]),
        (("x=y=3",), ["x=y"], [3.0]),
        (("3",), ["3", "4"], [1.0, 0.0]),
    ],
)
def test_vectors_in_order_or_by_name(given: tuple[str, ...], names: list[str], numbers: list[float]) -> None:
    assert vector_of(given, names, names) == numbers


@pytest.mark.parametrize(
    "given", [None, ("1",), ("1", "2", "3"), ("a=1",), ("a=1", "a=2"), ("a=1", "c=2"), ("a", "c"), ("a=x", "b=1"), ("nan", "1")]
)
def test_vectors_that_are_not_of_the_model(given: tuple[str, ...] | None) -> None:
    with pytest.raises(ConfigError, match="--vector: .*a, b"):
        vector_of(given, ["a", "b"], ())


def test_numbers_nobody_was_trained_on_are_told() -> None:
    codec = Codec(shift=(40.0, 0.0), scale=(10.0, 1.0))
    assert far_off([139.0, 1.0], ["age", "smoker"], codec) == [] == far_off([1e9], ["age"], None)
    (line,) = far_off([-160.0, 1.0], ["age", "smoker"], codec)
    assert line.startswith("--vector: age=-160 is 20 deviations from the training data's 40")


def test_names_alone_are_for_vectors_of_tags() -> None:
    """Where an entry is a number, 0 would be an answer nobody gave."""
    with pytest.raises(ConfigError, match="--vector"):
        vector_of(("red",), ["red", "weight"], ("red",))


def test_a_tag_and_a_column_of_one_name_are_refused() -> None:
    lines = read_lines(b'{"file_name": "a.png", "tags": ["weight", " red"], "weight": 2.5}\n', "metadata.jsonl")
    with pytest.raises(DataError, match="'weight' is a tag and a column"):
        match(lines, ["a.png"], ["a.png"], "metadata.jsonl", None)


def measurements(count: int = 60) -> ddpm.Dataset:
    """Samples with a year, a pressure, and a number that never changes."""
    rng = np.random.default_rng(0)
    vector = np.stack([rng.integers(2010, 2020, count), rng.normal(101325.0, 800.0, count), np.full(count, 0.1)], axis=1)
    return ddpm.from_arrays(rng.normal(size=(count, 3)).astype(np.float32), {"vector": vector}, name="measurements", holdout=0.2)


def test_mean_and_deviation_are_of_the_training_rows() -> None:
    data = measurements()
    numbers = data.cond["vector"][data.train_rows].astype(np.float64)
    assert data.card.vector_mean == pytest.approx(numbers.mean(0)) and data.card.vector_std[:2] == pytest.approx(numbers.std(0)[:2])
    codec = Codec.of_vector(data.card)
    assert codec is not None and data.card.vector_std[2] == 0.0 and codec.scale[2] == 1.0
    tagged = Codec.of_vector(replace(data.card, tags=("v1",)))
    assert tagged is not None and (tagged.shift[1], tagged.scale[1]) == (0.0, 1.0) and tagged.shift[0] == codec.shift[0]
    assert (
        Codec.of_vector(replace(data.card, tags=data.card.vector)) is None
        and ddpm.from_arrays(np.zeros((9, 2)) + np.arange(9)[:, None]).card.vector_mean == ()
    )


class Seen(torch.nn.Module):
    """Remembers the vectors it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.vectors = torch.nn.Linear(3, 3), list[torch.Tensor]()

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor, cond: Any) -> torch.Tensor:
        if "vector" in cond:
            self.vectors.append(cond["vector"].detach().clone())
        return self.layer(x)


def test_the_network_sees_numbers_of_mean_0_and_deviation_1_and_samples_are_asked_for_in_their_units(tmp_path: Path) -> None:
    data, network = measurements(), Seen()
    config = settings(tmp_path / "run", network=None, batch=48, steps=1, cond_dropout=0.0)
    quietly(config, data=data, network=network)
    (shown,) = (vectors for vectors in network.vectors[:1])
    torch.testing.assert_close(shown.mean(0), torch.zeros(3), atol=1e-3, rtol=0.0)
    torch.testing.assert_close(shown.std(0, unbiased=False)[:2], torch.ones(2), atol=1e-3, rtol=0.0)
    asked = Seen()
    model = ddpm.load(tmp_path / "run", network=asked)
    ddpm.sample(model, 2, steps=2, cond={"vector": torch.tensor([[2019.0, 101325.0, 0.1]] * 2)})
    year = (2019.0 - data.card.vector_mean[0]) / data.card.vector_std[0]
    assert asked.vectors and all(vectors[0, 0].item() == pytest.approx(year, rel=1e-4) for vectors in asked.vectors)


def test_a_year_and_a_pressure_do_not_drown_the_noise_level(tmp_path: Path) -> None:
    data = measurements()
    model = quietly(settings(tmp_path / "run", cond_dropout=0.0), data=data).denoiser
    embedding = next(part for part in model.network.modules() if isinstance(part, Embedding))
    parts: list[torch.Tensor] = []
    embedding.vector_out.register_forward_hook(lambda *call: parts.append(call[2].detach()))
    rows = data.train_rows[:32]
    x, cond = torch.zeros(32, 3), {"vector": torch.from_numpy(data.cond["vector"][rows])}
    model(x, model.process.at(torch.tensor(0.5), like=x), cond)
    assert 0.05 < parts[0].std(0).mean() < 2.0  # 9,000 of numbers as they are


def test_models_of_before_see_numbers_as_they_are(tmp_path: Path) -> None:
    data = measurements()
    quietly(settings(tmp_path / "run"), data=data)
    document = held(tmp_path / "run").document("config")
    assert rebuild(document).vector_codec == Codec.of_vector(data.card)
    older = {key: value for key, value in document.items() if key != "vector_codec"}
    assert described_vector(older) is None and rebuild(older).vector_codec is None
    with pytest.raises(CheckpointError, match=r"a codec of 3 and 3 entries for a vector of 2"):
        rebuild({**document, "vector": ["v0", "v1"]})


def test_a_resumed_run_and_one_that_starts_from_another_scale_as_it_did(tmp_path: Path) -> None:
    quietly(settings(tmp_path / "run"), data=measurements())
    before = ddpm.load(tmp_path / "run").vector_codec
    other = measurements(90)
    assert before is not None and before != Codec.of_vector(other.card)
    resumed = quietly(settings(tmp_path / "run", steps=6, accept_data_change=True), data=other).denoiser
    begun = quietly(settings(tmp_path / "new", init=str(tmp_path / "run")), data=other).denoiser
    assert resumed.vector_codec == begun.vector_codec == before == ddpm.load(tmp_path / "new").vector_codec


def test_an_image_condition_in_grey_levels_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """Where it is learned from: without conditions it is not looked at."""
    image = np.full((40, 1, 8, 8), 255, np.uint8)
    data = ddpm.from_arrays(np.zeros((40, 1, 8, 8), np.float32) + np.arange(40)[:, None, None, None], {"image": image})
    small = ddpm.UNetConfig(channels=8, mults=(1,), blocks=1, attention=(), dropout=0.0)
    with pytest.raises(DataError, match="the condition 'image' is 255 in root mean square"):
        quietly(settings(tmp_path / "no", network=small, steps=1), data=data)
    assert not (tmp_path / "no" / "latest").exists()
    quietly(settings(tmp_path / "yes", network=small, steps=1, conditional=False), data=data)


def test_sampling_far_from_the_training_data_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quietly(settings(tmp_path / "run", steps=1, cond_dropout=0.0), data=measurements())
    for year, told in (("2019", 0), ("1e6", 1)):
        assert main(["sample", str(tmp_path / "run"), "--n", "2", "--steps", "2", "--vector", f"{year},101325,0.1"]) == 0
        assert capsys.readouterr().err.count("deviations from the training data's") == told
