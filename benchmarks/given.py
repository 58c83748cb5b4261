"""Super-resolution and colourisation on CIFAR-10: does a sample agree with what was given, and do samples of the same differ?

    python benchmarks/given.py --data cifar10-train.tar.xz --minutes 20 --figure docs/given.png

Two models of one small network, `ddpm train --given small` (8x8 to 32x32) and `--given grey`, each trained for so many CPU minutes on one
thread, without classes. Of --n held-out pictures --seeds samples are drawn from what is given of each. Measured, in grey levels of 0..255:

    consistency   root mean square of (what is given of the sample) - (what was given); beside it: that of another picture's sample
    diversity     standard deviation over samples of one picture, root mean square over entries; beside it: over pictures
    error         of one sample, and of the mean of the samples, against the true picture; beside it: of what was given itself
    rank          where the true value lies among the samples, entry by entry: (those below it + 1/2)/(all + 1). Its spread is 0.287 of 8
                  samples where truth and samples are alike, 0.289 of many; more where samples vary too little

Trained runs are kept in --folder, and save at every quarter: a second call goes on. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from budget import counted, fitting, used
from torch import Tensor, nn

import ddpm
from ddpm.data import open_data
from ddpm.data.dataset import Dataset, evenly
from ddpm.data.export import grid, save_picture
from ddpm.data.settings import DataSettings
from ddpm.denoiser import Given, Grey, Small
from ddpm.networks import UNetConfig
from ddpm.sampling import Multistep
from ddpm.training import OptimizerSettings, TrainConfig, train
from ddpm.training.checkpoints.storage import replace_text
from ddpm.training.given import with_given

TASKS: dict[str, Given] = {"super-resolution": Small(factor=4), "colourisation": Grey()}
NETWORK = UNetConfig(channels=32, mults=(1, 2, 2), blocks=1, attention=(2,), dropout=0.0)
STEPS, BATCH = 25, 64


def settings(args: argparse.Namespace, name: str, steps: int, out: Path) -> TrainConfig:
    """One run."""
    quiet: dict[str, Any] = {"preview": 0, "track": ("none",), "evaluate_every": steps, "checkpoint_every": -(-steps // 4)}
    optimizer = OptimizerSettings(lr=1e-3, warmup=min(100, steps), decay="cosine")
    data = DataSettings(data=args.data, flip=True, labels="none")
    return TrainConfig(
        data=data, steps=steps, batch=BATCH, network=NETWORK, given=TASKS[name], cond_dropout=0.0, optimizer=optimizer, ema=0.1, threads=1,
        precision="auto", out=str(out), **quiet,
    )  # fmt: skip


def trained(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train a task for so many CPU minutes, unless it has been; what it took. One that was stopped goes on with the steps it began with."""
    torch.set_num_threads(1)
    run = Path(args.folder) / f"{name}-{args.minutes:g}"
    told, asked, clock = (run.with_name(f"{run.name}{ending}") for ending in (".json", "-steps.json", "-seconds.json"))
    if told.is_file():
        return json.loads(told.read_text(encoding="utf-8"))
    short = run.with_name(f"{run.name}-short")

    def timed(steps: int) -> None:
        shutil.rmtree(short, ignore_errors=True)
        train(settings(args, name, steps, short), quiet=True)
        shutil.rmtree(short)

    if not asked.is_file():
        replace_text(asked, json.dumps(fitting(timed, args.minutes)))
    steps = int(json.loads(asked.read_text(encoding="utf-8")))
    with counted(clock):
        finished = train(settings(args, name, steps, run), quiet=True)
    if finished.code:
        sys.exit(finished.code)  # stopped; the same call goes on
    found = {"steps": steps, "cpu_minutes": round(used(clock) / 60.0, 2)}
    replace_text(told, json.dumps(found))
    return found


def rms(x: Tensor) -> float:
    """Root mean square, in grey levels."""
    return float((127.5 * x).square().mean().sqrt())


def bicubic(image: Tensor, factor: int) -> Tensor:
    """Blocks of repeated entries, enlarged smoothly instead."""
    return nn.functional.interpolate(image[..., ::factor, ::factor], scale_factor=factor, mode="bicubic", align_corners=False)


def measured(name: str, args: argparse.Namespace, data: Dataset) -> tuple[dict[str, float], Tensor, Tensor, Tensor]:
    """The figures of a task; and the given images, the samples (pictures, seeds, C, H, W) and the true pictures, encoded."""
    model, given = ddpm.load(str(Path(args.folder) / f"{name}-{args.minutes:g}")), TASKS[name]
    raw, cond = with_given(data, given).batch(evenly(data.held_rows, args.n))
    truth, image = model.codec.encode(raw), torch.from_numpy(cond["image"])
    asked = {"image": image.repeat_interleave(args.seeds, 0)}
    drawn = ddpm.sample(model, args.n * args.seeds, steps=STEPS, sampler=Multistep(), cond=asked, seed=0, batch=100)
    samples = model.codec.encode(drawn).reshape(args.n, args.seeds, *model.shape)
    again = given(samples.flatten(0, 1)).reshape(args.n, args.seeds, *image.shape[1:])
    wide = image.expand(-1, model.shape[0], -1, -1)
    below = (samples < truth[:, None]).float().sum(1) + 0.5 * (samples == truth[:, None]).float().sum(1)
    figures = {
        "consistency": rms(again - image[:, None]),
        "consistency, of another": rms(again - image.roll(1, 0)[:, None]),
        "diversity": rms(samples.std(1)),
        "diversity, over pictures": rms(truth.std(0)),
        "error of a sample": rms(samples[:, 0] - truth),
        "error of the mean": rms(samples.mean(1) - truth),
        "error of what is given": rms(wide - truth),
        **({"error of its bicubic enlargement": rms(bicubic(image, given.factor) - truth)} if isinstance(given, Small) else {}),
        "spread of ranks": float(((below + 0.5) / (args.seeds + 1)).std()),
    }
    return figures, wide, samples, truth


def main() -> int:
    """Train what is missing, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10's archive or folder")
    parser.add_argument("--minutes", type=float, default=20.0, help="CPU minutes of training for each task")
    parser.add_argument("--n", type=int, default=100, help="held-out pictures")
    parser.add_argument("--seeds", type=int, default=8, help="samples of each")
    parser.add_argument("--folder", default="runs/given")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--figure", type=Path, default=None)
    args = parser.parse_args()
    Path(args.folder).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(args.processes, get_context("spawn")) as pool:
        runs = dict(zip(TASKS, pool.map(trained, TASKS, [args] * len(TASKS)), strict=True))
    torch.set_num_threads(args.processes)
    data = open_data(DataSettings(data=args.data, labels="none"))
    found: dict[str, Any] = {}
    sheets: list[np.ndarray] = []
    for name in TASKS:
        figures, wide, samples, truth = measured(name, args, data)
        found[name] = {**{key: round(value, 3) for key, value in figures.items()}, **runs[name]}
        print(f"{name}: " + "  ".join(f"{key} {value:g}" for key, value in found[name].items()), flush=True)
        rows = torch.cat([wide[:6, None], samples[:6, :6], truth[:6, None]], dim=1)
        sheets.append(rows.flatten(0, 1).numpy())
    if args.figure:
        save_picture(grid(np.concatenate(sheets), (-1.0, 1.0), columns=8, width=720), args.figure)
        print(args.figure)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
