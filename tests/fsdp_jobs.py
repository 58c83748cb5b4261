"""What the processes of tests/test_fsdp.py do: `torchrun fsdp_jobs.py FOLDER JOB JOB ...`, every rank every job, one after the other."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ddpm import sample
from ddpm.data import Dataset, from_arrays
from ddpm.errors import DDPMError
from ddpm.networks.config import MLPConfig
from ddpm.objective import Denoising, LearnedSchedule
from ddpm.training import TrainConfig
from ddpm.training.feed import Batch, Feed
from ddpm.training.run import Finished
from small_runs import SMALL_UNET, quietly, settings, table

LAW: dict[str, Any] = {"steps": 50, "evaluate_every": 50}
DOUBLE, SINGLE = LAW | {"grad_clip": 1000.0}, LAW | {"grad_clip": 0.58, "accumulate": 1}  # each is at work in about half the steps
VARIANTS: dict[str, dict[str, Any]] = {
    "muon": {"kind": "muon"},
    "schedule-free": {"kind": "schedule-free"},
    "uncertainty": {"loss": Denoising(uncertainty=True)},
    "learned": {"loss": LearnedSchedule(), "ema": (0.05, 0.1)},
    "pictures": {"network": SMALL_UNET},
}
COND = {"class": torch.tensor([0, 1])}


class Precise(nn.Module):
    """A network that computes in float64 whatever it is given, of blocks that can be sharded one by one, with a single number besides."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first = nn.Linear(4, width, dtype=torch.float64)
        self.blocks = nn.ModuleList(nn.Linear(width, width, dtype=torch.float64) for _ in range(3))
        self.last = nn.Linear(width, 3, dtype=torch.float64)
        self.gain = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor] | None) -> Tensor:
        """x (B, 3) -> (B, 3)."""
        h = self.first(torch.cat([x, c_noise[:, None] / 4.0], 1).double())
        for block in self.blocks:
            h = h + block(torch.nn.functional.silu(h))
        return self.gain * self.last(h)


def config(out: Path, **changes: Any) -> TrainConfig:
    """Settings of a run in two logical shards; settings of the optimizer may be given flat."""
    base = settings(out, batch=6, accumulate=2, logical_shards=2, network=MLPConfig(width=16, depth=2), timeout=60.0)
    own = {key: changes.pop(key) for key in ("kind", "grad_clip") if key in changes}
    return replace(base, **changes, optimizer=replace(base.optimizer, **own))


def data_of(changes: dict[str, Any]) -> Dataset:
    """One-channel pictures, whose last layer has a single row, for the UNet; a table for the others. Both with classes."""
    if changes.get("network") is not SMALL_UNET:
        return table(holdout=0.2, classes=3)
    samples = np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8)).astype(np.uint8)
    return from_arrays(
        samples, {"class": np.arange(30) % 3, "vector": samples[:, 0, 0, :2].astype(np.float32)}, name="pictures", holdout=0.2
    )


def go(out: Path, own: nn.Module | None = None, /, **changes: Any) -> Finished:
    """One run, on however many processes this is; own: a network instead of a named one."""
    return quietly(config(out, **changes), data=data_of(changes), network=own)


def law(folder: Path) -> dict[str, Any]:
    """The 50 steps, in both precisions."""
    go(folder / "double", Precise(), parallel="fsdp", **DOUBLE)
    go(folder / "single", parallel="fsdp", **SINGLE)
    return {}


def variants(folder: Path) -> dict[str, Any]:
    """Four steps of everything that treats parameters in its own way; what `train` returns of the first."""
    made = {}
    for name, changes in VARIANTS.items():
        parts = name in ("pictures", "learned")
        done = go(
            folder / name,
            parallel="fsdp",
            steps=4,
            sharded_save=parts,
            preview=2 * (name == "pictures"),
            **changes,
        )
        made[name] = done.denoiser
        assert any(hasattr(parameter, "full_tensor") for parameter in done.denoiser.parameters()) == parts
    if dist.get_rank() == 0:  # alone: a whole model asks nobody
        return {"drawn": sample(made["muon"], 2, steps=3, seed=1, cond=COND).flatten().tolist()}
    return {}


def moves(folder: Path) -> dict[str, Any]:
    """Four times two steps more, from whatever form the run was saved in."""
    go(folder / "moves", parallel="fsdp", sharded_save=True, steps=4, snapshots=2)
    go(folder / "moves", steps=6, snapshots=2)
    go(folder / "moves", parallel="fsdp", steps=8, snapshots=2)
    go(folder / "moves", parallel="fsdp", sharded_save=True, steps=10, snapshots=2)
    return {}


def never_whole(folder: Path) -> dict[str, Any]:
    """Saves and loads in parts with the means to put anything together taken away."""
    from torch.distributed.tensor import DTensor

    from ddpm.training.state import RunState

    calls: list[str] = []
    methods: dict[str, Callable[..., Any]] = {name: getattr(RunState, name) for name in ("save", "load")}

    def watched(name: str) -> Callable[..., Any]:
        def inside(*words: Any, **more: Any) -> Any:
            full, DTensor.full_tensor = DTensor.full_tensor, None  # type: ignore[assignment]
            try:
                return methods[name](*words, **more)
            finally:
                DTensor.full_tensor = full
                calls.append(name)

        return inside

    for name in methods:
        setattr(RunState, name, watched(name))
    try:
        go(folder / "parts", parallel="fsdp", sharded_save=True, steps=2)
        go(folder / "parts", parallel="fsdp", sharded_save=True, steps=4)
    finally:
        for name, method in methods.items():
            setattr(RunState, name, method)
    return {"calls": calls}


def skipped(folder: Path) -> dict[str, Any]:
    """A NaN in what rank 1 is fed in the third step."""
    feed = Feed.drawn

    def batch(source: Feed, now: int, part: int, shard: int = 0) -> Batch:
        made = feed(source, now, part, shard)
        if now == 2 and shard == 1:
            made.x0[0] = float("nan")
        return made

    Feed.drawn = batch  # type: ignore[method-assign]
    go(folder / "skipped", parallel="fsdp", steps=5)
    Feed.drawn = feed  # type: ignore[method-assign]
    return {}


def full_disk(folder: Path) -> dict[str, Any]:
    """The disk of rank 1 is full at the second save."""
    from torch.distributed.checkpoint.filesystem import FileSystem

    go(folder / "full", parallel="fsdp", sharded_save=True, steps=2)
    stream = FileSystem.create_stream

    def refuse(*words: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if dist.get_rank() == 1:
        FileSystem.create_stream = refuse  # type: ignore[method-assign]
    try:
        go(folder / "full", parallel="fsdp", sharded_save=True, steps=4)
    except DDPMError as error:
        return {"error": str(error), "code": error.exit_code}
    finally:
        FileSystem.create_stream = stream  # type: ignore[method-assign]
    return {}


def spread(folder: Path) -> dict[str, Any]:
    """Three steps more, on as many processes as there are."""
    done = max((int(path.name[5:]) for path in (folder / "spread").glob("step-*")), default=0)
    go(folder / "spread", parallel="fsdp", sharded_save=True, steps=done + 3, logical_shards=4, batch=8)
    return {}


def main() -> None:
    """Do the jobs; each rank leaves what they returned."""
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    dist.init_process_group("gloo")
    for name in sys.argv[2:]:
        found = globals()[name](folder)
        (folder / f"{name}-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # torch's threads now and then abort an interpreter that ends


if __name__ == "__main__":
    main()
