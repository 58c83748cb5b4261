"""CIFAR-10 in so many CPU minutes: this package, diffusers' unconditional script, and denoising-diffusion-pytorch.

    python benchmarks/cifar10_peers.py --data cifar10-train.tar.xz --minutes 60 --figure docs/cifar10_peers.png

Each trains a U-Net of like size (--channels at the first level) for the same CPU time on the same pictures, one thread each, in bfloat16;
the number of steps that fits is measured first. Ours is the recipe cifar10, in batches of --batch and without dropout. The peers are as
they come, with their own objectives, schedules, optimizers and averages, mirror images, and --lr, ten times their default, which is for
longer runs (--pilot MINUTES compares the two). All are sampled by 50 steps of DDIM, each its own, the peers with their averaged weights,
which are what their scripts save, and with those of the last step, which short runs may have better. The distance is on the features of an
encoder trained on the same pictures, against those that training has seen, beside that of pictures it has not seen.

Everything is kept in --folder, an eighth of a training after another: a second call goes on, or only scores. A folder belongs to one
--data, --channels, --batch and --precision; --n may change: the first --n samples are scored, and where --systems have fewer, more are
drawn. Minutes are CPU minutes, but a busy machine makes each of them worth less: measure with nothing else running; --systems takes them
one after the other. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from budget import begun, counted, fitting, used
from peers import Pictures, Run, diffusers_run, eighth, library, lucid_run
from PIL import Image
from speed_unet import sizes
from torch import Tensor, nn

from ddpm.config import Layer, resolve
from ddpm.data import open_data
from ddpm.data.dataset import Dataset
from ddpm.data.settings import DataSettings
from ddpm.evaluation.extractors.learned import Learned
from ddpm.evaluation.report import Evaluator
from ddpm.evaluation.report.files import finite
from ddpm.networks import UNetConfig
from ddpm.sampling import DDIM, sample
from ddpm.training import FAMILIES, TrainConfig, train
from ddpm.training.checkpoints.storage import replace_text
from ddpm.training.recipes import recipe

SYSTEMS = ("ddpm", "diffusers", "denoising-diffusion-pytorch")
CALLS, CHUNK = 50, 100


def network(system: str, channels: int) -> nn.Module:
    """A U-Net of Ho's shape; denoising-diffusion-pytorch's, built otherwise, is as large with an eighth more channels."""
    if system == "diffusers":
        return library("diffusers").UNet2DModel(
            sample_size=32, block_out_channels=(channels, *(2 * channels,) * 3), layers_per_block=2, attention_head_dim=None,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), norm_num_groups=min(32, channels),
        )  # fmt: skip
    if system == "denoising-diffusion-pytorch":
        unet = library("denoising_diffusion_pytorch").Unet
        return unet(channels * 9 // 8, dim_mults=(1, 2, 2, 2), full_attn=(False, True, False, False))
    return UNetConfig(channels=channels, dropout=0.0).build((3, 32, 32))


def settings(args: argparse.Namespace, steps: int, out: Path) -> TrainConfig:
    """Ours: the recipe, with the size, batch and length that are asked for."""
    base = resolve(TrainConfig, [Layer("recipe cifar10", recipe("cifar10"))], FAMILIES)
    quiet: dict[str, Any] = {"preview": 0, "monitor": False, "track": ("none",), "evaluate_every": steps, "checkpoint_every": eighth(steps)}
    return replace(
        base, data=replace(base.data, data=args.data), network=UNetConfig(channels=args.channels, dropout=0.0), steps=steps,
        batch=args.batch, optimizer=replace(base.optimizer, warmup=min(base.optimizer.warmup, steps // 10)), out=str(out), threads=1,
        precision=args.precision, **quiet,
    )  # fmt: skip


class Trained:
    """One system: how it trains for so many steps, and how it is sampled afterwards."""

    def __init__(self, system: str, args: argparse.Namespace, lr: float) -> None:
        self.system, self.args, self.lr, self.model = system, args, lr, None
        self.data = open_data(settings(args, 10, Path()).data) if system == "ddpm" else None

    def run(self, steps: int, home: Path | None = None, averaged: bool = True) -> None:
        """Train from nothing; or, with a folder to keep an eighth after another in, on from there. averaged: of a peer, the weights."""
        torch.manual_seed(0)
        with TemporaryDirectory() as scratch:
            out = home or Path(scratch) / "run"
            how = Run(self.args.batch, self.lr, self.args.precision, flip=True, averaged=averaged)
            net, pictures = (lambda: network(self.system, self.args.channels)), Path(self.args.folder) / "pictures"
            if self.system == "ddpm":
                self.model = train(settings(self.args, steps, out), data=self.data, quiet=True).denoiser
            elif self.system == "diffusers":
                self.model = diffusers_run(net(), Pictures(pictures, 32, "RGB", flip=True), steps, how, out)
            else:
                theirs: dict[str, Any] = {"objective": "pred_v", "beta_schedule": "sigmoid", "sampling_timesteps": CALLS}
                module = library("denoising_diffusion_pytorch.denoising_diffusion_pytorch")
                module.cpu_count = lambda: 0  # its loader in this process, where its time is counted
                self.model = lucid_run(net(), pictures, out, steps, 32, how, keep=True, **theirs)

    @torch.no_grad()
    def draw(self, first: int) -> Tensor:
        """Pictures first to first + CHUNK - 1 as bytes."""
        if self.system == "ddpm":
            return sample(self.model, CHUNK, steps=CALLS, sampler=DDIM(), seed=0, first=first, batch=CHUNK)  # pyright: ignore[reportArgumentType]
        torch.manual_seed(first)
        if self.system == "diffusers":
            diffusers = library("diffusers")
            noiser = diffusers.DDIMScheduler(num_train_timesteps=1000, beta_schedule="linear")
            pipeline = diffusers.DDIMPipeline(self.model.eval(), noiser)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
            pipeline.set_progress_bar_config(disable=True)
            pictures = pipeline(batch_size=CHUNK, num_inference_steps=CALLS, output_type="np").images
            drawn = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        else:
            drawn = self.model.eval().sample(batch_size=CHUNK)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
        return (drawn * 255.0).round().clamp(0, 255).byte()

    def drawn(self, n: int, path: Path) -> Tensor:
        """n pictures; what was drawn before is in the file, which grows chunk by chunk."""
        made = torch.from_numpy(np.load(path)) if path.is_file() else torch.empty(0, 3, 32, 32, dtype=torch.uint8)
        while len(made) < n:
            made = torch.cat([made, self.draw(len(made))])
            replace_array(path, made.numpy())
        return made[:n]


def replace_array(path: Path, values: Any) -> None:
    """Write a file that is never half there."""
    aside = path.with_suffix(".tmp.npy")
    np.save(aside, values)
    aside.replace(path)


def job(system: str, lr: float, minutes: float, args: argparse.Namespace) -> dict[str, Any]:
    """Train for so many CPU minutes and draw, each on from where an earlier call was stopped; the samples lie in the folder."""
    torch.set_num_threads(1)
    trainee, plan, spent = Trained(system, args, lr), _place(args, system, lr, minutes, "plan"), _place(args, system, lr, minutes, "used")
    if not plan.is_file():
        replace_text(plan, json.dumps({"steps": fitting(trainee.run, minutes)}))
    steps: int = json.loads(plan.read_text())["steps"]
    record = _place(args, system, lr, minutes, "run")
    with nullcontext() if record.is_file() else counted(spent):  # else only more samples are wanted
        trainee.run(steps, plan.with_suffix(""))
    trainee.drawn(args.n, _place(args, system, lr, minutes, "samples"))
    if system != "ddpm":
        trainee.run(steps, plan.with_suffix(""), averaged=False)
        trainee.drawn(args.n, _place(args, system, lr, minutes, "last"))
    module = network(system, args.channels)
    found = {
        "system": system, "lr": lr, "precision": args.precision, "steps": steps, "images": steps * args.batch,
        "cpu_minutes": round(used(spent) / 60, 2), "ms_a_step": round(1e3 * used(spent) / steps, 1),
        "parameters": sum(p.numel() for p in module.parameters()), "gflop": round(sizes(module), 3),
    }  # fmt: skip
    replace_text(record, json.dumps(found) + "\n")
    return found


def done(system: str, lr: float, minutes: float, args: argparse.Namespace) -> bool:
    """Whether it is trained and has samples enough, a peer of both its weights."""
    drawn = [_place(args, system, lr, minutes, what) for what in ("samples", *["last"] * (system != "ddpm"))]
    enough = all(path.is_file() and len(np.load(path, mmap_mode="r")) >= args.n for path in drawn)
    return enough and _place(args, system, lr, minutes, "run").is_file()


def _place(args: argparse.Namespace, system: str, lr: float, minutes: float, what: str) -> Path:
    return Path(args.folder) / f"{system}-{lr:g}-{minutes:g}-{what}.{'npy' if what in ('samples', 'last') else 'json'}"


def write_pictures(data: Dataset, folder: Path) -> None:
    """The pictures that training may see, as the peers want them."""
    if (folder / "all").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(data.train_rows), 1000):
        rows = data.train_rows[first : first + 1000]
        for row, picture in zip(rows, data.batch(rows)[0], strict=True):
            Image.fromarray(picture.transpose(1, 2, 0)).save(folder / f"{row:05d}.png")
    (folder / "all").touch()


def figure(samples: dict[str, Tensor], scores: dict[str, Any], path: Path, minutes: float) -> None:
    """The first pictures of each, side by side, none chosen."""
    import matplotlib.pyplot as plt

    drawing, axes = plt.subplots(1, len(samples), figsize=(3.3 * len(samples), 3.7), layout="constrained", squeeze=False)
    for axis, (name, pictures) in zip(axes[0], samples.items(), strict=True):
        tiles = pictures[:64].reshape(8, 8, 3, 32, 32).permute(0, 3, 1, 4, 2).reshape(256, 256, 3)
        axis.imshow(tiles.numpy(), interpolation="nearest")
        axis.set_axis_off()
        axis.set_title(f"{name}\ndistance {scores[name]['value']:.1f}", fontsize=9)
    drawing.suptitle(f"CIFAR-10, {minutes:g} CPU minutes of training each, {CALLS} calls a sample", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=110)
    print(path)


def main() -> int:
    """Train what is missing, score, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10's archive or folder")
    parser.add_argument("--folder", default="runs/cifar10-peers")
    parser.add_argument("--minutes", type=float, default=60.0, help="CPU minutes of training for each")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="of all three")
    parser.add_argument("--lr", type=float, default=1e-3, help="of the peers")
    parser.add_argument("--pilot", type=float, default=None, help="only compare the peers' rates, in so many minutes")
    parser.add_argument("--n", type=int, default=2000, help="samples of each")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="those to train now, with commas; all that are done are scored")
    parser.add_argument("--figure", type=Path, default=None)
    args = parser.parse_args()
    systems = args.systems.split(",")
    if unknown := set(systems) - set(SYSTEMS):
        parser.error(f"--systems: {', '.join(sorted(unknown))}; known are {', '.join(SYSTEMS)}")
    torch.set_num_threads(args.processes)
    data, folder = open_data(DataSettings(data=args.data, flip=True)), Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = {key: getattr(args, key) for key in ("channels", "batch", "precision")}
    begun(folder / "asked.json", {**kept, "fingerprint of the data": data.card.fingerprint[:16]})
    write_pictures(data, folder / "pictures")
    ours = resolve(TrainConfig, [Layer("recipe cifar10", recipe("cifar10"))], FAMILIES).optimizer.lr
    minutes = args.pilot or args.minutes
    rates = [args.lr, 1e-4] if args.pilot else [args.lr]
    asked = [("ddpm", ours)] * (not args.pilot) + [(name, lr) for name in SYSTEMS[1:] for lr in rates]

    left = [pair for pair in asked if pair[0] in systems and not done(*pair, minutes, args)]
    with ProcessPoolExecutor(args.processes, get_context("spawn")) as pool:
        for future in as_completed([pool.submit(job, *pair, minutes, args) for pair in left]):
            print(future.result(), flush=True)
    ready = [pair for pair in asked if done(*pair, minutes, args)]
    for name, lr in (pair for pair in asked if pair not in ready):
        print(f"{name}, lr {lr:g}: left out, not trained yet or with fewer than {args.n} samples", flush=True)
    samples: dict[str, Tensor] = {}
    for name, lr in ready:
        for what in ("samples", "last"):
            if (path := _place(args, name, lr, minutes, what)).is_file():
                label = name + ", last weights" * (what == "last") + (f", lr {lr:g}" if args.pilot else "")
                samples[label] = torch.from_numpy(np.load(path)[: args.n])
    evaluator = Evaluator(data, Learned.of(data))
    scores: dict[str, Any] = {name: evaluator.frechet(drawn)._asdict() for name, drawn in samples.items()}
    real = evaluator.real(args.n)
    for name, score in scores.items():
        print(f"{name:48s} {score['value']:8.2f}  [{score['low']:.2f}, {score['high']:.2f}]")
    if args.figure:
        figure(samples, scores, args.figure, minutes)
    runs = [json.loads(_place(args, *pair, minutes, "run").read_text()) for pair in ready]
    floor = None if real is None else real.estimates["frechet"]._asdict()
    print(json.dumps(finite({"scores": scores, "real": floor, "runs": runs})))
    return 0


if __name__ == "__main__":
    sys.exit(main())
