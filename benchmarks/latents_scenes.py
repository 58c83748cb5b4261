"""The scenes part of latents.py: a latent and a pixel model after the same CPU minutes, and what those were spent on."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from latents import SIDE, scenes
from numpy.typing import NDArray

from ddpm.data import from_arrays
from ddpm.data.dataset import Dataset
from ddpm.denoiser import NetworkDenoiser
from ddpm.evaluation.extractors import Learned
from ddpm.metrics import Moments, frechet
from ddpm.networks import AutoencoderConfig, UNetConfig
from ddpm.process import Cosine, Shifted
from ddpm.sampling import sample
from ddpm.training import TrainConfig, load, train
from ddpm.training.autoencoder import train_autoencoder
from ddpm.training.checkpoints.checkpoint import newest
from ddpm.training.checkpoints.storage import replace_text
from ddpm.training.config import AutoencodeConfig, OptimizerSettings

POOL = 2  # times a scene is made smaller before it is scored
BATCH, CALLS = 16, 20  # of drawing
FIRST, PIECE = 10, 120.0  # steps of the first piece of a training, and CPU seconds of the others


def pooled(pictures: NDArray[Any]) -> NDArray[np.uint8]:
    """(N, 1, 128, 128) -> (N, 1, 64, 64), means of four: what the encoder sees that scores are measured on."""
    size = SIDE // POOL
    return np.round(np.asarray(pictures, np.float32).reshape(-1, 1, size, POOL, size, POOL).mean((3, 5))).astype(np.uint8)


class Spent:
    """CPU seconds by name, kept in the folder, so that a call that goes on gets nothing for free."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "spent.json"
        self.seconds: dict[str, float] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}

    def on(self, name: str, action: Callable[[], Any]) -> Any:
        """What a training gives; its seconds are added when it ends, also where it was stopped. One that was killed has left nothing."""
        began = time.process_time()
        found = action()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - began
        replace_text(self.path, json.dumps(self.seconds))
        if found.code:
            raise SystemExit(found.code)
        return found


def compared(args: argparse.Namespace) -> dict[str, Any]:
    """Both models trained, drawn from and scored."""
    minutes, n, folder = args.minutes, args.n, args.folder
    os.environ["DDPM_CACHE"] = str(folder / "cache")  # latents that were encoded before would be free
    spent = Spent(folder)
    data = from_arrays(scenes(args.scenes, 0), name="scenes", holdout=0.0)  # none held out: nothing is measured on the way
    small = from_arrays(pooled(scenes(args.scenes, 0)), name="scenes, pooled", holdout=0.0)
    extractor = Learned.of(small, args.extractor_steps, cache=folder, say=print)

    def moments(pictures: NDArray[Any]) -> Moments:
        return Moments.of(extractor.features(torch.from_numpy(pooled(pictures))))

    truth = moments(scenes(args.scenes // 2, 1))
    result: dict[str, Any] = {"unseen": frechet(moments(scenes(n, 2)), truth)}
    autoencoder = AutoencodeConfig(
        out=str(folder / "autoencoder"), steps=args.autoencoder_steps, batch=8, threads=args.threads,
        network=AutoencoderConfig(channels=16, mults=(1, 2, 4), latent=4),
    )  # fmt: skip
    if "autoencoder" not in spent.seconds:
        shutil.rmtree(autoencoder.out, ignore_errors=True)
    saved = newest(Path(autoencoder.out))
    if saved is None or saved.step < autoencoder.steps:
        spent.on("autoencoder", lambda: train_autoencoder(autoencoder, data=data))
    if spent.seconds["autoencoder"] >= 60 * minutes:
        raise SystemExit(f"--minutes {minutes:g}: the autoencoder alone took {spent.seconds['autoencoder'] / 60:.1f}; give more")
    trained: dict[str, tuple[NetworkDenoiser, int]] = {}
    for name, config in models(args).items():
        before = spent.seconds["autoencoder"] / 60 if name == "latent" else 0.0
        trained[name] = trained_for(config, data, minutes - before, spent, name)
        used = spent.seconds[name] / 60
        result[name] = {
            "steps": trained[name][1], "autoencoder_minutes": round(before, 2), "training_minutes": round(used, 2),
            "minutes": round(before + used, 2),
        }  # fmt: skip
    for name, (drawn, seconds) in in_turns({name: model for name, (model, _) in trained.items()}, n).items():
        np.save(folder / f"{name}.npy", drawn)
        result[name] |= {"frechet": frechet(moments(drawn), truth), "pictures_a_cpu_second": n / seconds}
        print(name, result[name], flush=True)
    result["times_as_fast"] = result["latent"]["pictures_a_cpu_second"] / result["pixel"]["pictures_a_cpu_second"]
    return result


def in_turns(models: dict[str, NetworkDenoiser], n: int) -> dict[str, tuple[NDArray[Any], float]]:
    """n pictures of each model and the CPU seconds they took, batch by batch in turns: what else the machine does slows both alike."""
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in models}
    seconds = dict.fromkeys(models, 0.0)
    for first in range(0, n, BATCH):
        for name, model in models.items():
            began = time.process_time()
            parts[name].append(sample(model, min(BATCH, n - first), steps=CALLS, first=first, batch=BATCH).numpy())
            seconds[name] += time.process_time() - began
    return {name: (np.concatenate(parts[name]), seconds[name]) for name in models}


def models(args: argparse.Namespace) -> dict[str, TrainConfig]:
    """What is trained: the latent model, and the one of pixels, with as much noise after averaging down as a picture of 64 has."""
    folder, base = args.folder, TrainConfig(
        batch=16, preview=0, optimizer=OptimizerSettings(lr=1e-3, warmup=50), evaluate_every=1_000_000, checkpoint_every=1_000_000,
        monitor=False, threads=args.threads,
    )  # fmt: skip
    latent = replace(
        base, out=str(folder / "latent"), autoencoder=str(folder / "autoencoder"),
        network=UNetConfig(channels=64, mults=(1, 2, 2), blocks=1, attention=(1,), dropout=0.0),
    )  # fmt: skip
    pixel = replace(
        base, out=str(folder / "pixel"), schedule=Shifted(base=Cosine(), shift=SIDE / 64),
        network=UNetConfig(channels=32, mults=(1, 2, 2, 4, 4), blocks=1, attention=(4,), dropout=0.0),
    )  # fmt: skip
    return {"latent": latent, "pixel": pixel}


def trained_for(config: TrainConfig, data: Dataset, minutes: float, spent: Spent, name: str) -> tuple[NetworkDenoiser, int]:
    """The denoiser after that many CPU minutes, all that a run does counted, and its steps: in pieces, each as long as the last one's pace
    allows, with what is left of the time known after each.
    """
    if name not in spent.seconds:
        shutil.rmtree(str(config.out), ignore_errors=True)
    saved = newest(Path(str(config.out)))
    steps = saved.step if saved is not None else 0
    pace = spent.seconds[name] / steps if steps else 0.0
    while (left := 60 * minutes - (before := spent.seconds.get(name, 0.0))) > 0:
        more = int(min(PIECE, left) / pace) if pace else FIRST
        if more < 1:
            break
        spent.on(name, partial(train, replace(config, steps=steps + more), data=data, quiet=True))
        steps, pace = steps + more, (spent.seconds[name] - before) / more
        print(f"{name}: {steps} steps, {spent.seconds[name] / 60:.1f} of {minutes:.1f} minutes, {pace:.2f} s a step", flush=True)
    return load(str(config.out)), steps
