"""Do tricks of other libraries help? Each against the plain digits recipe: held-out loss and Frechet distance, on writers never seen.

    python benchmarks/tricks.py                      every trick, three seeds; scores are kept in --folder and not measured again
    python benchmarks/tricks.py --tricks augment     one of them, and the plain recipe
    python benchmarks/tricks.py --known              the table of what the folder already holds

All is as in the digits recipe but for the trick, --channels and --steps; trained on the first --digits digits, scored on the last 899,
which other people wrote: eps_loss is |eps - eps_hat|^2 per pixel at 8 log-SNR levels evenly from -6 to 6, with the same noise for every
run; fd_ratio is the Frechet distance of 898 samples (DDIM, --sample-steps) over that of the first 898 digits. A self-conditioned network
is scored with its own first guess fed back once, and (eps_loss_blind) without. The last line is JSON: each trick's means, and the changes
to plain seed by seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits import SPLIT, Array, frechet

from ddpm.config import Layer, resolve
from ddpm.data import from_arrays
from ddpm.data.dataset import Dataset
from ddpm.data.digits import handwritten
from ddpm.denoiser import NetworkDenoiser
from ddpm.networks.config import UNetConfig
from ddpm.random import generator
from ddpm.sampling import DDIM, sample
from ddpm.training import FAMILIES, TrainConfig, Tricks, train
from ddpm.training.checkpoints.storage import replace_text
from ddpm.training.recipes import recipe

LEVELS = torch.linspace(-6.0, 6.0, 8, dtype=torch.float64)
TRICKS = {
    "plain": Tricks(),
    "self-condition": Tricks(self_condition=True),
    "augment": Tricks(augment=0.12),
}
Scores = dict[str, float]


@torch.no_grad()
def eps_loss(denoiser: NetworkDenoiser, x: Array, y: Array, *, again: bool) -> float:
    """Mean |eps - eps_hat|^2 per pixel; again: with the first prediction fed back."""
    x0, process = denoiser.codec.encode(torch.from_numpy(x)).float(), denoiser.process
    cond, errors = {"class": torch.from_numpy(y)}, list[float]()
    for index, t in enumerate(process.time_of(LEVELS)):
        eps = torch.from_numpy(generator(0, "evaluate", index).standard_normal(tuple(x0.shape), dtype=np.float32))
        at = process.at(t.repeat(len(x0)), like=x0)
        noisy = process.perturb(x0, eps, at)
        prediction = denoiser(noisy, at, cond)
        if again:
            prediction = denoiser(noisy, at, {**cond, "x0": prediction.x0})
        errors.append((eps - prediction.eps).square().mean().item())
    return statistics.fmean(errors)


class Study:
    """The digits, and the scores so far."""

    def __init__(self, folder: Path, digits: int, channels: int, steps: int, sample_steps: int) -> None:
        self.folder, self.digits, self.channels, self.steps, self.sample_steps = folder, digits, channels, steps, sample_steps
        x, y = handwritten()
        self.x: Array = np.asarray(x).reshape(-1, 1, 8, 8).astype(np.uint8)
        self.y: Array = np.asarray(y).astype(np.int64)
        self.path = folder / "scores.json"
        self.kept: dict[str, Scores] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def key(self, trick: str, seed: int) -> str:
        """What a run is kept under."""
        return f"{trick} {seed}: {self.digits} digits, {self.channels} channels, {self.steps} steps, {self.sample_steps} sampling steps"

    def data(self) -> Dataset:
        """The digits that are trained on."""
        cond, classes = {"class": self.y[: self.digits]}, tuple("0123456789")
        return from_arrays(self.x[: self.digits], cond=cond, name="digits", classes=classes, bins=(0, 16), holdout=0.0)

    def run(self, trick: str, seed: int) -> None:
        """Train and score, unless it is known."""
        key = self.key(trick, seed)
        if key in self.kept:
            return
        began = time.process_time()
        config = resolve(TrainConfig, [Layer("recipe digits", recipe("digits"))], FAMILIES)
        assert isinstance(config.network, UNetConfig)
        network = replace(config.network, channels=self.channels)
        out = str(self.folder / f"{trick}-{seed}-{self.digits}-{self.channels}-{self.steps}")
        config = replace(
            config, steps=self.steps, seed=seed, network=network, out=out, preview=0, threads=1, track=("none",), tricks=TRICKS[trick]
        )
        denoiser = train(config, data=self.data(), quiet=True).denoiser
        trained = time.process_time() - began
        drawn = sample(
            denoiser,
            SPLIT,
            steps=self.sample_steps,
            sampler=DDIM(),
            seed=seed,
            cond={"class": torch.from_numpy(self.y[:SPLIT])},
            batch=SPLIT,
        )
        flat, real = (pictures.reshape(len(pictures), -1).astype(np.float64) for pictures in (drawn.numpy(), self.x))
        blind = eps_loss(denoiser, self.x[SPLIT:], self.y[SPLIT:], again=False)
        fed = eps_loss(denoiser, self.x[SPLIT:], self.y[SPLIT:], again=True) if trick == "self-condition" else blind
        ratio = frechet(flat, real[SPLIT:]) / frechet(real[:SPLIT], real[SPLIT:])
        self.kept[key] = {"eps_loss": fed, "eps_loss_blind": blind, "fd_ratio": ratio, "seconds": round(trained, 1)}
        replace_text(self.path, json.dumps(self.kept, indent=1) + "\n")
        print(f"{key}: " + "  ".join(f"{name} {value:.4f}" for name, value in self.kept[key].items()), flush=True)

    def report(self, tricks: list[str], seeds: range) -> None:
        """A line a trick, and all as JSON."""
        summary: dict[str, Any] = {}
        for trick in tricks:
            known = [
                (self.kept[self.key(trick, seed)], self.kept.get(self.key("plain", seed)))
                for seed in seeds
                if self.key(trick, seed) in self.kept
            ]
            if not known:
                continue
            means = {name: round(statistics.fmean(scores[name] for scores, _ in known), 4) for name in known[0][0] if name != "seconds"}
            change = {
                name: [round(scores[name] - plain[name], 4) for scores, plain in known if plain is not None]
                for name in ("eps_loss", "fd_ratio")
            }
            summary[trick] = {**means, "seeds": len(known), "change": change}
            print(f"{trick:15s} " + "  ".join(f"{name} {value:.4f}" for name, value in means.items()) + f"  change {change}")
        print(json.dumps(summary))


def main() -> int:
    """Run what is not known yet, seed by seed; report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/tricks"), help="run folders and scores")
    parser.add_argument("--tricks", nargs="+", choices=list(TRICKS), default=list(TRICKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--digits", type=int, default=SPLIT, help=f"digits trained on, at most {SPLIT}")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--sample-steps", type=int, default=25)
    parser.add_argument("--known", action="store_true", help="train nothing")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    study = Study(args.folder, min(args.digits, SPLIT), args.channels, args.steps, args.sample_steps)
    tricks = list(dict.fromkeys(["plain", *args.tricks]))
    for seed in range(0 if args.known else args.seeds):
        for trick in tricks:
            study.run(trick, seed)
    study.report(tricks, range(args.seeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
