"""How few network calls are enough? The Frechet distance of digits by sampler and number of calls, beside 1000 steps of ancestral sampling.

    python benchmarks/nfe.py                                       trains the digits recipe, then draws: hours on one core
    python benchmarks/nfe.py --run RUN --n 2000 --nfes 5,10,20     a part of the table; scores are kept in --folder and not drawn again
    python benchmarks/nfe.py --run RUN --only auto,ancestral-large --nfes 10,1000
    python benchmarks/nfe.py --rows                                an MLP on rows of 64 pixels, 25 times cheaper: the whole table in hours

Trained on the first 898 digits; samples, classes dealt as the training labels are, are compared on pixels with the last 899, which other
people wrote. Every distance is divided by that of the training half: 1 is as close as the data themselves. auto: what `ddpm tune` finds;
auto-untuned: what `ddpm sample --sampler auto` takes where nothing was tuned; the others walk the schedule's usual grid.

The last line is JSON: auto_10 and ancestral_1000 with as many samples each, and their ratio, where both are there.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits import SPLIT, frechet
from numpy.typing import NDArray

from ddpm.config import Layer, from_dict, resolve, to_dict
from ddpm.data import from_arrays
from ddpm.data.digits import handwritten
from ddpm.denoiser import NetworkDenoiser
from ddpm.errors import ConfigError
from ddpm.evaluation import tune
from ddpm.evaluation.drawing.settled import AUTO
from ddpm.networks import MLPConfig
from ddpm.process import Grid, Listed, LogSNR
from ddpm.sampling import DDIM, PRESETS, SAMPLERS, Ancestral, Sampler, sample, steps_for
from ddpm.training import FAMILIES, TrainConfig, load, train
from ddpm.training.checkpoints.storage import replace_text
from ddpm.training.recipes import recipe

NFES = (1, 2, 5, 10, 20, 50, 100, 1000)
SHOWN = {  # drawn in the figure; the table has all
    "auto": "C3", "auto-untuned": "C1", "ddim": "C0", "dpm++2m": "C2", "unipc": "C4", "ancestral-large": "0.2", "ancestral-small": "0.6",
}  # fmt: skip


def samplers() -> dict[str, Sampler]:
    """Every named sampler once, DDIM, and the ancestral ones by variance."""
    found: dict[str, Sampler] = {"ddim": DDIM()}
    for kind in ("large", "small", "analytic"):
        found[f"ancestral-{kind}"] = from_dict(Ancestral, {"variance": kind})
    for preset in PRESETS:
        if preset.value not in (*found.values(), Ancestral()):  # Ancestral() is "large" on this schedule
            found[preset.name] = preset.value
    return found


class Study:
    """The model, the data, and the scores so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.folder = args, Path(args.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        x, y = handwritten()
        self.labels: NDArray[Any] = np.resize(y[:SPLIT].astype(np.int64), max(args.n, 10_000))
        self.other, self.real = x[SPLIT:], frechet(x[:SPLIT], x[SPLIT:])
        self.autocast = torch.bfloat16 if args.bf16 else None
        self.path = self.folder / "scores.json"
        self.kept: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}
        self.model = load(args.run) if args.run else self.trained(x, y)

    def trained(self, x: NDArray[Any], y: NDArray[Any]) -> NetworkDenoiser:
        """The digits recipe on the first half, or with --rows a small MLP; the same folder resumes."""
        pictures = x[:SPLIT].reshape((-1, 64) if self.args.rows else (-1, 1, 8, 8)).astype(np.uint8)
        classes = {"class": y[:SPLIT].astype(np.int64)}
        data = from_arrays(pictures, cond=classes, name="digits, first 898", classes=tuple("0123456789"), bins=(0, 16), holdout=0.0)
        config = resolve(TrainConfig, [Layer("recipe digits", recipe("digits"))], FAMILIES)
        if self.args.rows:
            network = MLPConfig(width=192, depth=3, dropout=0.1)
            config = replace(config, network=network, steps=4000, batch=128, checkpoint_every=1000, evaluate_every=4000)
        return train(replace(config, preview=0, threads=1, seed=0, out=str(self.folder / "run")), data=data, quiet=True).denoiser

    def keep(self, key: str, value: Any) -> Any:
        """Remember on disk, beside what another process may have added."""
        self.kept = {**(json.loads(self.path.read_text()) if self.path.is_file() else {}), key: value}
        replace_text(self.path, json.dumps(self.kept, indent=1) + "\n")
        return value

    def tuned(self, nfe: int) -> tuple[Sampler, Grid]:
        """The tuned sampler and grid, searched once; classes in turn."""
        key = f"tuned {nfe}"
        if key not in self.kept:
            cond = {"class": torch.arange(2 * self.args.starts) * 7 % 10}
            options: dict[str, Any] = {"n": self.args.starts, "budget": self.args.budget}
            found = tune(self.model, nfe, cond=cond, say=lambda line: print(f"  {line}", flush=True), **options)
            about = {"sampler": to_dict(found.sampler, named=True), "at": found.at, "error": found.error, "calls": found.calls}
            self.keep(key, about | {"defaults": dict(found.defaults)})
        entry = self.kept[key]
        return from_dict(Sampler, entry["sampler"], {Sampler: SAMPLERS}), Listed(at=tuple(entry["at"]))

    def method(self, name: str, nfe: int) -> tuple[Sampler, Grid | None]:
        """What a row of the table stands for."""
        if name == "auto":
            return self.tuned(nfe)
        return (AUTO.value, LogSNR()) if name == "auto-untuned" else (samplers()[name], None)

    def score(self, name: str, nfe: int, n: int) -> float:
        """The distance over that of the training half, drawn unless it is known; infinite where the sampler has no plan of so few calls."""
        key = f"{name} {nfe} {n} {'bf16' if self.args.bf16 else 'fp32'}"
        if key in self.kept:
            return math.inf if self.kept[key] is None else self.kept[key]
        if self.args.known:
            return math.inf
        began = time.perf_counter()
        try:
            drawn = self.drawn(name, nfe, n)
        except ConfigError as error:
            print(f"{name} at {nfe}: {str(error).splitlines()[0]}", flush=True)
            self.keep(key, None)
            return math.inf
        value = self.keep(key, frechet(drawn, self.other) / self.real)
        print(f"{name:<18} {nfe:>5} calls  {n} samples  {value:.4f}  {time.perf_counter() - began:.0f} s", flush=True)
        return value

    def drawn(self, name: str, nfe: int, n: int) -> NDArray[Any]:
        """n samples as rows of pixels 0..16, of those drawn before where there are as many: sample i does not depend on n."""
        ready = self.ready(n) if (name, nfe) == ("ancestral-large", 1000) else None
        if ready is not None:
            return ready
        path = self.folder / f"{name}_{nfe}_{'bf16' if self.args.bf16 else 'fp32'}.npy"
        before = np.load(path) if path.is_file() else np.zeros((0, 64), np.uint8)
        if len(before) < n:
            sampler, grid = self.method(name, nfe)
            first, count = len(before), n - len(before)
            cond = {"class": torch.from_numpy(self.labels[first:n])}
            steps = min(steps_for(sampler, nfe), self.model.process.schedule.T or nfe)
            options: dict[str, Any] = {"seed": 0, "first": first, "cond": cond, "batch": 1000, "autocast": self.autocast}
            new = sample(self.model, count, steps=steps, sampler=sampler, grid=grid, **options).numpy().reshape(count, -1)
            before = np.concatenate([before, new])
            np.save(path, before)
        return before[:n].astype(np.float64)

    def ready(self, n: int) -> NDArray[Any] | None:
        """Samples of 1000 ancestral steps from files 0.npy, 1.npy, ... of 1000, where there are enough."""
        files = [Path(self.args.ancestral) / f"{k}.npy" for k in range(-(-n // 1000))] if self.args.ancestral else []
        if not files or not all(file.is_file() for file in files):
            return None
        return np.concatenate([np.load(file) for file in files])[:n].reshape(n, -1).astype(np.float64)


def figure(table: dict[str, dict[int, float]], n: int, path: Path) -> None:
    """Distance by calls, both on logarithmic axes."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator

    drawing, axes = plt.subplots(figsize=(6.4, 4.2))
    for name, colour in SHOWN.items():
        points = sorted((nfe, value) for nfe, value in table.get(name, {}).items() if value < 30)
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name, markersize=4, linewidth=2.2 if name == "auto" else 1.2)
    axes.axhline(1.0, color="0.8", linestyle="--", zorder=0)
    axes.set(xscale="log", yscale="log", xlabel="network calls a sample", ylabel="Frechet distance over that of the training half")
    for axis, ticks in ((axes.xaxis, NFES), (axes.yaxis, (1, 1.2, 1.5, 2, 3, 5, 10, 20))):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_title(f"digits, {n:,} samples a point", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    drawing.savefig(path, dpi=150, bbox_inches="tight")
    print(path)


def main() -> int:
    """Draw what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default=None, help="a run trained on the first 898 digits; none: train the recipe in FOLDER/run")
    parser.add_argument("--rows", action="store_true", help="without --run: an MLP on rows of 64 pixels instead of the recipe's U-Net")
    parser.add_argument("--folder", default="runs/nfe", help="where scores are kept")
    parser.add_argument("--n", type=int, default=10_000, help="samples a point")
    parser.add_argument("--nfes", default=",".join(map(str, NFES)))
    parser.add_argument("--only", default=None, help="samplers, with commas; none: all")
    parser.add_argument("--ancestral", default=None, help="folder of ready samples of 1000 ancestral steps: 0.npy, 1.npy, ... of 1000")
    parser.add_argument("--starts", type=int, default=64, help="starts that auto is tuned on")
    parser.add_argument("--budget", type=int, default=300_000, help="calls that tuning may spend, for each number of calls")
    parser.add_argument("--bf16", action="store_true", help="run the network in bfloat16")
    parser.add_argument("--known", action="store_true", help="draw nothing: show the scores that are kept")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--figure", type=Path, default=None, help="write the curves, such as docs/nfe.png")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    study = Study(args)
    names = args.only.split(",") if args.only else ["auto", "auto-untuned", *samplers()]
    nfes = [int(nfe) for nfe in args.nfes.split(",")]
    table = {name: {nfe: study.score(name, nfe, args.n) for nfe in nfes if name != "auto" or nfe <= 100} for name in names}
    print(f"{'':<18}" + "".join(f"{nfe:>9}" for nfe in nfes))
    for name, row in table.items():
        print(f"{name:<18}" + "".join(f"{row[nfe]:9.3f}" if nfe in row and row[nfe] < 1e4 else f"{'-':>9}" for nfe in nfes))
    if args.figure:
        figure(table, args.n, args.figure)
    known = {f"{name} {nfe}": round(value, 4) for name, row in table.items() for nfe, value in row.items() if math.isfinite(value)}
    auto, ancestral = known.get("auto 10"), known.get("ancestral-large 1000")
    ratio = round(auto / ancestral, 4) if auto and ancestral else None
    print(json.dumps({"auto_10": auto, "ancestral_1000": ancestral, "ratio": ratio, "samples": args.n, "table": known}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
