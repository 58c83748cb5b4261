"""A rehearsal: a few steps of the very run that is planned, in a folder of its own, to see what they cost."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ddpm.data.dataset import Dataset
from ddpm.denoiser import Card
from ddpm.training.build import build_denoiser, cond_spec
from ddpm.training.config import TrainConfig
from ddpm.training.machine import Machine, executed
from ddpm.training.memory import peak_memory, restart_peak
from ddpm.training.run import train

FEWEST = 8  # samples a step of the first try
NEVER = 10**9


class Cost(NamedTuple):
    """What a run of few steps took. Seconds: to set up, a step, an evaluation, a save with its preview, and what follows. Bytes: the most
    memory, a checkpoint, each of its files, a line of the log (TensorBoard's with it), a preview, and the small files.
    """

    setup: float
    step: float
    evaluation: float
    save: float
    finish: float
    memory: int
    checkpoint: int
    files: dict[str, int]
    line: float
    preview: int
    rest: int


class _Watch:
    """A tracker that notes when things happened."""

    def __init__(self) -> None:
        self.began = self.closed = 0.0
        self.losses: list[tuple[int, float]] = []
        self.evaluated = 0.0

    def start(self, config: Mapping[str, Any], run: Path, step: int) -> None:
        self.began = time.perf_counter()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        now = time.perf_counter()
        if "loss" in values:
            self.losses.append((step, now))
        self.evaluated = now

    def picture(self, step: int, path: Path) -> None:
        pass

    def close(self) -> None:
        self.closed = time.perf_counter()

    @property
    def step_seconds(self) -> float:
        """The median over the stretches between two lines; the first steps, which warm up, are left out."""
        pairs = list(zip(self.losses, self.losses[1:], strict=False))
        return statistics.median((late[1] - early[1]) / (late[0] - early[0]) for early, late in pairs)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size


def rehearse(config: TrainConfig, dataset: Dataset, steps: int, *, every: int = 1) -> Cost:
    """Run `steps` steps of the settings as they are, with one evaluation, one checkpoint and one preview at the end."""
    local = tuple(name for name in config.track if name != "wandb") or ("none",)
    with tempfile.TemporaryDirectory(prefix="ddpm-plan-") as folder:
        run, watch = Path(folder) / "run", _Watch()
        trial = replace(
            config,
            out=str(run),
            steps=steps,
            log_every=every,
            evaluate_every=NEVER,
            checkpoint_every=NEVER,
            track=local,
            init=None,
            snapshots=0,
        )
        restart_peak(config.device)
        before = time.perf_counter()
        train(trial, data=dataset, quiet=True, trackers=[watch])
        after = time.perf_counter()
        (saved,) = run.glob("step-*")
        pictures = size_of(run / "samples") if (run / "samples").is_dir() else 0
        log = size_of(run / "metrics.jsonl") + (size_of(run / "tensorboard") - pictures if (run / "tensorboard").is_dir() else 0)
        files = {file.stem: size_of(file) for file in saved.glob("*.safetensors")}
        small = sum(size_of(path) for path in run.iterdir() if path.is_file() and path.name != "metrics.jsonl")
        return Cost(
            setup=watch.began - before,
            step=watch.step_seconds,
            evaluation=watch.evaluated - watch.losses[-1][1],
            save=watch.closed - watch.evaluated,
            finish=after - watch.closed,
            memory=peak_memory(config.device),
            checkpoint=size_of(saved),
            files=files,
            line=log / (len(watch.losses) + 1),
            preview=pictures,
            rest=small,
        )


def parameters_of(config: TrainConfig, card: Card) -> int:
    """Of the denoiser, counted without making it."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_denoiser(config, card).parameters())


def activations_of(config: TrainConfig, card: Card, machine: Machine) -> int:
    """Bytes one sample leaves for the backward pass: every tensor that autograd keeps of one forward pass, parameters not counted."""
    assert config.network is not None  # `measured` chose it
    spec = cond_spec(card, config)
    network = config.network.build(card.shape, 2 if config.loss.learned_variance else 1, spec).to(machine.device).train()
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    held: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    x = torch.zeros(1, *card.shape, device=machine.device)
    cond = {
        "class": torch.zeros(1, dtype=torch.int64),
        "vector": torch.zeros(1, spec.vector),
        "image": torch.zeros(1, spec.image, *card.shape[1:]),
        "tokens": torch.ones(1, card.tokens.length if card.tokens else 0, spec.tokens),
    }
    given = {key: cond[key].to(machine.device) for key in spec.keys} or None
    with (
        executed(network, "none", machine.device, checkpointing=config.gradient_checkpointing),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast(machine.device.type, machine.autocast, enabled=machine.autocast is not None),
    ):
        network(x, torch.zeros(1, device=machine.device), given)
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


class Rehearsed(NamedTuple):
    """The cost of the planned run, and in words how it was found."""

    cost: Cost
    how: str


def rehearsed(config: TrainConfig, dataset: Dataset, per_sample: int, seconds: float) -> Rehearsed:
    """The cost at config's batch: measured where that takes about `seconds`, else extrapolated in a straight line from smaller batches.

    per_sample: bytes of activations, for memory where only one batch size could be tried.
    """
    few = min(config.batch, FEWEST)
    first = rehearse(replace(config, batch=few, preview=0), dataset, 3)
    whole = first.step * config.batch / few  # at most: part of a step does not grow with the batch
    if 6 * whole <= seconds:
        count = max(6, min(400, int(0.6 * seconds / whole)))
        drawing = config.preview > 0 and 50 * first.step * max(1.0, config.preview / few) / 3 <= 2 * seconds
        every = max(1, count // 8)
        cost = rehearse(replace(config, preview=config.preview if drawing else 0), dataset, count // every * every, every=every)
        how = f"{count // every * every} steps of the planned run"
        return Rehearsed(cost if drawing else _with_preview(cost, first, config), how)
    size = max(few, 2 ** int(math.log2(max(1.0, few * seconds / (6 * first.step)))))
    second = rehearse(replace(config, batch=size, preview=0), dataset, 4) if size > few else first
    more = (config.batch - size) / max(1, size - few)
    slope = max(0.0, second.step - first.step) * more if size > few else second.step * (config.batch / few - 1.0)
    growth = (second.memory - first.memory) * more if size > few else per_sample * (config.batch - few)
    cost = second._replace(step=second.step + slope, memory=second.memory + int(max(0.0, growth)))
    tried = f"{few} and {size}" if size > few else f"{few}"
    return Rehearsed(_with_preview(cost, first, config), f"steps of {tried} samples, extrapolated to {config.batch}")


def _with_preview(cost: Cost, first: Cost, config: TrainConfig) -> Cost:
    """With the time of a preview of 50 forward passes, a third of a training step each; its bytes are those of few pictures."""
    passes = 50 * max(first.step, cost.step * config.preview / config.batch) / 3 if config.preview else 0.0
    return cost._replace(save=first.save + passes)
