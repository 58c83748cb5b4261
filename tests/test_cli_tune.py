"""`ddpm tune`, sampling.json, and what `ddpm sample` makes of it: tuned, automatic and plain samplers as a person asks for them."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.cli import main
from ddpm.errors import CheckpointError
from ddpm.evaluation import Tuned, load_tuned, save_tuned
from ddpm.evaluation.tuning.stored import read
from ddpm.process import VPSDE
from ddpm.sampling import DDIM, Multistep
from small_runs import quietly, settings, table

FOUND = Tuned(
    nfe=3, sampler=Multistep(order=3, rule="exact"), at=(1.0, 0.6, 0.2), interval=(0.3, 3.0), error=0.01,
    defaults={"DDIM": 0.5, "dpm++2m": math.inf}, reference_error=None, calls=100, starts=4, seed=7,
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps on a table with two classes."""
    out = tmp_path_factory.mktemp("runs") / "table"
    quietly(settings(out, schedule=VPSDE(), checkpoint_every=2), data=table(classes=2))
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may write to."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def shown(words: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> tuple[str, str]:
    """Output and messages of a command that must end with this code."""
    got = main(words)
    output = capsys.readouterr()
    assert got == code, output.err
    return output.out, output.err


def test_tuning_writes_what_sampling_then_uses(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = shown(["tune", str(run), "--nfe", "3", "--n", "4", "--reference", "16", "--budget", "4000"], capsys)
    assert "starts that the search did not see, at 3 calls" in out and "tuned" in out and "sampling.json" in out
    out, _ = shown(["tune", str(run), "--nfe", "2", "--n", "4", "--reference", "16", "--budget", "4000", "--guidance", "2"], capsys)
    kept = json.loads((run / "sampling.json").read_text())["entries"]
    assert [(entry["nfe"], entry["guiding"]) for entry in kept] == [(2, {"guidance": 2.0}), (3, {"guidance": 1.0})]
    tuned = load_tuned(run, 3)
    assert tuned is not None and len(tuned.at) == 3
    out, err = shown(["sample", str(run), "--n", "4"], capsys)
    assert "3 steps" in out and "tuned for this model (sampling.json)" in out and not err
    out, _ = shown(["sample", str(run), "--n", "4", "--guidance", "2", "--sampler", "auto"], capsys)
    assert "2 steps" in out and "tuned" in out and "guidance 2" in out
    drawn = [np.load(next((run / "samples" / name).glob("*.npz")))["arr_0"] for name in ("seed-0", "seed-0-2")]
    assert drawn[0].shape == drawn[1].shape and not np.array_equal(*drawn)


def test_flags_given_win_over_the_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tuned(run, replace(FOUND, interval=None))
    for words, expected in (
        (["--steps", "5"], "DDIM, 5 steps"),
        (["--sampler", "dpm++2m"], "dpm++2m, 50 steps"),
        (["--sampler.eta", "1"], "DDIM, 50 steps"),
        (["--grid", "log-snr", "--steps", "4"], "DDIM, 4 steps"),
        (["--sampler", "heun", "--nfe", "9"], "heun, 5 steps"),
    ):
        out, _ = shown(["sample", str(run), "--n", "2", *words], capsys)
        assert expected in out and "tuned" not in out
    out, err = shown(["sample", str(run), "--n", "2", "--nfe", "7"], capsys)
    assert "DDIM, 7 steps" in out and "nothing for 7 calls" in err and "it has 3 (guidance 1, ema)" in err


def test_auto_without_a_file_takes_the_built_in_choice(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = shown(["sample", str(run), "--n", "2", "--sampler", "auto"], capsys)
    assert "dpm++2m, 20 steps" in out and "chosen by auto" in out
    out, _ = shown(["sample", str(run), "--n", "2", "--sampler", "auto", "--nfe", "4"], capsys)
    assert "dpm++2m, 4 steps" in out
    assert "DDIM, 50 steps" in shown(["sample", str(run), "--n", "2"], capsys)[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample", "RUN", "--nfe", "5", "--steps", "5"], "--nfe: says the same as steps"),
        (["sample", "RUN", "--nfe", "2", "--sampler", "dpm++3m"], "needs at least 3 network calls"),
        (["tune", "RUN", "--nfe", "5", "--budget", "10"], "tuning needs at least"),
        (["tune", "RUN", "--guidance", "2", "--classes", "nobody"], "this model knows"),
    ],
)
def test_refusals(words: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in shown([str(run) if word == "RUN" else word for word in words], capsys, 2)[1]


def test_entries_read_back_equal_and_old_ones_stay(run: Path) -> None:
    save_tuned(run, FOUND, guiding={"guidance": 2.0})
    save_tuned(run, replace(FOUND, nfe=4, at=(1.0, 0.5, 0.25, 0.1)))
    save_tuned(run, replace(FOUND, error=0.02), guiding={"guidance": 2.0})
    assert load_tuned(run, 3, guiding={"guidance": 2.0}) == replace(FOUND, error=0.02)
    assert load_tuned(run) == replace(FOUND, nfe=4, at=(1.0, 0.5, 0.25, 0.1)) and len(read(run)) == 2
    assert load_tuned(run / "step-0000004", 4) is not None
    assert load_tuned(run, 3) is None and load_tuned(run, 4, weights="raw") is None


def test_a_stale_file_is_noticed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tuned on an earlier step: used, and said. Made for another schedule: not used, and said."""
    save_tuned(run, replace(FOUND, interval=None), step=2)
    said: list[str] = []
    assert load_tuned(run, 3, notice=said.append) is not None and "step 2, these are step 4" in said[0]
    assert load_tuned(run, 3, step=2, notice=said.append) is not None and len(said) == 1
    out, err = shown(["sample", str(run), "--n", "2"], capsys)
    assert "tuned" in out and "other weights (step 2" in err
    path = run / "sampling.json"
    path.write_text(path.read_text().replace('"VPSDE"', '"SubVP"'))
    out, err = shown(["sample", str(run), "--n", "2"], capsys)
    assert "DDIM, 50 steps" in out and "another schedule and is not used" in err


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 9, "entries": []}', '{"format": 1, "entries": [{}]}', '{"format": 1}'])
def test_a_damaged_file_is_told(text: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "sampling.json").write_text(text)
    with pytest.raises(CheckpointError):
        load_tuned(run)
    assert "sampling.json" in shown(["sample", str(run), "--n", "2"], capsys, 4)[1]
    assert "DDIM, 2 steps" in shown(["sample", str(run), "--n", "2", "--steps", "2"], capsys)[0]


def test_a_tuned_list_is_what_sample_takes(run: Path) -> None:
    import ddpm

    save_tuned(run, replace(FOUND, sampler=DDIM(), interval=None))
    tuned = load_tuned(run, 3)
    assert tuned is not None
    drawn = ddpm.sample(ddpm.load(run), 2, sampler=tuned.sampler, grid=tuned.grid, steps=tuned.steps)
    assert drawn.shape == (2, 3) and bool(torch.isfinite(drawn).all())
