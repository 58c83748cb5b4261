"""`ddpm likelihood` as a person types it: which rows it scores, what it prints and writes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ddpm.cli import main
from small_runs import quietly, settings, table

QUICK = ["--terms", "4", "--levels", "4", "--tolerance", "0.05", "--entry", "0.05"]
SMALL = ["--recipe", "none", "--steps", "4", "--batch", "4", "--threads", "1", "--preview", "0"]
UNET = ["--network", "unet-config", "--network.channels", "8", "--network.mults", "1,2", "--network.blocks", "1", "--network.attention", ""]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps on the digits."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["train", "--out", str(out), *SMALL, *UNET]) == 0
    return out


def test_the_runs_own_held_out_rows_by_every_route(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["likelihood", str(digits), "--n", "3", "--draws", "2", "--curve", *QUICK]
    assert main([*words, "--out", str(tmp_path / "scores.csv"), "--batch", "2"]) == 0
    shown = capsys.readouterr().out
    assert "3 samples of digits (1, 8, 8), held out, given their classes; levels 0 to 16" in shown and "= rate" in shown
    assert "bits/dim" in shown and all(f"\n{route} " in shown for route in ("bound", "continuous", "flow")) and "RMSE, own units" in shown
    lines = (tmp_path / "scores.csv").read_text("utf-8").splitlines()
    assert lines[0] == "row,bound_nats,bound_error,continuous_nats,continuous_error,flow_nats,flow_error" and len(lines) == 4
    values = np.array([[float(cell) for cell in line.split(",")] for line in lines[1:]])
    assert np.isfinite(values).all() and (np.diff(values[:, 0]) > 0).all()
    assert main([*words, "--route", "bound", "--out", str(tmp_path / "deep" / "scores.npz")]) == 0
    kept = np.load(tmp_path / "deep" / "scores.npz", allow_pickle=False)
    assert kept["row"].tolist() == values[:, 0].tolist()
    np.testing.assert_allclose(kept["bound_nats"], values[:, 1], rtol=1e-4)  # the batch does not matter
    assert main(["likelihood", str(digits), "--n", "2", "--route", "continuous", "--no-conditional", *QUICK]) == 0
    assert "unconditional" in capsys.readouterr().out


def test_other_data_are_scored_whole(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = np.random.default_rng(0).integers(0, 17, (3, 1, 8, 8)).astype(np.uint8)
    np.save(tmp_path / "noise.npy", samples)
    words = ["likelihood", str(digits), "--data", str(tmp_path / "noise.npy"), "--route", "flow", "--dequantise", "uniform", "--draws", "1"]
    assert main([*words, *QUICK]) == 0
    assert "3 samples of noise.npy (1, 8, 8), unconditional" in capsys.readouterr().out.replace(f"{tmp_path}/", "")
    wrong = {"levels": (samples + 20, "whole numbers 0 to 16"), "shape": (samples[:, :, :4], "samples of shape (1, 4, 8)")}
    for name, (changed, reason) in wrong.items():
        np.save(tmp_path / f"{name}.npy", changed)
        assert main(["likelihood", str(digits), "--data", str(tmp_path / f"{name}.npy")]) == 3
        assert reason in capsys.readouterr().err


def test_a_float_table_has_a_density_in_its_own_units(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = table()
    quietly(settings(tmp_path / "run"), data=data)
    np.save(tmp_path / "rows.npy", np.asarray(data.samples[:]))
    assert main(["likelihood", str(tmp_path / "run"), "--data", str(tmp_path / "rows.npy"), "--n", "3", *QUICK]) == 0
    shown = capsys.readouterr().out
    assert "nats" in shown and "bits" not in shown and "log density in the data's own units" in shown
    assert main(["likelihood", str(tmp_path / "run"), "--data", str(tmp_path / "rows.npy"), "--dequantise", "uniform"]) == 2
    assert "no bins" in capsys.readouterr().err


def test_what_is_refused(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["likelihood", str(digits), "--out", "scores.txt", "--n", "0"]) == 2
    shown = capsys.readouterr().err
    assert "2 problems" in shown and "must end in .csv or .npz" in shown and "--n" in shown
    assert main(["likelihood", str(tmp_path / "nothing")]) == 4
    quietly(settings(tmp_path / "run"), data=table())
    capsys.readouterr()
    assert main(["likelihood", str(tmp_path / "run")]) == 3
    assert "name what to score with --data" in capsys.readouterr().err
