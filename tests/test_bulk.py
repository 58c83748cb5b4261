"""Samples in archives: what is in them, that their bytes depend on the samples alone, and that they are data again."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpm.cli import main
from ddpm.data import open_data
from ddpm.data.bulk import save_shards, save_zip
from ddpm.data.settings import DataSettings
from ddpm.evaluation.drawing.ready import Ready
from small_runs import SMALL_UNET, pictures, quietly, settings

PICTURES = np.random.default_rng(0).integers(0, 256, (25, 3, 4, 6)).astype(np.uint8)
LABELS = np.arange(25) % 3


def test_a_zip_is_read_back_with_its_labels(tmp_path: Path) -> None:
    one = save_zip(iter([PICTURES[:10], PICTURES[10:]]), (0, 255), LABELS, tmp_path / "one.zip")
    two = save_zip(iter([PICTURES]), (0, 255), LABELS, tmp_path / "two.zip")
    assert one.read_bytes() == two.read_bytes()
    with zipfile.ZipFile(one) as archive:
        assert archive.namelist()[:2] == ["00000/000000.png", "00000/000001.png"] and len(archive.namelist()) == 26
        assert json.loads(archive.read("dataset.json"))["labels"][4] == ["00000/000004.png", 1]
    found = open_data(DataSettings(data=str(one), holdout=0.0))
    raw, cond = found.batch(np.arange(25))
    assert np.array_equal(raw, PICTURES) and cond["class"].tolist() == LABELS.tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_shards_are_read_back(dtype: type, tmp_path: Path) -> None:
    samples = PICTURES.astype(dtype)
    written = save_shards(iter([samples[:7], samples[7:]]), (0, 255), LABELS, tmp_path, 10)
    assert [path.name for path in written] == ["samples-000000.tar", "samples-000001.tar", "samples-000002.tar"]
    with tarfile.open(written[2]) as archive:
        kind = "png" if dtype is np.uint8 else "npy"
        assert archive.getnames()[:2] == [f"000000020.{kind}", "000000020.cls"] and len(archive.getnames()) == 10
    found = open_data(DataSettings(data=str(tmp_path / "samples-{000000..000002}.tar"), holdout=0.0, layout="first"))
    raw, cond = found.batch(np.arange(25))
    assert np.array_equal(raw, samples) and cond["class"].tolist() == LABELS.tolist()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = tmp_path_factory.mktemp("bulk") / "run"
    quietly(settings(run, network=SMALL_UNET), data=pictures(3, 4, 4))
    return str(run)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("kind", ["zip", "shards", "png", "npz"])
def test_continued_by_other_processes_gives_the_same_bytes(
    kind: str, trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by two processes, one after the other."""
    words = ["sample", trained, "--n", "20", "--steps", "2", "--batch", "6", "--format", kind, "--shard", "8", "--device", "cpu"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*words, "--out", str(whole)]) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("ddpm.cli.app.inside", lambda: False)  # torchrun's own part is not tested here
    assert main([*words, "--out", str(parts)]) == 0
    assert len(list((parts / ".unfinished").glob("from-*.npy"))) == 2
    monkeypatch.setenv("RANK", "0")
    assert main([*words, "--out", str(parts)]) == 0
    assert contents(whole) == contents(parts)
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["n"] == 20 and set(manifest["files"]) == set(contents(whole)) - {"manifest.json"}


def test_a_copy_of_the_same_command_that_ended_first_is_told(
    trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Instead of waiting for batches that nobody draws any more."""
    original, calls = Ready.draw, 0

    def draw(self: Ready, *given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            shutil.rmtree(tmp_path / "out" / ".unfinished")
        return original(self, *given)

    monkeypatch.setattr(Ready, "draw", draw)
    words = ["sample", trained, "--n", "20", "--steps", "2", "--batch", "6", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "another copy of this very command" in capsys.readouterr().err
