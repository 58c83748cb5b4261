"""How fast: this package, diffusers, denoising-diffusion-pytorch and azula in one run, in turns, beside what the machine can do.

    pip install diffusers denoising-diffusion-pytorch azula accelerate matplotlib
    python benchmarks/speed.py --threads 2 --others              everything; about 30 minutes of two quiet cores
    python benchmarks/speed.py --threads 2 --parts unet --batches 32

With --others also the large networks of denoising-diffusion-pytorch and azula, which are built otherwise.

Parts: unet (Ho's CIFAR-10 network: training steps, forward passes), digits (whole training runs, loaders and logging included), sampling
(64 digits at equal Frechet distance), quality (held-out loss of the fast ways beside plain operations in float32). Medians of --rounds
rounds after one of warm-up, ratios round by round. The last line is JSON; above 1: this package is faster. ceiling_fraction: the time that
the network's own convolutions and matrix products take alone, over ours.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import speed_digits
import speed_quality
import speed_unet
import torch
from ceiling import machine
from clock import Part


def draw(parts: list[Part], path: Path) -> None:
    """Images a second of every contestant, a panel for each comparison."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, panels = pyplot.subplots(len(parts), 1, figsize=(8.0, 1.9 * len(parts)), squeeze=False, layout="constrained")
    for part, axes in zip(parts, panels[:, 0], strict=True):
        names = sorted(part.seconds, key=part.rate)
        colours = ["C3" if name.startswith("ddpm") else "0.85" if name.startswith("ceiling") else "0.6" for name in names]
        bars = axes.barh(names, [part.rate(name) for name in names], color=colours)
        axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
        axes.set_title(f"{part.title}: images a second", fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    picture.savefig(path, dpi=110)
    pyplot.close(picture)


def measured(args: argparse.Namespace) -> Iterator[Part]:
    """The comparisons that were asked for, one after the other."""
    if "unet" in args.parts:
        yield speed_unet.sampling(1, max(args.rounds, 9), False)
        for batch in map(int, args.batches.split(",")):
            yield speed_unet.training(batch, args.rounds, args.others)
            yield speed_unet.sampling(batch, args.rounds, args.others)
    if "digits" in args.parts:
        yield speed_digits.training(args.steps, args.rounds)
    if "sampling" in args.parts:
        yield speed_digits.sampling(args.rounds, 900, 10, args.n)
    if "quality" in args.parts:
        yield speed_quality.quality()


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", default="8,32", help="of the large network; the JSON's figures are of the last one")
    parser.add_argument("--parts", default="unet,digits,sampling,quality")
    parser.add_argument("--others", action="store_true", help="also networks of like size that are built otherwise")
    parser.add_argument("--steps", type=int, default=300, help="of each run on the digits")
    parser.add_argument("--n", type=int, default=2000, help="samples whose Frechet distance is compared")
    parser.add_argument("--figure", type=Path, default=None)
    args = parser.parse_args()
    unknown = set(args.parts.split(",")) - {"unet", "digits", "sampling", "quality"}
    if unknown:
        parser.error(f"--parts: got {', '.join(sorted(unknown))}; there are unet, digits, sampling, quality")
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, machine in bf16: {machine('bf16')}, in fp32: {machine('fp32')}")
    parts: list[Part] = []
    result: dict[str, float] = {}
    for part in measured(args):
        part.print()
        parts.append(part)
        alone = "_batch_1" if part.title.endswith("forward, batch 1") else ""
        result |= {f"{name}{alone}": value for name, value in part.ratios.items()}
    if args.figure:
        draw([part for part in parts if not part.title.startswith(speed_quality.TITLE)], args.figure)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
