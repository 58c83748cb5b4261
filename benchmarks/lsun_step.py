"""One training step and one sample of LSUN's 256x256 network, 113,673,219 parameters: how long, and how much memory.

    python benchmarks/lsun_step.py --batch 1 --steps 10

The recipe `lsun-ho` with random pictures. The last line is JSON. Memory is the process's highest resident set.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from typing import Any

import torch

from ddpm.config import Layer, resolve
from ddpm.denoiser import Codec, Eps, Index, NetworkDenoiser
from ddpm.objective import Denoising, Draws
from ddpm.process import Linear, Process
from ddpm.sampling import sample
from ddpm.training import FAMILIES, TrainConfig
from ddpm.training.averaging.ema import PowerEMA
from ddpm.training.machine import choose, executed
from ddpm.training.recipes import recipe

SHAPE = (3, 256, 256)


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10, help="network calls of the sample")
    parser.add_argument("--checkpointing", action="store_true", help="compute blocks twice instead of keeping what is inside them")
    args = parser.parse_args()
    config: TrainConfig = resolve(TrainConfig, [Layer("recipe lsun-ho", recipe("lsun-ho"))], FAMILIES)
    assert config.network is not None
    network: Any = config.network.build(SHAPE)
    count = sum(p.numel() for p in network.parameters())
    machine = choose("auto", "auto", None, count)
    codec = Codec(shift=(127.5,) * 3, scale=(127.5,) * 3, dtype="uint8", bins=(0.0, 255.0))
    denoiser = NetworkDenoiser(network, Process(Linear()), Eps(), Index(), codec, SHAPE).to(machine.device).train()
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=config.optimizer.lr, fused=True)
    average, loss = PowerEMA(denoiser, 0.05), Denoising().build()
    x0 = torch.rand(args.batch, *SHAPE, device=machine.device) * 2 - 1
    found: dict[str, Any] = {"parameters": count, "precision": machine.precision, "batch": args.batch, "calls": args.steps}
    with executed(network, "none", machine.device, checkpointing=args.checkpointing):
        for done in range(2):  # the first one sets up what a run sets up once
            began = time.perf_counter()
            eps = torch.randn_like(x0)
            with torch.autocast(machine.device.type, machine.autocast, enabled=machine.autocast is not None):
                value = loss(denoiser, x0, None, Draws(torch.rand(len(x0), dtype=torch.float64), eps, eps)).mean()
            value.backward()
            torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            average.update(denoiser, done + 1)
            found["train_step_seconds"] = round(time.perf_counter() - began, 2)
        found["train_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
        began = time.perf_counter()
        drawn = sample(denoiser.eval(), 1, steps=args.steps, autocast=machine.autocast)
        found["sample_seconds"] = round(time.perf_counter() - began, 2)
    assert tuple(drawn.shape) == (1, *SHAPE) and float(value.detach()) > 0
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
