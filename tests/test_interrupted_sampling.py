"""`ddpm sample` stopped half way and short of memory: whole files only, the same call goes on, and its end is that of a call left alone."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm import sampling
from ddpm.cli import main
from ddpm.errors import ConfigError
from ddpm.evaluation.drawing.kept import UNFINISHED, Drawn
from ddpm.shortage import changed
from ddpm.training import Trainer
from small_runs import SMALL_UNET, digests, environment, held, pictures, quietly, settings, table

SAMPLE = ["--n", "10", "--batch", "4", "--steps", "3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 8x8 pictures that has learned nothing."""
    out = tmp_path_factory.mktemp("runs") / "run"
    quietly(settings(out, steps=2, network=SMALL_UNET), data=pictures(1, 8, 8))
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def stop_at(patch: pytest.MonkeyPatch, batch: int, error: BaseException) -> None:
    """An error while the batch-th batch is drawn."""
    sample, calls = sampling.sample, iter(range(10**6))

    def drawing(*words: object, **more: object) -> object:
        if next(calls) == batch:
            raise error
        return sample(*words, **more)  # type: ignore[arg-type]

    patch.setattr(sampling, "sample", drawing)


@pytest.mark.parametrize("form", ["png", "npz"])
@pytest.mark.parametrize("batch", [1, 2])
def test_interrupted_and_continued_ends_as_one_call(
    form: str, batch: int, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def words(out: str) -> list[str]:
        return ["sample", str(run), *SAMPLE, "--format", form, "--out", str(tmp_path / out)]

    assert main(words("whole")) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, batch, KeyboardInterrupt())
        assert main(words("cut")) == 130
    assert f"ddpm sample: interrupted: wrote {4 * batch} of 10 in {tmp_path / 'cut'}; the same command continues" in capsys.readouterr().err
    left = sorted(path.name for path in (tmp_path / "cut").iterdir())
    assert left == [UNFINISHED, *(f"{i:06d}.png" for i in range(4 * batch) if form == "png")]
    other = words("cut")
    other[other.index("10")] = "9"
    assert main(other) == 2, "another call must not mix its samples in"
    drawn: list[object] = []
    sample = sampling.sample
    monkeypatch.setattr(sampling, "sample", lambda *words, **more: drawn.append(more["first"]) or sample(*words, **more))
    assert main(words("cut")) == 0
    assert drawn == [4, 8][batch - 1 :], "batches drawn twice"
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_interrupted_before_the_first_batch_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_at(monkeypatch, 0, KeyboardInterrupt())
    assert main(["sample", str(run), *SAMPLE, "--out", str(tmp_path / "out")]) == 130
    assert "wrote 0 of 10" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_usual_folder_is_continued_by_the_same_call_only(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["sample", str(run), *SAMPLE, "--seed", "7"]
    with monkeypatch.context() as patch:
        stop_at(patch, 1, KeyboardInterrupt())
        assert main(words) == 130
    assert main([*words, "--weights", "raw"]) == 0
    assert len(files(run / "samples" / "seed-7-2")) == 12 and (run / "samples" / "seed-7" / UNFINISHED).is_dir()
    assert main(words) == 0
    assert len(files(run / "samples" / "seed-7")) == 12 and not (run / "samples" / "seed-7-3").exists()
    assert main(words) == 0
    assert len(files(run / "samples" / "seed-7-3")) == 12, "a call that has ended is not continued"


KILLED = """
import os, signal, sys
from ddpm import sampling
sample, calls = sampling.sample, iter(range(99))
def slowly(*words, **more):
    if next(calls) == 2:
        print("two batches", flush=True)
        import time; time.sleep(60)
    return sample(*words, **more)
sampling.sample = slowly
from ddpm.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_real_signal(number: signal.Signals, run: Path, tmp_path: Path) -> None:
    words = ["sample", str(run), *SAMPLE, "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    with process:
        assert process.stdout and process.stdout.readline() == "two batches\n"
        begin = time.monotonic()
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -9) and time.monotonic() - begin < 10
    assert ("wrote 8 of 10" in said) == (number == signal.SIGINT) and "Traceback" not in said
    for path in (tmp_path / "out").glob("*.png"):
        with Image.open(path) as picture:
            picture.load()
    assert main(words) == 0 and len(files(tmp_path / "out")) == 12


def test_where_samples_go(tmp_path: Path) -> None:
    first = Drawn.open(None, tmp_path / "a", ["x"])
    assert first.samples == 0 and not first.folder.exists()
    first.begin()
    first.add(0, np.zeros((3, 2)))
    first.add(3, np.ones((2, 2)))
    assert Drawn.open(tmp_path / "a", tmp_path / "b", ["x"]).samples == 5
    assert Drawn.open(None, tmp_path / "a", ["y"]).folder == tmp_path / "a-2"
    assert first.all()[:, 0].tolist() == [0, 0, 0, 1, 1]
    with pytest.raises(ConfigError, match="holds samples already"):
        Drawn.open(tmp_path / "a", tmp_path / "b", ["y"])
    (tmp_path / "a" / UNFINISHED / "request").unlink()  # as a removal that was cut short leaves it
    with pytest.raises(ConfigError, match="holds samples already"):
        Drawn.open(tmp_path / "a", tmp_path / "b", ["x"])


# the same bytes, whatever the batch -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_one_batch_of_eight_and_eight_batches_of_one(sampler: str, run: Path, tmp_path: Path) -> None:
    def drawn(name: str, *words: str) -> np.ndarray:
        call = ["sample", str(run), "--n", "8", "--steps", "5", "--sampler", sampler, "--format", "npz", "--seed", "3"]
        assert main([*call, "--out", str(tmp_path / name), *words]) == 0
        (path,) = (tmp_path / name).glob("*.npz")
        return np.load(path, allow_pickle=False)["arr_0"].astype(int)

    whole = drawn("whole")
    assert np.array_equal(whole, drawn("again")), "the same call twice"
    assert abs(whole - drawn("single", "--batch", "1")).max() <= 1
    assert len(np.unique(whole.reshape(8, -1), axis=0)) == 8 and np.ptp(whole) > 50


# out of memory --------------------------------------------------------------------------------------------------------------


class OutOfMemoryError(RuntimeError):
    """As torch calls its own."""


@pytest.mark.parametrize(
    "error", [MemoryError(), OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), RuntimeError("not enough memory: 8 bytes")]
)
def test_sample_short_of_memory(
    error: Exception, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", str(run), *SAMPLE, "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["ddpm", *words])
    with monkeypatch.context() as patch:
        stop_at(patch, 0, error)
        assert main(words) == 1
    said = capsys.readouterr().err
    assert f"out of memory with a batch of 4: {error or 'the machine'}".split(". ")[0] in said and "Traceback" not in said
    advice = said.strip().splitlines()[-1].split(": ", 1)[1]
    assert advice == f"ddpm sample {run} --n 10 --steps 3 --out {tmp_path / 'out'} --batch 2"
    assert main([*advice.split()[1:-3], str(tmp_path / "new"), *advice.split()[-2:]]) == 0, "the process is as good as before"
    assert len(files(tmp_path / "new")) == 12


def test_train_short_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command it says goes on from the last checkpoint with the same samples a step."""
    np.save(tmp_path / "table.npy", table().samples[:])
    model = ["--network", "mlp-config", "--network.width", "8", "--network.depth", "1", "--preview", "0", "--threads", "1"]
    words = [
        "train",
        "--data",
        str(tmp_path / "table.npy"),
        "--out",
        str(tmp_path / "run"),
        "--steps",
        "6",
        "--checkpoint-every",
        "2",
        *model,
    ]
    step = Trainer.step

    def short(trainer: Trainer, *rest: object) -> torch.Tensor | None:
        if trainer.state.step == 3:
            raise OutOfMemoryError("CUDA out of memory")
        return step(trainer, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(sys, "argv", ["ddpm", *words, "--batch", "8"])
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", short)
        assert main([*words, "--batch", "8"]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-2] == "ddpm train: error: out of memory with a batch of 8: CUDA out of memory"
    advice = said[-1].strip().removeprefix("try half the batch (the same samples a step): ")
    assert advice.split()[1:] == [*words, "--batch", "4", "--accumulate", "2"]
    assert held(tmp_path / "run").step == 2
    assert main(advice.split()[1:]) == 0
    assert "Resumed from step 2" in capsys.readouterr().err and held(tmp_path / "run").step == 6
    assert main([*words[:4], str(tmp_path / "straight"), *words[5:], "--batch", "8"]) == 0
    whole, halves = held(tmp_path / "straight").tensors("model"), held(tmp_path / "run").tensors("model")
    assert all(torch.allclose(whole[name], halves[name], atol=5e-3) for name in whole)
    assert digests(tmp_path / "run").keys() == digests(tmp_path / "straight").keys()


def test_command_lines_with_other_flags() -> None:
    assert changed(["train", "--batch", "8", "--out", "a b"], {"--batch": 4}) == "ddpm train --out 'a b' --batch 4"
    assert changed(["train", "--batch=8", "--accumulate", "2"], {"--batch": 4, "--accumulate": 4}) == "ddpm train --batch 4 --accumulate 4"
    assert changed(["sample", "--batch_size", "8"], {"--batch": 4}) == "ddpm sample --batch_size 8 --batch 4"
