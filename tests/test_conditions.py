"""Conditions from files and flags: tags, vectors by name."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ddpm.cli.sample import vector_of
from ddpm.data.labels import match, read_lines
from ddpm.errors import ConfigError, DataError


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


def test_names_alone_are_for_vectors_of_tags() -> None:
    """Where an entry is a number, 0 would be an answer nobody gave."""
    with pytest.raises(ConfigError, match="--vector"):
        vector_of(("red",), ["red", "weight"], ("red",))


def test_a_tag_and_a_column_of_one_name_are_refused() -> None:
    lines = read_lines(b'{"file_name": "a.png", "tags": ["weight", " red"], "weight": 2.5}\n', "metadata.jsonl")
    with pytest.raises(DataError, match="'weight' is a tag and a column"):
        match(lines, ["a.png"], ["a.png"], "metadata.jsonl", None)
