"""`ddpm evaluate --samples`: what lies in files is scored as what a run draws, and refused where it is something else."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddpm.cli import main
from ddpm.data import DataSettings
from ddpm.errors import DataError
from ddpm.evaluation import EvaluateConfig, evaluate_samples
from small_runs import SMALL_UNET, quietly, settings

HOW = ["--steps", "3", "--batch", "30", "--seed", "4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    home = tmp_path_factory.mktemp("samples") / "run"
    quietly(settings(home, network=SMALL_UNET, steps=4, conditional=False))
    return str(home)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 200 colour pictures of noise."""
    folder = tmp_path_factory.mktemp("photos")
    for i, picture in enumerate(noise(200, 0)):
        Image.fromarray(picture).save(folder / f"{i}.png")
    return folder


def noise(count: int, seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)


LEVELS = noise(60, 1).astype(np.float32).transpose(0, 3, 1, 2)


def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def test_samples_in_a_file_score_as_those_drawn_for_the_report(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every score, that of real data and the channels; and the two compare."""
    assert main(["sample", run, "--n", "330", *HOW, "--format", "npz", "--out", str(tmp_path / "drawn")]) == 0
    (path,) = (tmp_path / "drawn").glob("*.npz")
    words = ["--sweep", "0", "--likelihood", "0", "--extractor", "raw", "--out", str(tmp_path / "report")]
    assert main(["evaluate", run, "--n", "330", *HOW, *words]) == 0
    assert main(["evaluate", run, "--samples", str(path), "--extractor", "raw"]) == 0
    mine, its = content(path.with_name(f"{path.stem}-report")), content(tmp_path / "report")
    for key in ("scores", "real", "protocol", "drift", "n", "warnings", "fingerprint"):
        assert mine[key] == its[key]
    page = (path.with_name(f"{path.stem}-report") / "report.html").read_text()
    assert "330 samples from files" in page and page.count("data:image/png;base64,") == 2 and "Step" not in page
    capsys.readouterr()
    assert main(["compare", str(path.with_name(f"{path.stem}-report")), str(tmp_path / "report")]) == 0
    assert "(tied)" in capsys.readouterr().out


def test_a_folder_of_pictures_is_scored_without_a_run(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The overview that `ddpm sample` lays beside its samples is none of them; samples of the data's own law are near them."""
    for name, seed in (("near", 1), ("far", 2)):
        (tmp_path / name).mkdir()
        for i, picture in enumerate(noise(60, seed) // (1 if name == "near" else 2)):
            Image.fromarray(picture).save(tmp_path / name / f"{i:06d}.png")
    Image.fromarray(np.zeros((90, 90, 3), np.uint8)).save(tmp_path / "near" / "grid.png")
    (tmp_path / "near" / "manifest.json").write_text("{}")
    found = {}
    for name in ("near", "far"):
        assert main(["evaluate", "--samples", str(tmp_path / name), "--data", str(photos), "--extractor", "raw"]) == 0
        assert f"60 samples of {tmp_path / name}; extractor raw" in capsys.readouterr().out
        found[name] = content(tmp_path / f"{name}-report")
    assert found["near"]["n"] == 60 and found["near"]["protocol"] == found["far"]["protocol"]
    assert found["far"]["scores"]["energy"]["low"] > found["near"]["scores"]["energy"]["high"]
    assert "sampling" not in found["near"] and found["near"]["samples"] != found["far"]["samples"]


def test_the_order_of_samples_does_not_matter(tmp_path: Path) -> None:
    """Sorted by class, with the classes in turn, as data often come, or mixed: scores differ by less than their intervals."""
    generator = np.random.default_rng(0)
    every = (25 * (np.arange(1000) % 10)[:, None, None, None] + generator.integers(0, 25, (1000, 1, 4, 4))).astype(np.uint8)
    np.save(tmp_path / "data.npy", every[::-1])
    found = {}
    for name, order in (("turn", np.arange(1000)), ("sorted", np.argsort(np.arange(1000) % 10)), ("mixed", generator.permutation(1000))):
        np.save(tmp_path / f"{name}.npy", every[order])
        asked = EvaluateConfig(data=DataSettings(data=str(tmp_path / "data.npy")), extractor="raw")
        found[name] = evaluate_samples(tmp_path / f"{name}.npy", asked).scores.estimates
        half = evaluate_samples(tmp_path / f"{name}.npy", EvaluateConfig(n=100, data=asked.data, extractor="raw")).scores.estimates
        assert half["channel_values"].value < 0.2 and half["recall"].value > 0.9  # of some classes alone: 0.4 and more, and less
    for name in ("frechet", "recall", "coverage", "energy", "sliced_wasserstein", "channel_values"):
        one, two, three = (found[order][name] for order in ("turn", "sorted", "mixed"))
        assert max(one.low, two.low, three.low) <= min(one.high, two.high, three.high)
    widths = [found[order]["frechet"].high - found[order]["frechet"].low for order in found]
    assert max(widths) < 2.0 * min(widths)


@pytest.mark.parametrize(
    ("array", "words", "code", "said"),
    [
        (noise(60, 1)[:, :6], [], 3, "samples of shape (3, 6, 8), the data have (3, 8, 8)"),
        ((noise(60, 1) / 255).astype(np.float32).transpose(0, 3, 1, 2), [], 3, "not all of them whole; the data are the whole numbers"),
        (LEVELS - 9, [], 3, "values from -9 to"),
        (LEVELS + 9, [], 3, "to 264; the data are"),
        (LEVELS + 0.5 * (np.arange(60) == 59)[:, None, None, None], [], 3, "not all of them whole"),
        (noise(60, 1).astype(np.float32), [], 3, "arrays to channels first"),
        (LEVELS * np.nan, [], 3, "some.npz: "),
        (noise(60, 1), ["--n", "61"], 3, "holds 60 samples, fewer than the 61"),
        (noise(60, 1), ["--steps", "3", "--sweep", "50", "--seed", "2"], 2, "seed, steps, sweep: of no use"),
        (noise(20, 1), [], 3, "at least 40"),
    ],
)  # fmt: skip
def test_samples_that_are_something_else_are_refused(
    array: Any, words: list[str], code: int, said: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "some.npz", samples=array)
    assert main(["evaluate", "--samples", str(tmp_path / "some.npz"), "--data", str(photos), "--extractor", "raw", *words]) == code
    assert said in capsys.readouterr().err and not (tmp_path / "some-report").exists()


def test_continuous_data_are_not_compared_with_levels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "fields.npy", np.random.default_rng(0).standard_normal((200, 3, 8, 8)).astype(np.float32))
    np.save(tmp_path / "pictures.npy", noise(60, 1))
    assert main(["evaluate", "--samples", str(tmp_path / "pictures.npy"), "--data", str(tmp_path / "fields.npy")]) == 3
    assert "the data are continuous" in capsys.readouterr().err


def test_a_report_lies_beside_the_samples_by_their_name(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder one is in, and names with dots."""
    (tmp_path / "v1.5").mkdir()
    monkeypatch.chdir(tmp_path / "v1.5")
    np.savez("run.v2.npz", samples=noise(60, 1))
    asked = EvaluateConfig(data=DataSettings(data=str(photos)), extractor="raw")
    assert evaluate_samples("run.v2.npz", asked).folder == tmp_path / "v1.5" / "run.v2-report"
    (tmp_path / "v1.5" / "run.v2.npz").unlink()
    for i, picture in enumerate(noise(60, 2)):
        Image.fromarray(picture).save(f"{i:02d}.png")
    assert evaluate_samples(".", asked).folder == tmp_path / "v1.5-report"


def test_what_is_missing_is_asked_for(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "pictures.npy", noise(60, 1))
    path = str(tmp_path / "pictures.npy")
    for words, code, said in (
        ([], 2, "name a run folder, or samples"), (["--samples", path], 2, "what the samples are compared with"),
        ([run, "--samples", str(tmp_path / "none.npz")], 3, "no such file"), ([run, "--samples", path], 3, "shape"),
        ([path], 2, f"--samples {path} --data PATH"),
    ):  # fmt: skip
        assert main(["evaluate", *words]) == code
        assert said in capsys.readouterr().err


def test_samples_in_folders_of_a_split_are_all_scored_and_their_own_features(photos: Path, tmp_path: Path) -> None:
    """Whatever the folders say; test/ is left out, which is said."""
    for name, count in (("train", 50), ("validation", 30), ("test", 9)):
        (tmp_path / "s" / name).mkdir(parents=True)
        for i, picture in enumerate(noise(count, count)):
            Image.fromarray(picture).save(tmp_path / "s" / name / f"{i:02d}.png")
    heard: list[str] = []
    asked = EvaluateConfig(data=DataSettings(data=str(photos)), extractor="raw")
    done = evaluate_samples(tmp_path / "s", asked, say=heard.append)
    every = np.concatenate([noise(50, 50), noise(30, 30)])
    np.save(tmp_path / "same.npy", every)
    same = evaluate_samples(tmp_path / "same.npy", asked)
    assert done.report["n"] == 80 and done.scores.to_dict() == same.scores.to_dict()
    assert any("9 pictures in test/ are left out" in line for line in heard)


def test_data_that_are_not_the_runs_are_named(run: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the run's data there is nothing to say; what was typed wins over the run's."""
    np.savez(tmp_path / "colour.npz", samples=noise(60, 1))
    assert main(["sample", run, "--n", "60", "--steps", "2", "--format", "npz", "--out", str(tmp_path / "drawn")]) == 0
    own = [run, "--samples", str(tmp_path / "drawn"), "--extractor", "raw"]  # the folder, of which the file is meant
    assert main(["evaluate", *own]) == 0 and "not the data" not in capsys.readouterr().err
    assert content(tmp_path / "drawn-report")["n"] == 60
    assert main(["evaluate", *own, "--holdout", "0.2", "--out", str(tmp_path / "out")]) == 0
    assert "not the data, or not the split" in capsys.readouterr().err and (tmp_path / "out" / "report.json").is_file()
    typed = [run, "--samples", str(tmp_path / "colour.npz"), "--data", str(photos), "--extractor", "raw"]
    assert main(["evaluate", *typed]) == 0 and "not the data" in capsys.readouterr().err
    assert content(tmp_path / "colour-report")["data"] == photos.name


def test_what_ddpm_sample_wrote_is_read_without_its_overview(photos: Path, tmp_path: Path) -> None:
    """In a zip too; elsewhere a picture of that name is a picture."""
    with zipfile.ZipFile(tmp_path / "drawn.zip", "w") as archive:
        for i in range(60):
            archive.write(photos / f"{i}.png", f"drawn/{i}.png")
        Image.fromarray(np.zeros((90, 90, 3), np.uint8)).save(tmp_path / "grid.png")
        archive.write(tmp_path / "grid.png", "drawn/grid.png")
        archive.writestr("drawn/manifest.json", "{}")
    asked = EvaluateConfig(data=DataSettings(data=str(photos)), extractor="raw")
    assert evaluate_samples(tmp_path / "drawn.zip", asked).report["n"] == 60
    (tmp_path / "plain").mkdir()
    for i in range(60):
        Image.fromarray(noise(1, i)[0]).save(tmp_path / "plain" / f"{i}.png")
    Image.fromarray(noise(1, 99)[0]).save(tmp_path / "plain" / "grid.png")
    assert evaluate_samples(tmp_path / "plain", asked).report["n"] == 61


def test_without_unseen_data_it_is_said_what_cannot_be(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", noise(200, 0))
    np.save(tmp_path / "same.npy", noise(200, 0))
    data = DataSettings(data=str(tmp_path / "data.npy"))
    done = evaluate_samples(tmp_path / "same.npy", EvaluateConfig(data=data, extractor="raw"))
    assert done.real is None and any("nothing tells copies" in line for line in done.report["warnings"])
    assert "Too few data are held out" in (done.folder / "report.html").read_text()


def test_other_variables_are_not_scored(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    for name in ("t", "u"):
        values = np.random.default_rng(0).standard_normal((300, 6, 8)).astype(np.float32)
        coords = {"time": np.arange("2020-01-01", "2020-10-27", dtype="datetime64[D]"), "lat": np.arange(6.0), "lon": np.arange(8.0)}
        xarray.Dataset({name: (("time", "lat", "lon"), values)}, coords=coords).to_netcdf(tmp_path / f"{name}.nc", engine="h5netcdf")
    asked = EvaluateConfig(data=DataSettings(data=str(tmp_path / "t.nc")), extractor="raw")
    with pytest.raises(DataError, match=r"other variables than the data \(t, u"):
        evaluate_samples(tmp_path / "u.nc", asked)
    assert evaluate_samples(tmp_path / "t.nc", asked).report["n"] == 300
    for name, unit in (("t", "K"), ("celsius", "degC")):
        with xarray.open_dataset(tmp_path / "t.nc", engine="h5netcdf") as plain:
            told = plain.load()
        told["t"].attrs["units"] = unit
        told.to_netcdf(tmp_path / f"{name}-told.nc", engine="h5netcdf")
    asked = EvaluateConfig(data=DataSettings(data=str(tmp_path / "t-told.nc")), extractor="raw")
    with pytest.raises(DataError, match="t is in degC, the data's in K; convert first"):
        evaluate_samples(tmp_path / "celsius-told.nc", asked)
