"""Does speed cost quality? Runs of the digits recipe with the fast ways in both precisions, and with plain operations in float32.

The network's plain operations, that is: optimizer and weight average are the same in all. Times are of runs one after the other, not in
turns, and no measure. With three seeds a difference of 4.3 standard errors would be significant at 5 %.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter

from clock import Part
from speed_digits import Precision

from ddpm.config import Layer, resolve
from ddpm.denoiser import NetworkDenoiser
from ddpm.networks.blocks import Part as NetworkPart
from ddpm.training import FAMILIES, TrainConfig, train
from ddpm.training.logbook import read_metrics
from ddpm.training.recipes import recipe

SEEDS = (0, 1, 2)
TITLE = "digits recipe, whole runs: held-out loss"


def loss(precision: Precision, seed: int, plain: bool) -> float:
    """Held-out loss, at its end, of a run of the digits recipe; plain: every part of the network by the textbook."""
    config = resolve(TrainConfig, [Layer("recipe digits", recipe("digits"))], FAMILIES)
    config = replace(config, precision=precision, seed=seed, preview=0, evaluate_every=config.steps)
    NetworkPart.plain = plain  # of all parts, those of networks not yet made among them
    try:
        with tempfile.TemporaryDirectory() as scratch:
            done = train(replace(config, out=str(Path(scratch) / "run")), quiet=True)
            assert isinstance(done.denoiser, NetworkDenoiser)
            return next(row["held_out_loss"] for row in reversed(read_metrics(done.run)) if "held_out_loss" in row)
    finally:
        NetworkPart.plain = False


def quality() -> Part:
    """Three seeds of each; the JSON has the mean difference from the reference, and its standard error."""
    ways: dict[str, tuple[Precision, bool]] = {
        "reference (fp32)": ("fp32", True),
        "ddpm (fp32)": ("fp32", False),
        "ddpm (bf16)": ("bf16", False),
    }
    losses: dict[str, list[float]] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for seed in SEEDS:
        for name, way in ways.items():
            began = perf_counter()
            losses[name].append(loss(way[0], seed, way[1]))
            seconds[name].append(perf_counter() - began)
    reference = losses["reference (fp32)"]
    notes = {
        name: f"held-out loss {mean(found):.5f}, of each seed {', '.join(f'{one:.5f}' for one in found)}" for name, found in losses.items()
    }
    ratios: dict[str, float] = {"quality_seeds_std": round(stdev(reference), 6)}
    for name in ("fp32", "bf16"):
        apart = [fast - slow for fast, slow in zip(losses[f"ddpm ({name})"], reference, strict=True)]
        ratios[f"quality_{name}_difference"] = round(mean(apart), 6)
        ratios[f"quality_{name}_error"] = round(stdev(apart) / len(apart) ** 0.5, 6)
    return Part(TITLE, seconds, 900 * 64, notes, ratios)
