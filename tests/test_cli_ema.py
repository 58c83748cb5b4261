"""`ddpm ema`, and what sampling makes of its choice."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.cli import main
from ddpm.data import DataSettings
from ddpm.evaluation.tuning.stored import fingerprint
from ddpm.training import TrainConfig, load, run
from ddpm.training.averaging.weights import weight_set
from ddpm.training.held_out import held_out_loss
from small_runs import held, quietly, settings


@pytest.fixture(autouse=True)
def _no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "loss_figure", lambda folder: None)


def config(home: Path, **changes: object) -> TrainConfig:
    """A run with two lengths and twelve snapshots."""
    base = settings(
        home / "run", steps=60, data=DataSettings(data=str(home / "table.npy")), ema=(0.05, 0.1), snapshots=5, checkpoint_every=30
    )
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("trained")
    np.save(home / "table.npy", np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32))
    quietly(config(home))
    return home


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may write to; the data stay where they were."""
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


def shown(words: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> tuple[str, str]:
    """Output and messages of a command that must end with this code."""
    capsys.readouterr()
    got = main(words)
    output = capsys.readouterr()
    assert got == code, output.err
    return output.out, output.err


def drawn(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    return shown(["sample", str(folder), "--n", "2", "--steps", "2", *words], capsys)


def test_the_best_of_the_lengths_is_used_from_then_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "clip off, ema weights\n" in drawn(folder, capsys)[0]
    before, tracked = load(folder).state_dict(), fingerprint(held(folder), "ema")
    out, err = shown(["ema", str(folder), "--length", "0.07,0.15,0.1"], capsys)
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.split()[1:2] and line.split()[1].startswith("0.")}
    assert set(rows) == {"ema-0.050", "ema-0.070", "ema-0.100", "ema-0.150", "raw"} and not err
    best = min(("ema-0.070", "ema-0.150", "ema-0.100"), key=lambda name: float(rows[name][1]))
    assert rows[best][-1] == "best" and [name for name in rows if rows[name][-1] == "best"] == [best]
    assert rows["ema-0.100"][4] == rows["ema-0.050"][4] == "tracked" and f"{best} is what ddpm sample" in out
    document = json.loads((folder / "ema" / "step-0000060" / "ema.json").read_text())
    assert (document["step"], document["length"]) == (60, float(best[4:])) and set(document["held_out_loss"]) == set(rows)
    out, err = drawn(folder, capsys)
    assert f"clip off, {best} weights, chosen by ddpm ema\n" in out and not err
    after = load(folder).state_dict()
    assert any(not torch.equal(after[name], before[name]) for name in after) and fingerprint(held(folder), "ema") != tracked
    assert all(torch.equal(tensor, load(folder, weights=best).state_dict()[name]) for name, tensor in after.items())
    assert "ema-0.050 weights\n" in drawn(folder, capsys, "--weights", "ema-0.050")[0]
    first = load(folder, weights="ema-0.050").state_dict()
    assert all(torch.equal(first[name], before[name]) for name in before)
    assert "clip off, ema weights\n" in drawn(folder, capsys, "--step", "30")[0]


def test_the_loss_is_that_of_the_weights_written_and_the_same_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ema", str(folder), "--length", "0.12"]
    first = shown([*words, "--no-write"], capsys)[0]
    assert not (folder / "ema").exists() and "uses from now on" not in first
    again = shown(words, capsys)[0]
    assert again.startswith(first)
    from ddpm.data import open_data

    dataset = open_data(config(folder.parent, data=DataSettings(data=held(folder).document("state")["config"]["data"]["data"])).data)
    found = held_out_loss(load(folder), dataset, frozenset(), samples=1024)
    line = next(line for line in again.splitlines() if line.startswith("ema-0.120"))
    assert found is not None and float(line.split()[1]) == pytest.approx(found.loss, abs=1e-6)


def test_a_made_average_is_the_one_a_run_of_that_length_tracks(trained: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quietly(config(trained, out=str(folder.parent / "direct"), ema=0.12, snapshots=0))
    shown(["ema", str(folder), "--length", "0.12"], capsys)
    made, direct, near = load(folder), load(folder.parent / "direct"), load(folder, weights="ema-0.100")
    distance, apart = (
        sum((a - b).square().sum().item() for a, b in zip(direct.parameters(), other.parameters(), strict=True)) for other in (made, near)
    )
    assert 0 < distance < 1e-3 * apart


def test_a_length_no_better_than_a_tracked_one_is_not_chosen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Longer ones are better here: 0.07 is worse than the tracked 0.1. Where all are as good, the first that was tracked stays."""
    out, _ = shown(["ema", str(folder), "--length", "0.07,0.09"], capsys)
    rows = [line.split() for line in out.splitlines() if line.startswith("ema-0") and line.endswith(("%", "tracked", "best"))]
    assert min(rows, key=lambda row: float(row[1]))[0] == "ema-0.100" == next(row[0] for row in rows if row[-1] == "best")
    assert "ema-0.100, which was tracked, is the best of all averages here: no length asked for has a smaller loss" in out
    assert "ema-0.100 weights, chosen by ddpm ema" in drawn(folder, capsys)[0]
    with pytest.MonkeyPatch.context() as patch:
        found = held_out_loss
        patch.setattr("ddpm.training.held_out.held_out_loss", lambda *words, **more: found(*words, **more)._replace(loss=0.5))  # pyright: ignore[reportOptionalMemberAccess]
        out, _ = shown(["ema", str(folder), "--length", "0.03,0.1"], capsys)
    assert [line.split()[0] for line in out.splitlines() if line.endswith("best")] == ["ema-0.050"]
    assert weight_set(held(folder)).name == "ema-0.050"


def test_without_lengths_they_are_searched(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = shown(["ema", str(folder)], capsys)
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith(("ema-", "raw")) and "%" in line}
    losses = {name: float(row[1]) for name, row in rows.items() if name != "raw"}
    assert 9 <= len(losses) <= 17
    assert rows[min(losses, key=lambda name: losses[name])][-1] == "best"
    assert weight_set(held(folder)).name == min(losses, key=lambda name: losses[name])


def test_more_training_leaves_the_choice_behind(trained: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown(["ema", str(folder), "--length", "0.12"], capsys)
    quietly(config(trained, out=str(folder), steps=70))
    out, err = drawn(folder, capsys)
    assert "clip off, ema weights\n" in out and "ema was chosen at step 60, these are step 70: not used; run ddpm ema again" in err
    assert "ema-0.120 weights, chosen by ddpm ema" in drawn(folder, capsys, "--step", "60")[0]
    shown(["ema", str(folder), "--length", "0.15"], capsys)
    assert [path.name for path in (folder / "ema").glob("step-*")] == ["step-0000070"]
    assert "ema-0.150 weights, chosen" in drawn(folder, capsys)[0]


def test_a_choice_for_other_weights_of_the_same_step_is_not_used(trained: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown(["ema", str(folder), "--length", "0.12"], capsys)
    quietly(config(trained, out=str(folder.parent / "other"), seed=1))
    shutil.copytree(folder / "ema", folder.parent / "other" / "ema")
    out, err = drawn(folder.parent / "other", capsys)
    assert "clip off, ema weights\n" in out and "was chosen for other weights of step 60: not used" in err


def test_a_damaged_choice_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown(["ema", str(folder), "--length", "0.12"], capsys)
    file = folder / "ema" / "step-0000060" / "ema-0.120.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "fails SHA-256; remove" in shown(["sample", str(folder), "--n", "2"], capsys, 4)[1]
    assert "raw weights" in drawn(folder, capsys, "--weights", "raw")[0]
    shown(["ema", str(folder), "--length", "0.12"], capsys)
    assert "ema-0.120 weights, chosen" in drawn(folder, capsys)[0]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--length", "0.5"], 2, "--length is 0.5"),
        (["--length", "best"], 2, "numbers each > 0 and < 0.28, separated by commas, or auto"),
        (["--length", ""], 2, "--length: empty; give lengths such as 0.05,0.1, or auto"),
        (["--length", "0.0812"], 2, "--length: got 0.0812; allowed: up to three decimals"),
        (["--length", "0.002"], 4, "length 0.002 cannot be made from these snapshots, its profile would be off by"),
        (["--step", "7"], 4, "step 7 of"),
        (["--lenght", "0.1"], 2, "did you mean '--length'"),
        (
            ["--data", "digits"],
            3,
            "digits: 1797 samples, 180 held out, are not the data this run was trained on (table",
        ),
        (["--holdout", "0"], 3, "0 held out, are not the data"),
    ],
)
def test_refusals(words: list[str], code: int, says: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in shown(["ema", str(trained / "run"), *words], capsys, code)[1]
    assert not (trained / "run" / "ema").exists()


def test_runs_without_snapshots_say_what_to_do(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quietly(config(trained, out=str(tmp_path / "old"), steps=4, ema=0.05, snapshots=0))
    err = shown(["ema", str(tmp_path / "old"), "--length", "0.12"], capsys, 4)[1]
    assert "kept too few snapshots up to step 4" in err and "Train with --ema 0.05,0.1 and --snapshots N" in err
    quietly(config(trained, out=str(tmp_path / "whole"), steps=20, data=replace(config(trained).data, holdout=0.0)))
    assert "nothing is held out, so lengths cannot be compared" in shown(["ema", str(tmp_path / "whole")], capsys, 3)[1]
