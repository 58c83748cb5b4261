"""Checkpoints written by earlier versions load, sample and resume as they did; one from a later format is refused by name.

`python tests/test_golden.py VERSION` writes tests/golden/VERSION with the present code, for a release that changed the format; not over
what is there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.cli import main as ddpm_main
from ddpm.data import Dataset, from_arrays
from ddpm.networks.config import MLPConfig, UNetConfig
from ddpm.objective import Denoising
from ddpm.process import Linear
from ddpm.sampling import DDIM, Ancestral, sample
from ddpm.training import TrainConfig, load, train
from ddpm.training.checkpoints import verified
from small_runs import held

GOLDEN = Path(__file__).parent / "golden"
SAMPLERS = {"ddim": DDIM(), "ancestral": Ancestral()}
STEPS = 6
# Another torch or processor may add in another order: a few units in the last place of float32, carried through five calls of a small
# network. Levels are whole numbers, of which one in twenty may round the other way.
RTOL, ATOL = 1e-4, 1e-4


def data_of(arrays: dict[str, np.ndarray], kind: str) -> Dataset:
    """The data the golden run was trained on, kept beside it."""
    cond = {"class": arrays["class"]} if kind == "mlp" else {}
    return from_arrays(arrays["data"], cond, name=kind)


def config_of(kind: str, out: Path, steps: int = STEPS) -> TrainConfig:
    """One run with a table, classes and learned uncertainty, and one with pictures and Ho's chain."""
    base = TrainConfig(out=str(out), steps=steps, batch=4, threads=1, preview=0, seed=3)
    if kind == "mlp":
        return replace(base, network=MLPConfig(width=16, depth=1, dropout=0.1), loss=Denoising(uncertainty=True, importance=True))
    return replace(base, network=UNetConfig(channels=4, mults=(1,), blocks=1, attention=(), dropout=0.0), schedule=Linear())


def drawn(run: Path) -> dict[str, np.ndarray]:
    """Four samples by each sampler, five steps."""
    model = load(run)
    cond = {"class": torch.tensor([0, 1, 2, 0])} if model.classes else None
    return {name: sample(model, 4, steps=5, sampler=sampler, seed=5, cond=cond).numpy() for name, sampler in SAMPLERS.items()}


def resumed(run: Path, kind: str, arrays: dict[str, np.ndarray], to: Path) -> np.ndarray:
    """`heads` of a copy after three more steps."""
    shutil.copytree(run, to)
    train(config_of(kind, to, STEPS + 3), data=data_of(arrays, kind), quiet=True)
    return heads(to)


def heads(run: Path) -> np.ndarray:
    """The first eight entries of every weight and average of the newest checkpoint, in order of name."""
    saved = held(run)
    return np.concatenate([t.numpy().ravel()[:8] for group in ("model", "ema-0.050") for _, t in sorted(saved.tensors(group).items())])


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    """Equal to rounding."""
    if expected.dtype.kind in "ui":
        return bool((abs(found.astype(int) - expected.astype(int)) <= 1).all() and (found != expected).mean() < 0.05)
    return bool(np.allclose(found, expected, rtol=RTOL, atol=ATOL * max(1.0, float(abs(expected).max()))))


CASES = sorted(path for path in GOLDEN.glob("*/*") if path.is_dir())


@pytest.mark.parametrize("run", CASES, ids=lambda path: f"{path.parent.name} {path.name}")
def test_it_loads_samples_and_resumes_as_it_did(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddpm.training.run.loss_figure", lambda folder: None)
    torch.set_num_threads(1)
    expected = dict(np.load(run / "expected.npz", allow_pickle=False))
    for name, samples in drawn(run / "run").items():
        assert samples.dtype == expected[name].dtype and close(samples, expected[name]), name
        assert np.ptp(expected[name]) > 0 and not close(np.roll(samples, 1, axis=0), expected[name]), "the comparison would pass anything"
    before, after = heads(run / "run"), resumed(run / "run", run.name, expected, tmp_path / "run")
    assert np.linalg.norm(after - expected["after"]) < 0.02 * np.linalg.norm(expected["after"] - before), (
        "the steps are not those taken then"
    )


def test_there_is_one_of_each_format_and_they_are_small() -> None:
    formats = {json.loads(path.read_text(encoding="utf-8"))["format"] for path in GOLDEN.glob("*/*/run/step-*/manifest.json")}
    assert formats == set(range(1, verified.FORMAT + 1)), "write one with `python tests/test_golden.py VERSION`"
    assert {path.name for path in CASES} == {"mlp", "unet"}
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 200_000


@pytest.mark.parametrize("command", ["train", "sample", "likelihood"])
def test_one_of_a_later_format_exits_4_and_says_upgrade(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(CASES[0] / "run", tmp_path / "run")
    (folder,) = (tmp_path / "run").glob("step-*")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest.pop("seal")
    manifest |= {"format": verified.PARTED + 1, "ddpm": "9.8", "files": {"model.new": "of another form"}}
    (folder / "manifest.json").write_bytes(verified.sealed(manifest))
    np.save(tmp_path / "table.npy", np.load(CASES[0] / "expected.npz")["data"])
    words = {"train": ["train", "--data", str(tmp_path / "table.npy"), "--out", str(tmp_path / "run"), "--batch", "4"]}
    assert ddpm_main(words.get(command, [command, str(tmp_path / "run")])) == 4
    said = capsys.readouterr().err
    assert (
        f"written by ddpm 9.8 (format {verified.PARTED + 1}), this is ddpm" in said and "upgrade ddpm" in said and "Traceback" not in said
    )


def main() -> int:
    """Write the golden checkpoints of a version."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version")
    folder = GOLDEN / parser.parse_args().version
    if folder.exists():
        sys.exit(f"{folder} is there already; golden files are never written again")
    rng = np.random.default_rng(0)
    tables = {"data": rng.normal(250.0, 20.0, (24, 8)).astype(np.float32), "class": np.arange(24) % 3}
    images = {"data": rng.integers(0, 256, (24, 1, 8, 8)).astype(np.uint8)}
    for kind, arrays in {"mlp": tables, "unet": images}.items():
        run = folder / kind / "run"
        train(config_of(kind, run), data=data_of(arrays, kind), quiet=True)
        for path in run.iterdir():
            if not path.name.startswith("step-") and path.name != "data_card.json":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        after = resumed(run, kind, arrays, folder / "scratch")
        shutil.rmtree(folder / "scratch")
        np.savez_compressed(folder / kind / "expected.npz", allow_pickle=False, **arrays, **drawn(run), after=after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
