"""Ho's 35.7 M network on an accelerator: images a second in training, image-steps a second in sampling, and TFLOP/s beside the card's own.

    python benchmarks/accelerator.py --batch 512                      on an NVIDIA device; --device cpu --batch 8 shows that it runs
    python benchmarks/accelerator.py --batch 512 --profile            also the twenty operations that take most of a step

Training is this package's whole step in bfloat16, eager and compiled; diffusers' UNet2DModel beside it, in the same precision, eager and
compiled, as its script and with one head. Contestants take turns; medians of --rounds rounds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from typing import Any

import torch
from ceiling import machine
from clock import Action, interleaved, ratio
from speed_unet import SHAPE, fused, ours_and_peers, sizes
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm.denoiser import NetworkDenoiser
from ddpm.objective import Denoising, Draws
from ddpm.sampling import DDIM, sample
from ddpm.training.machine import executed

WARM = 3


def our_step(denoiser: NetworkDenoiser, x0: Tensor) -> Action:
    """This package's whole step, its noise drawn on the device."""
    loss_of = Denoising().build()

    def loss(done: int) -> Tensor:
        eps = torch.randn_like(x0)
        with torch.autocast(x0.device.type, torch.bfloat16):
            return loss_of(denoiser, x0, None, Draws(torch.rand(len(x0), dtype=torch.float64), eps, eps)).mean()

    return fused(denoiser, loss)


def their_step(model: nn.Module, x0: Tensor) -> Action:
    """The same step around another network."""

    def loss(done: int) -> Tensor:
        noise, times = torch.randn_like(x0), torch.randint(0, 1000, (len(x0),), device=x0.device)
        with torch.autocast(x0.device.type, torch.bfloat16):
            predicted = model(0.7 * x0 + 0.7 * noise, times).sample
        return F.mse_loss(predicted.float(), noise)

    return fused(model, loss)


def synchronous(action: Action, device: torch.device, repeats: int) -> Action:
    """So many calls, then waiting for the device."""

    def run() -> None:
        for _ in range(repeats):
            action()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def main() -> int:
    """Measure and report."""
    with ExitStack() as stack:
        return measured(stack)


def measured(stack: ExitStack) -> int:
    """The contestants, each compiled as long as the stack lasts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5, help="steps in a round")
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--eager", action="store_true", help="leave the compiled contestants out")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_float32_matmul_precision("high")
    x0 = torch.rand(args.batch, *SHAPE, device=device) * 2 - 1
    actions: dict[str, Action] = {}
    denoisers: dict[str, NetworkDenoiser] = {}
    for mode in ("none",) if args.eager else ("none", "default"):
        denoiser, peers = ours_and_peers()
        denoisers[mode] = denoiser.to(device)
        stack.enter_context(executed(denoiser.network, mode, device))
        actions[f"ddpm, compile {mode}"] = our_step(denoiser, x0)
        for name in ("diffusers, its script (fp32)", "diffusers, best (bf16, one head)"):
            model = peers[name].module.to(device)
            if mode != "none":
                model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
                model.compile()
            actions[f"{name.replace('fp32', 'bf16')}, compile {mode}"] = their_step(model, x0)
    gflop = 3 * sizes(ours_and_peers()[0].network)
    for name, action in actions.items():
        began = time.perf_counter()
        synchronous(action, device, WARM)()
        print(f"first {WARM} steps of {name}: {time.perf_counter() - began:.1f} s", flush=True)
    seconds = interleaved({name: synchronous(action, device, args.repeats) for name, action in actions.items()}, args.rounds)
    result: dict[str, Any] = {"batch": args.batch, "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu"}
    for name, values in seconds.items():
        rate = args.batch * args.repeats / sorted(values)[len(values) // 2]
        print(f"{name:52s} {rate:10.1f} images/s  {rate * gflop / 1e3:8.2f} TFLOP/s")
        result[name] = round(rate, 1)
    best = min((name for name in seconds if name.startswith("ddpm")), key=lambda name: sum(seconds[name]))
    for name in seconds:
        if not name.startswith("ddpm"):
            result[f"{best} over {name}"] = ratio(seconds, name, best)
    for mode, denoiser in denoisers.items():
        draw = synchronous(
            lambda d=denoiser: sample(d, args.batch, steps=args.sampling_steps, sampler=DDIM(), batch=args.batch, autocast=torch.bfloat16),
            device, 1,
        )  # fmt: skip
        taken = interleaved({mode: draw}, max(2, args.rounds // 2))[mode]
        result[f"sampling, compile {mode}, image-steps/s"] = round(args.batch * args.sampling_steps / sorted(taken)[len(taken) // 2], 1)
    result["machine"] = machine("bf16", device=device)
    if args.profile:
        with torch.profiler.profile() as profiler:
            synchronous(actions[best], device, 2)()
        print(profiler.key_averages().table(sort_by=f"self_{device.type}_time_total", row_limit=20, max_name_column_width=60))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
