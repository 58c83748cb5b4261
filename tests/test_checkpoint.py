"""Checkpoints: what is written comes back, what is bad is refused and named, the newest good one is found, nothing in a file can run."""

from __future__ import annotations

import math
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm.errors import CheckpointError, DiskError, NonFiniteError
from ddpm.training.checkpoints import storage
from ddpm.training.checkpoints.checkpoint import clean, newest, open_checkpoint, save

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX file modes, links and fork")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def write(run: Path, step: int, keep: int | None = None) -> Path:
    generator = torch.Generator().manual_seed(step)
    model = {"w": torch.randn(3, 4, generator=generator), "b": torch.randn(4, generator=generator)}
    return save(run, step, {"model": model, "ema-0.999": model}, {"config": {"name": "UNet"}, "state": {"step": step}}, keep)


def test_every_kind_of_tensor_comes_back_bit_for_bit(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    group = {
        "float64": torch.randn(3, dtype=torch.float64),
        "bfloat16": torch.randn(5).bfloat16(),
        "int64": torch.tensor(-(2**60)),
        "bool": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(1.5),
        "transposed": base.T,
        "slice": base[1:3],
        "tied": base,
        "tied again": base,
        "uint8": torch.arange(7, dtype=torch.uint8),
        "param": torch.nn.Parameter(base[0]),
    }
    folder = save(tmp_path / "run", 7, {"model": group}, {"config": {"a": [1, 2.5, None, True], "b": {"c": "ü"}}})
    assert folder == tmp_path / "run" / "step-0000007"
    found = open_checkpoint(folder)
    assert (found.step, found.tensor_names, found.document_names) == (7, ("model",), ("config",))
    back = found.tensors("model")
    assert back.keys() == group.keys()
    for name, tensor in group.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor.detach()), name
    assert found.document("config") == {"a": [1, 2.5, None, True], "b": {"c": "ü"}}
    with pytest.raises(CheckpointError, match=r"no ema\.safetensors; it holds config\.json, model\.safetensors"):
        found.tensors("ema")


@posix
def test_modes_obey_the_umask(tmp_path: Path) -> None:
    former = os.umask(0o027)
    try:
        folder = write(tmp_path, 1)
    finally:
        os.umask(former)
    assert {stat.S_IMODE(path.stat().st_mode) for path in [*folder.iterdir(), tmp_path / "latest"]} == {0o640}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.float8_e5m2])
def test_no_checkpoint_holds_a_non_finite_tensor(tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
    write(tmp_path, 1)
    poisoned = torch.ones(2, 3)
    poisoned[1, 2] = bad
    with pytest.raises(NonFiniteError, match=r"step 2, ema: tensor 'deep\.weight'"):
        save(tmp_path, 2, {"model": {"w": torch.ones(2)}, "ema": {"deep.weight": poisoned.to(dtype)}}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-0000001"]


@pytest.mark.parametrize(
    ("document", "error"), [({"a": [{"b": math.nan}]}, NonFiniteError), ({"a": {1: 2}}, TypeError), ({"a": {1}}, TypeError)]
)
def test_documents_that_json_would_alter_are_refused(tmp_path: Path, document: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=r"state\.json\.a"):
        save(tmp_path / "run", 1, {}, {"state": document})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["manifest", "Manifest", "a/b", "a\\b", "..", "", ".hidden", "a b", "é", "x\n"])
def test_names_that_cannot_be_files_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be a file"):
        save(tmp_path, 1, {}, {name: {}})
    with pytest.raises(ValueError, match=r"upper and lower case"):
        save(tmp_path, 1, {}, {"a": {}, "A": {}})


# choosing ------------------------------------------------------------------------------------------------------------------


def test_newest_is_by_step_not_by_time(tmp_path: Path) -> None:
    for step in (100, 1000, 99_999_999):
        write(tmp_path, step)
    os.utime(tmp_path / "step-0000100", (2e9, 2e9))
    found = newest(tmp_path)
    assert found and found.step == 99_999_999
    chosen = newest(tmp_path, 100)
    assert chosen and chosen.step == 100 and chosen.document("state") == {"step": 100}


def test_none_only_where_there_is_no_checkpoint(tmp_path: Path) -> None:
    assert newest(tmp_path) is None and newest(tmp_path / "absent") is None
    (tmp_path / "step-0000200.tmp-00ab12ef").mkdir()
    (tmp_path / "latest").write_text("step-0000200\n")
    assert newest(tmp_path) is None
    (tmp_path / "step-5").mkdir()  # whoever renamed it meant it as one
    with pytest.raises(CheckpointError, match=r"step-5: manifest\.json is missing"):
        newest(tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot be searched"):
        newest(tmp_path / "latest")


def test_every_candidate_is_listed_when_all_are_bad(tmp_path: Path) -> None:
    for step in (100, 200, 300, 400):
        write(tmp_path, step)
    (tmp_path / "step-0000100" / "manifest.json").unlink()
    (tmp_path / "step-0000200" / "config.json").write_bytes(b"")
    data = bytearray((tmp_path / "step-0000300" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "step-0000300" / "model.safetensors").write_bytes(data)
    shutil.rmtree(tmp_path / "step-0000400")
    (tmp_path / "step-0000400").write_bytes(b"text")
    with pytest.raises(CheckpointError) as caught:
        newest(tmp_path)
    assert caught.value.exit_code == 4
    assert str(caught.value).splitlines()[1:] == [
        "  step-0000400: is not a folder",
        "  step-0000300: model.safetensors fails SHA-256",
        "  step-0000200: config.json has 0 bytes, manifest.json says 20",
        "  step-0000100: manifest.json is missing: an unfinished save, or not a checkpoint of ddpm",
    ]


def test_a_step_asked_for_by_name_is_that_or_an_error(tmp_path: Path) -> None:
    for step in (100, 200):
        write(tmp_path, step)
    with pytest.raises(CheckpointError, match=r"step 150 of .* does not exist; other steps there: 200, 100"):
        newest(tmp_path, 150)
    (tmp_path / "step-0000200" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"step 200 of .* cannot be used; other steps there: 100\n.*model\.safetensors is missing"):
        newest(tmp_path, 200)
    with pytest.raises(CheckpointError, match=r"other steps there: none"):
        newest(tmp_path / "absent", 0)


def test_bad_ones_are_reported_and_passed_over(tmp_path: Path) -> None:
    for step in (100, 200, 300):
        write(tmp_path, step)
    for step in (200, 300):
        path = tmp_path / f"step-0000{step}" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    notices: list[str] = []
    found = newest(tmp_path, notice=notices.append)
    assert found and found.step == 100
    assert notices == [f"step {step}: model.safetensors fails SHA-256; using step 100" for step in (300, 200)]


@pytest.mark.parametrize("content", [None, b"", b"step-0000100\n", b"step-9999999\n", b"../../etc\n", b"\xff\xfe\0"])
def test_latest_decides_nothing(tmp_path: Path, content: bytes | None) -> None:
    for step in (100, 200):
        write(tmp_path, step)
    assert (tmp_path / "latest").read_text() == "step-0000200\n"
    (tmp_path / "latest").unlink()
    if content is not None:
        (tmp_path / "latest").write_bytes(content)
    found = newest(tmp_path, notice=pytest.fail)
    assert found and found.step == 200
    write(tmp_path, 300, keep=2)
    assert (tmp_path / "latest").read_text() == "step-0000300\n"


def test_a_damaged_folder_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    write(tmp_path, 100)
    folder = write(tmp_path, 200)
    (folder / "model.safetensors").unlink()
    write(tmp_path, 200)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-0000100", "step-0000200"]
    found = newest(tmp_path, notice=pytest.fail)
    assert found and found.step == 200


def test_pruning_keeps_the_newest_and_what_was_just_written(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-0000003", "step-0000004"]
    write(tmp_path, 2, keep=1)  # an earlier step again, by a run that fell back
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-0000002", "step-0000004"]
    with pytest.raises(ValueError, match=r"keep is 0"):
        write(tmp_path, 9, keep=0)


def test_a_reader_overtaken_by_pruning_is_told_or_finds_the_newer_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 100)
    found = newest(tmp_path)
    write(tmp_path, 200, keep=1)
    assert found
    with pytest.raises(CheckpointError, match=r"was pruned while it was read; use step 200"):
        found.tensors("model")
    digest = storage.digest

    def overtaken(path: Path) -> storage.Record:
        if "step-0000200" in str(path):
            write(tmp_path, 300, keep=1)
        return digest(path)

    monkeypatch.setattr(storage, "digest", overtaken)
    again = newest(tmp_path, notice=pytest.fail)
    assert again and again.step == 300


def test_clean_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    write(tmp_path, 1)
    for name in ("step-0000002.tmp-0a1b2c3d", "step-0000003.tmp-0a1b2c3d", "step-0000001.old-0a1b2c3d", "samples", "step-2.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "latest.tmp-0a1b2c3d").write_text("x")
    notices: list[str] = []
    assert clean(tmp_path, notices.append) == 3
    assert notices == ["removed 3 unfinished saves"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "samples", "step-0000001", "step-2.tmp"]
    assert clean(tmp_path / "absent") == 0


def test_run_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for run in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(DiskError, match=r"cannot write step 1 in .* No earlier checkpoint of this run exists"):
            write(run, 1)


@pytest.mark.parametrize("name", ["two words", "läuft 🙂", "x" * (100 if os.name == "nt" else 255), "-rf", "step-0000001", "[a-z]*"])
def test_names_of_runs(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, 1)
    write(tmp_path / name, 2, keep=1)
    assert clean(tmp_path / name) == 0
    found = newest(tmp_path / name, notice=pytest.fail)
    assert found and found.tensors("model").keys() == {"w", "b"} and len(list((tmp_path / name).iterdir())) == 2


def test_pruning_cut_short_leaves_no_half_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 100)

    def stuck(path: Path) -> None:
        (path / "model.safetensors").unlink()
        raise OSError(5, "stuck")

    notices: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove", stuck)
        save(tmp_path, 200, {}, {"state": {}}, keep=1, notice=notices.append)
    assert notices == ["step 100 could not be pruned: stuck"]
    with pytest.raises(CheckpointError, match=r"other steps there: 200$"):
        newest(tmp_path, 100)
    assert clean(tmp_path, pytest.fail) == 0 and sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-0000200"]
