"""Single flipped bits: 1,000 spread over every file of a run's checkpoint, each noticed before any tensor is used.

`python tests/long_checks.py --flips 10000` prints the figures of a longer run.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

from ddpm.errors import CheckpointError
from ddpm.objective import Denoising
from ddpm.training.checkpoints import verified
from ddpm.training.checkpoints.checkpoint import newest, open_checkpoint
from small_runs import quietly, settings, table


class Figures(NamedTuple):
    """How many bits were flipped, in which files, and how many were noticed."""

    flips: int
    noticed: int
    files: dict[str, int]


def never(content: bytes) -> NoReturn:
    raise AssertionError("tensors were read from a checkpoint that is damaged")


def flip(run: Path, count: int, seed: int = 0) -> Figures:
    """Flip one bit at a time of the newest of two checkpoints, 20 in every file or more, the rest by size; the one before must be used."""
    (earlier, later) = sorted(run.glob("step-???????"))
    draw = random.Random(seed)
    originals = {path: path.read_bytes() for path in sorted(later.iterdir())}
    bits = [
        (path, draw.randrange(8 * len(content))) for path, content in originals.items() for _ in range(min(20, count // len(originals)))
    ]
    sizes = [len(content) for content in originals.values()]
    for path in draw.choices(list(originals), sizes, k=count - len(bits)):
        bits.append((path, draw.randrange(8 * len(originals[path]))))
    noticed, files = 0, Counter[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verified, "safetensors_load", never)
        for path, bit in bits:
            damaged = bytearray(originals[path])
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            notices: list[str] = []
            found = newest(run, notice=notices.append)
            told = len(notices) == 1 and path.name in notices[0] and notices[0].endswith(f"using step {int(earlier.name[5:])}")
            try:
                open_checkpoint(later)
            except CheckpointError as error:
                noticed += found is not None and found.path == earlier and told and path.name in str(error)
            files[path.name] += 1
            path.write_bytes(originals[path])
    assert open_checkpoint(later).tensors("model") and newest(run, notice=pytest.fail)
    return Figures(len(bits), noticed, dict(files))


def trained(folder: Path) -> Path:
    """A run with two checkpoints, with every kind of file there is."""
    run = folder / "run"
    loss = Denoising(uncertainty=True, importance=True)
    quietly(settings(run, steps=4, checkpoint_every=2, loss=loss), data=table(classes=2))
    return run


def test_a_thousand_flipped_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddpm.training.run.loss_figure", lambda folder: None)
    figures = flip(trained(tmp_path), 1000)
    assert figures.flips == figures.noticed == 1000
    assert set(figures.files) == {
        *("model.safetensors", "ema-0.050.safetensors", "optimizer.safetensors", "loss.safetensors"),
        *("config.json", "state.json", "manifest.json"),
    }
    assert min(figures.files.values()) >= 20
