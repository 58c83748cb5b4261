"""Runs that take a fraction of a second, and what is compared of them; shared by the tests of training and of the command line."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm.data import Dataset, from_arrays
from ddpm.networks.config import MLPConfig, UNetConfig
from ddpm.training import TrainConfig, Trainer, run, train
from ddpm.training.build import build_denoiser, measured
from ddpm.training.checkpoints.checkpoint import Checkpoint, newest
from ddpm.training.machine import Machine
from ddpm.training.run import Finished

SMALL_MLP = MLPConfig(width=16, depth=1)
SMALL_UNET = UNetConfig(channels=8, mults=(1, 2), blocks=1, attention=(), dropout=0.0)
SOURCE = Path(__file__).resolve().parent.parent / "src"


def table(count: int = 40, features: int = 3, *, classes: int = 0, seed: int = 0, **options: Any) -> Dataset:
    """Two clouds of points, far from zero, in a float table; with classes the ids go round."""
    rng = np.random.default_rng(seed)
    centres = np.where(rng.random((count, 1)) < 0.5, 250.0, 290.0)
    samples = (centres + rng.normal(0.0, 5.0, (count, features))).astype(np.float32)
    cond = {"class": np.arange(count) % classes} if classes else {}
    return from_arrays(samples, cond, name="table", **options)


def pictures(*shape: int, count: int = 40, seed: int = 0, **options: Any) -> Dataset:
    """Random 8-bit data of a shape, channels first."""
    samples = np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(np.uint8)
    return from_arrays(samples, name="pictures", **options)


def settings(out: Path, **changes: Any) -> TrainConfig:
    """Settings of a run of a few steps on one thread, without previews."""
    base = TrainConfig(
        out=str(out), steps=4, batch=4, threads=1, preview=0, network=SMALL_MLP, checkpoint_every=1000, evaluate_every=1000, log_every=1000
    )
    return replace(base, **changes)


def quietly(config: TrainConfig, **options: Any) -> Finished:
    """`train` without output."""
    return train(config, quiet=True, **options)


def trainer_for(out: Path, data: Dataset, **changes: Any) -> Trainer:
    """A trainer that has done nothing yet."""
    config = measured(settings(out, **changes), data.card)
    machine = Machine(torch.device("cpu"), "fp32", "a test")
    torch.set_num_threads(1)
    return Trainer(config, data, run._state(config, data, machine, build_denoiser(config, data.card)), machine, out)


def held(folder: Path, step: int | None = None) -> Checkpoint:
    """The newest checkpoint of a run, or that of a step."""
    found = newest(folder, step)
    assert found is not None
    return found


def digests(folder: Path, step: int | None = None) -> dict[str, str]:
    """SHA-256 of every tensor of a checkpoint, and of what its state.json says of the optimizer and the steps."""
    saved = held(folder, step)
    out: dict[str, str] = {}
    for group in saved.tensor_names:
        for name, tensor in saved.tensors(group).items():
            out[f"{group}/{name}"] = hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
    state = saved.document("state")
    for key in ("step", "good_steps", "optimizer"):
        out[f"state/{key}"] = json.dumps(state[key], sort_keys=True)
    return out


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; every one must be JSON."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def environment(**extra: str) -> dict[str, str]:
    """For processes of their own: one thread, and the source beside these tests."""
    path = os.pathsep.join([str(SOURCE), *([os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **extra}


def start(*words: str, **extra: str) -> subprocess.Popen[str]:
    """`ddpm WORDS` in a process of its own."""
    command = [sys.executable, "-m", "ddpm", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**extra))
