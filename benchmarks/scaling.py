"""How cost grows: time and memory of a training step, and time of sampling, by batch, resolution, width and steps, with exponents.

    python benchmarks/scaling.py --threads 2 --figure docs/scaling.png          about 8 minutes of two quiet cores

Every point is a process of its own, since memory is the peak resident size of a process, less what it had before the first step. The base
is a U-Net of 64 channels at (1, 2, 2) without attention, 32x32 pictures of 3 channels, batch 16, in bfloat16 where the CPU multiplies it,
at every width. A line is fitted to the logarithms of the last three points of each row. Rows named "checkpointed" are with gradient
checkpointing, "attention" with one at half the size. The last line is JSON: the exponents.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BASE = {"batch": 16, "size": 32, "channels": 64, "steps": 0, "again": 0, "attention": 0}
LARGE = 10**9  # parameters for which `choose` takes bfloat16 and all cores: a precision that changed on the way would bend the lines
ROWS: dict[str, tuple[dict[str, int], str, tuple[int, ...]]] = {
    "batch": ({}, "batch", (4, 8, 16, 32, 64)),
    "batch, checkpointed": ({"again": 1}, "batch", (4, 8, 16, 32, 64)),
    "resolution": ({}, "size", (16, 32, 64, 128)),
    "resolution, checkpointed": ({"again": 1}, "size", (16, 32, 64, 128)),
    "resolution, attention": ({"attention": 1}, "size", (16, 32, 64)),
    "width": ({}, "channels", (32, 64, 96, 128, 192)),
    "sampling steps": ({}, "steps", (5, 10, 20, 40)),
}


def point(batch: int, size: int, channels: int, steps: int, again: int, attention: int, threads: int) -> dict[str, float]:
    """Seconds and MiB of a training step, or of sampling where there are steps."""
    import torch

    from ddpm.denoiser import Codec, Eps, Index, NetworkDenoiser
    from ddpm.networks import UNetConfig
    from ddpm.objective import Denoising, Draws
    from ddpm.process import Linear, Process
    from ddpm.sampling import sample
    from ddpm.training.machine import choose, executed

    torch.manual_seed(0)
    network = UNetConfig(channels=channels, mults=(1, 2, 2), blocks=1, attention=(1,) * attention, dropout=0.0).build((3, size, size))
    codec = Codec(shift=(0.0,) * 3, scale=(1.0,) * 3)
    denoiser = NetworkDenoiser(network, Process(Linear()), Eps(), Index(), codec, (3, size, size))
    machine = choose("cpu", "auto", threads or None, LARGE)
    optimizer, loss_of = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=True), Denoising().build()
    x0, u = torch.rand(batch, 3, size, size) * 2 - 1, torch.rand(batch, dtype=torch.float64)

    def train() -> None:
        with torch.autocast("cpu", machine.autocast or torch.bfloat16, enabled=machine.autocast is not None):
            loss = loss_of(denoiser, x0, None, Draws(u, torch.randn_like(x0), torch.randn_like(x0))).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def draw() -> None:
        sample(denoiser, batch, steps=steps, autocast=machine.autocast)

    before, action = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, draw if steps else train
    seconds: list[float] = []
    while len(seconds) < 4 or (len(seconds) < 9 and sum(seconds) < 4.0):
        began = time.perf_counter()
        with executed(network, "none", machine.device, checkpointing=bool(again)):
            action()
        seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": statistics.median(seconds[1:]), "mib": (peak - before) / 1024}


def exponent(values: tuple[int, ...], cost: list[float]) -> float:
    """The slope of log cost over log value, by the last three points."""
    import numpy as np

    return round(float(np.polyfit(np.log(values[-3:]), np.log(cost[-3:]), 1)[0]), 2)


def draw(found: dict[str, list[dict[str, float]]], path: Path) -> None:
    """A panel for each quantity that grows: time above, memory below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = ["batch", "resolution", "width", "sampling steps"]
    picture, panels = pyplot.subplots(2, len(names), figsize=(12.0, 5.6), layout="constrained")
    for column, name in enumerate(names):
        for which, (kind, unit) in enumerate((("seconds", "seconds"), ("mib", "MiB above the start"))):
            axes = panels[which, column]
            for label, colour in ((name, "C3"), (f"{name}, checkpointed", "C0"), (f"{name}, attention", "C1")):
                if label in found:
                    values, cost = ROWS[label][2], [one[kind] for one in found[label]]
                    told = f"{label}: {exponent(values, cost)}" if name != "sampling steps" or kind == "seconds" else label
                    axes.loglog(values, cost, "o-", color=colour, label=told)
            if name == "sampling steps" and kind == "mib":
                axes.set_yscale("linear")
                axes.set_ylim(0, None)
            axes.set_xticks(ROWS[name][2], [str(value) for value in ROWS[name][2]])
            axes.minorticks_off()
            axes.set_xlabel(name)
            axes.set_ylabel(unit if column == 0 else "")
            axes.legend(fontsize=7, title="exponent" if kind == "seconds" else None, title_fontsize=7)
    picture.savefig(path, dpi=110)
    pyplot.close(picture)


def main() -> int:
    """Measure every point, print, fit, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: as ddpm train takes)")
    parser.add_argument("--rows", default=";".join(ROWS), help="some of the rows, with semicolons")
    parser.add_argument("--figure", type=Path, default=None)
    parser.add_argument("--point", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        print(json.dumps(point(**json.loads(args.point), threads=args.threads)))
        return 0
    found: dict[str, list[dict[str, float]]] = {}
    result: dict[str, Any] = {}
    for name in args.rows.split(";"):
        fixed, what, values = ROWS[name]
        found[name] = []
        for value in values:
            asked = json.dumps({**BASE, **fixed, what: value})
            command = [sys.executable, __file__, "--threads", str(args.threads), "--point", asked]
            found[name].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))
            print(f"{name:26s} {value:5d}  {found[name][-1]['seconds']:8.3f} s  {found[name][-1]['mib']:8.0f} MiB", flush=True)
        kinds = ("seconds",) if what == "steps" else ("seconds", "mib")
        result[name] = {kind: exponent(values, [one[kind] for one in found[name]]) for kind in kinds}
    if args.figure:
        draw(found, args.figure)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
