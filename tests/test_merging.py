"""`ddpm merge`: into a folder of its own, from one run only, with the weights that the run samples with, and never over anything else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.cli import main
from ddpm.data import DataSettings
from ddpm.errors import CheckpointError, ConfigError
from ddpm.training import TrainConfig, load, run
from ddpm.training.checkpoints import checkpoint
from ddpm.training.distributed.merging import merge
from small_runs import digests, held, metrics, quietly, settings


@pytest.fixture(autouse=True)
def _no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "loss_figure", lambda folder: None)


def config(home: Path, name: str, **changes: object) -> TrainConfig:
    """Checkpoints at 10, 20, ..., and enough snapshots for `ddpm ema`."""
    data = DataSettings(data=str(home / "table.npy"))
    return settings(home / name, **{"steps": 20, "checkpoint_every": 10, "data": data, "ema": (0.05, 0.1), "snapshots": 2, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on the same data that differ in their seed."""
    home = tmp_path_factory.mktemp("trained")
    np.save(home / "table.npy", np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32))
    for name, seed in (("a", 0), ("b", 1)):
        quietly(config(home, name, seed=seed))
    return home


@pytest.fixture
def home(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may write to."""
    return Path(shutil.copytree(trained, tmp_path / "home"))


def content(folder: Path) -> dict[str, bytes]:
    """Every file, but the lock."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name[:5] != ".lock"}


def quiet(line: str) -> None:
    """Notices nobody reads."""


def test_a_run_is_never_written_over_by_another_of_the_same_data(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(home / "b")
    assert (home / "a" / "data_card.json").read_bytes() == (home / "b" / "data_card.json").read_bytes()
    assert main(["merge", str(home / "a"), "--to", str(home / "b")]) == 2
    assert f"to: {home / 'b'} is not empty and was not made by ddpm merge" in capsys.readouterr().err and content(home / "b") == before
    merge(home / "a", home / "whole", notice=quiet)
    before = content(home / "whole")
    for step in (None, 10):
        with pytest.raises(ConfigError, match="to: .*whole was merged from another run; name another folder, nothing was changed"):
            merge(home / "b", home / "whole", step, quiet)
    assert content(home / "whole") == before


@pytest.mark.parametrize("inside", ["", "whole", "snapshots/whole", "../a/step-0000010"])
def test_not_into_the_run_itself(inside: str, home: Path) -> None:
    before = content(home / "a")
    (home / "link").symlink_to(home / "a")
    for place in (home / "a" / inside, home / "link" / inside):
        with pytest.raises(ConfigError, match="is the run itself, or lies in it"):
            merge(home / "a" / "step-0000020", place, notice=quiet)
    assert content(home / "a") == before


def test_steps_of_one_run_gather_and_the_same_again_changes_nothing(home: Path) -> None:
    whole = home / "whole"
    (home / "whole").mkdir()  # an empty folder is as good as none
    merge(home / "a", whole, 10, quiet)
    merge(home / "a", whole, notice=quiet)
    kept = {path: path.stat().st_mtime_ns for path in whole.rglob("step-*/*")}
    merge(home / "a", whole, 10, quiet)
    merge(home / "a", whole, notice=quiet)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("step-*/*")} == kept
    quietly(config(home, "a", steps=30))
    merge(home / "a", whole, notice=quiet)
    assert [digests(whole, step) for step in (20, 30)] == [digests(home / "a", step) for step in (20, 30)]
    assert json.loads((whole / "merged.json").read_text())["steps"] == [10, 20, 30]
    shutil.copytree(home / "a", home / "moved")
    merge(home / "moved", whole, 20, quiet)  # the run is the same wherever it lies


def test_a_step_with_other_contents_is_not_replaced(home: Path) -> None:
    """The run was taken back to step 10 and went on otherwise; a damaged step is not taken for the same either."""
    merge(home / "a", home / "whole", notice=quiet)
    shutil.rmtree(home / "a" / "step-0000020")
    quietly(config(home, "a", seed=7))
    before = content(home / "whole")
    with pytest.raises(ConfigError, match="holds another step 20"):
        merge(home / "a", home / "whole", notice=quiet)
    assert content(home / "whole") == before
    (home / "whole" / "step-0000020" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="model.safetensors has 0 bytes.*; remove that folder"):
        merge(home / "a", home / "whole", notice=quiet)


def test_a_merged_run_that_was_trained_further_is_a_run_of_its_own(home: Path) -> None:
    whole = home / "whole"
    merge(home / "a", whole, notice=quiet)
    quietly(config(home, "whole", steps=25))
    assert held(whole).step == 25 and metrics(whole)
    before = content(whole)
    with pytest.raises(ConfigError, match="holds step 25, which ddpm merge did not write"):
        merge(home / "a", whole, 10, quiet)
    assert content(whole) == before


@pytest.mark.parametrize("mark", [b"", b"[]", b"{}", b'{"run": "x", "steps": 3}', b"\xff"])
def test_a_damaged_mark_proves_nothing(mark: bytes, home: Path) -> None:
    merge(home / "a", home / "whole", notice=quiet)
    (home / "whole" / "merged.json").write_bytes(mark)
    with pytest.raises(ConfigError, match="was not made by ddpm merge"):
        merge(home / "a", home / "whole", notice=quiet)


def test_a_merge_that_was_killed_can_be_repeated(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def die(*words: object) -> None:
        raise Killed

    monkeypatch.setattr(checkpoint, "publish", die)  # the step has its name by then
    with pytest.raises(Killed):
        merge(home / "a", home / "whole", notice=quiet)
    monkeypatch.undo()
    merge(home / "a", home / "whole", notice=quiet)
    assert digests(home / "whole") == digests(home / "a")


def test_a_run_of_an_older_version_is_known_by_its_place(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = checkpoint.Checkpoint.document

    def older(saved: checkpoint.Checkpoint, name: str) -> dict[str, object]:
        return {key: value for key, value in document(saved, name).items() if key != "run"}

    monkeypatch.setattr(checkpoint.Checkpoint, "document", older)
    merge(home / "a", home / "whole", notice=quiet)
    merge(home / "a", home / "whole", 10, quiet)
    with pytest.raises(ConfigError, match="another run"):
        merge(home / "b", home / "whole", notice=quiet)


def test_both_sample_with_the_same_weights(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The choice of `ddpm ema` goes along, also one made later; what does not is said."""
    merge(home / "a", home / "whole", notice=quiet)
    plain = load(home / "whole").state_dict()
    assert main(["ema", str(home / "a"), "--length", "0.15"]) == 0
    chosen = load(home / "a").state_dict()
    assert any(not torch.equal(chosen[name], plain[name]) for name in plain)
    capsys.readouterr()
    assert main(["merge", str(home / "a"), "--to", str(home / "whole")]) == 0
    said = capsys.readouterr().err
    assert "chosen by ddpm ema: taken along" in said and "the snapshots stay in" in said and not (home / "whole" / "snapshots").exists()
    assert all(torch.equal(value, chosen[name]) for name, value in load(home / "whole").state_dict().items())
    shutil.rmtree(home / "a" / "ema")
    assert main(["merge", str(home / "a"), "--to", str(home / "whole")]) == 0
    assert "holds a choice of ddpm ema that its source has not" in capsys.readouterr().err
    with pytest.raises(CheckpointError):
        merge(home / "nowhere", home / "other", notice=quiet)
    assert not (home / "other").exists()
