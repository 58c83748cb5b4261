"""Hugging Face data sets: the command that installs what is missing, and, where it is installed, folders written by it."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm.data import DataSettings, open_data
from ddpm.errors import ConfigError, DataError


def test_the_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'ddpm\[datasets\]'"):
        open_data(DataSettings(data="hf:mnist"))


def encoded(seed: int) -> dict[str, bytes | None]:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(out, "PNG")
    return {"bytes": out.getvalue(), "path": None}


@pytest.mark.filterwarnings("ignore")
def test_folders_written_by_the_package(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the optional package datasets is not installed")
    labels = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({"image": datasets.Image(), "label": labels})
    parts = {
        split: datasets.Dataset.from_dict(
            {"image": [encoded(i + start) for i in range(count)], "label": [i % 2 for i in range(count)]}, features
        )
        for split, count, start in (("train", 12, 0), ("validation", 4, 100))
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "both"))
    parts["train"].save_to_disk(str(tmp_path / "one"))
    for name in (str(tmp_path / "both"), f"hf:{tmp_path / 'both'}"):
        dataset = open_data(DataSettings(data=name))
        assert dataset.card.shape == (3, 6, 6) and dataset.card.classes == ("cat", "dog")
        assert list(dataset.held_rows) == [12, 13, 14, 15] and list(dataset.cond["class"]) == [0, 1] * 8
        first = np.asarray(Image.open(io.BytesIO(encoded(0)["bytes"] or b"")))
        assert np.array_equal(dataset.samples[0], first.transpose(2, 0, 1))
    assert open_data(DataSettings(data=str(tmp_path / "one"))).card.held_out == 1
    table = datasets.Dataset.from_dict({"a": [0.5 * i for i in range(20)], "b": list(range(20)), "label": [i % 3 for i in range(20)]})
    table.save_to_disk(str(tmp_path / "table"))
    card = open_data(DataSettings(data=str(tmp_path / "table"))).card
    assert card.shape == (2,) and card.classes == ("0", "1", "2") and card.normalise == "standard"
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(tmp_path / "text"))
    with pytest.raises(DataError, match="no column of pictures or numbers; found text"):
        open_data(DataSettings(data=str(tmp_path / "text")))
