"""Damaged, mixed-up and forged checkpoints: each is refused with the reason, and the one before it is used."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm.errors import CheckpointError
from ddpm.training.checkpoints import storage, verified
from ddpm.training.checkpoints.checkpoint import Checkpoint, newest, open_checkpoint, save

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX file modes, links and fork")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def model_at(step: int, size: int = 64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {"w": torch.randn(size, 4, generator=generator), "b": torch.randn(4, generator=generator)}


def write(run: Path, step: int, keep: int | None = None, size: int = 64) -> Path:
    model = model_at(step, size)
    return save(run, step, {"model": model, "ema-0.999": model}, {"config": {"name": "UNet"}, "state": {"step": step}}, keep)


def check(found: Checkpoint | None, step: int) -> None:
    assert found and found.step == step and found.document("state") == {"step": step}
    for group in ("model", "ema-0.999"):
        for name, tensor in found.tensors(group).items():
            assert torch.equal(tensor, model_at(step, found.tensors("model")["w"].shape[0])[name])


def reseal(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Forge a manifest that passes its own SHA-256."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("seal")
    change(manifest)
    (folder / "manifest.json").write_bytes(verified.sealed(manifest))


def plant(folder: Path, name: str, content: bytes) -> None:
    """Put content in place of a file, with a manifest that agrees."""
    (folder / name).write_bytes(content)
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    reseal(folder, lambda manifest: manifest["files"].update({name: entry}))


# damaged -----------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (100, 200):
        write(tmp_path, step)
    return tmp_path


def falls_back(run: Path) -> str:
    """The one notice given while step 100 is used in place of 200."""
    notices: list[str] = []
    check(newest(run, notice=notices.append), 100)
    (text,) = notices
    assert text.startswith("step 200: ") and text.endswith("; using step 100")
    return text


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_every_flipped_bit_is_noticed(run: Path) -> None:
    """50 spread over all files by size and 10 in each; the same code over 1,000 is for a night's run."""
    draw = random.Random(0)
    for path in files_of(run / "step-0000200"):
        original = path.read_bytes()
        for _ in range(max(10, int(os.environ.get("DDPM_BIT_FLIPS", "50")) // 6)):
            damaged = bytearray(original)
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
            path.write_bytes(damaged)
            assert path.name in falls_back(run)
        path.write_bytes(original)
    check(newest(run, notice=pytest.fail), 200)


def test_every_truncation_is_noticed(run: Path) -> None:
    draw = random.Random(0)
    for path in files_of(run / "step-0000200"):
        original = path.read_bytes()
        cuts = {0, 1, 8, len(original) // 2, len(original) - 1, *(draw.randrange(len(original)) for _ in range(15))}
        for cut in cuts:
            path.write_bytes(original[:cut])
            assert path.name in falls_back(run)
        path.write_bytes(original + b"\n")
        assert path.name in falls_back(run)
        path.write_bytes(original)
    check(newest(run, notice=pytest.fail), 200)


def test_every_deleted_doubled_or_swapped_file_is_noticed(run: Path) -> None:
    paths = files_of(run / "step-0000200")
    for path in paths:
        original = path.read_bytes()
        path.unlink()
        assert f"{path.name} is missing" in falls_back(run)
        for other in paths:
            if other != path and other.read_bytes() != original:
                path.write_bytes(other.read_bytes())
                falls_back(run)
        path.write_bytes(original)
        for copy in ("copy.json", "copy.safetensors", path.name + ".bak"):
            shutil.copy(path, path.with_name(copy))
            assert f"{copy} not in manifest.json" in falls_back(run)
            path.with_name(copy).unlink()
    check(newest(run, notice=pytest.fail), 200)


def test_files_of_two_steps_never_mix(run: Path) -> None:
    for path in files_of(run / "step-0000200"):
        original = path.read_bytes()
        other = (run / "step-0000100" / path.name).read_bytes()
        if other == original:
            continue
        path.write_bytes(other)
        falls_back(run)
        path.write_bytes(original)
    shutil.rmtree(run / "step-0000200")
    shutil.copytree(run / "step-0000100", run / "step-0000200")
    assert "is step 100 by its manifest.json, not 200" in falls_back(run)
    shutil.copytree(run / "step-0000100", run / "best")
    assert open_checkpoint(run / "best").step == 100


def test_unreadable_file_is_one_more_reason(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = storage.digest

    def bad_sector(path: Path) -> Any:
        if "step-0000200" in str(path):
            raise OSError(errno.EIO, "Input/output error")
        return digest(path)

    monkeypatch.setattr(storage, "digest", bad_sector)
    assert "cannot be read: Input/output error" in falls_back(run)
    with pytest.raises(CheckpointError, match=r"step-0000200: cannot be read"):
        open_checkpoint(run / "step-0000200")


# forged ------------------------------------------------------------------------------------------


def test_newer_format_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    reseal(folder, lambda manifest: manifest.update(format=3, ddpm="2.1", files="other"))
    with pytest.raises(CheckpointError, match=r"written by ddpm 2\.1 \(format 3\), this is ddpm .* \(format 2\); upgrade"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "name", ["../step-0000002/model.safetensors", "/etc/passwd", "a\\b.json", "sub/x.json", "manifest.json", "w.pkl", "x.json\n"]
)
def test_manifest_may_only_name_files_beside_it(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, 1)
    write(tmp_path, 2)
    reseal(folder, lambda manifest: manifest["files"].update({name: manifest["files"]["model.safetensors"]}))
    with pytest.raises(CheckpointError, match=r"which is not a file name of a checkpoint; refused"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"step": 2},
        {"step": -1},
        {"step": True},
        {"step": "1"},
        {"files": []},
        {"files": {"a.json": {"size": "1", "sha256": "0"}}},
        {"ddpm": 3},
        {"format": 0},
    ],
)
def test_manifest_of_another_form_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = write(tmp_path, 1)
    reseal(folder, lambda manifest: manifest.update(change))
    with pytest.raises(CheckpointError, match=r"format 1|no size and SHA-256|is step 2 by its manifest"):
        open_checkpoint(folder)


def test_a_changed_manifest_fails_its_seal(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"ddpm": "', '"ddpm": "9'))
    with pytest.raises(CheckpointError, match=r"manifest\.json fails its own SHA-256"):
        open_checkpoint(folder)


def test_what_the_manifest_does_not_list_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    assert open_checkpoint(folder).step == 1
    (folder / "extra.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"extra\.json not in manifest\.json, refused"):
        open_checkpoint(folder)
    (folder / "extra.json").unlink()
    (folder / "sub").mkdir()
    with pytest.raises(CheckpointError, match=r"sub is a link, a folder or a device"):
        open_checkpoint(folder)


@posix
def test_links_and_pipes_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", 1)
    (tmp_path / "moved").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a link"):
        open_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")  # opening it would wait for ever
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a link, a folder or a device"):
        open_checkpoint(folder)
    good = write(tmp_path / "other", 2)
    (tmp_path / "best").symlink_to(good)
    assert open_checkpoint(tmp_path / "best").step == 2  # a person's own link to a whole folder
    (tmp_path / "run" / "step-0000002").symlink_to(good)  # but not one among a run's steps
    with pytest.raises(CheckpointError, match=r"step-0000002: is not a folder"):
        newest(tmp_path / "run")


def test_files_changed_after_verification_are_not_used(tmp_path: Path) -> None:
    found = open_checkpoint(write(tmp_path, 1))
    for name, read in (("model.safetensors", lambda: found.tensors("model")), ("config.json", lambda: found.document("config"))):
        content = bytearray((found.path / name).read_bytes())
        content[-2] ^= 4
        (found.path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=r"was changed after it was verified"):
            read()


@pytest.mark.parametrize(
    "text",
    [
        b"[1]",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": 1, "a": 1}',
        b'{"a": {"b": 1, "b": 2}}',
        b"\xff",
        b"{",
        b'{"a":' * 100_000,
    ],
)
def test_json_is_strict(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json (is not valid JSON|holds a JSON list)"):
        storage.from_json(text, "config.json")
    folder = write(tmp_path, 1)
    plant(folder, "config.json", text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(folder).document("config")
    (folder / "manifest.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        open_checkpoint(folder)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x10\0\0\0\0\0\0\0{}", bytes(64), (10**6).to_bytes(8, "little") + b"{" * 50])
def test_safetensors_that_are_none_give_our_error(tmp_path: Path, content: bytes) -> None:
    folder = write(tmp_path, 1)
    plant(folder, "model.safetensors", content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a safetensors file"):
        open_checkpoint(folder).tensors("model")
