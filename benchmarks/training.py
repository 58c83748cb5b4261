"""Training speed beside diffusers on the CPU, with Ho's CIFAR-10 network: noise, forward, backward, clipping, AdamW, weight average.

    python benchmarks/training.py --threads 2

The last line is JSON: how many times faster than diffusers' training script, than diffusers at its best, and what share of our step
the network's own convolutions and matrix products take when run alone (forward and backward).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from unet_speed import SHAPE, Action, Peers, bare_products, contestants, diffusers, interleaved, lowered, options, report

from ddpm.denoiser import NetworkDenoiser
from ddpm.objective import Denoising, Draws
from ddpm.random import generator
from ddpm.training.averaging.ema import PowerEMA

CLIP = 1.0


def our_step(denoiser: NetworkDenoiser, x0: Tensor, precision: str) -> Action:
    """A step of this package: its loss, fused AdamW, its weight average."""
    loss_of, ema = Denoising().build(), PowerEMA(denoiser, 0.05)
    parameters = list(denoiser.train().parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    done = 0

    def step() -> None:
        nonlocal done
        stream = generator(0, "noise", 0, done)
        eps = torch.from_numpy(stream.standard_normal(x0.shape, dtype="float32"))
        draws = Draws(torch.from_numpy(stream.random(len(x0))), eps, eps)
        with lowered(precision):
            loss = loss_of(denoiser, x0, None, draws).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done += 1
        ema.update(denoiser, done)

    return step


def their_step(network: nn.Module, x0: Tensor, precision: str, *, tuned: bool) -> Action:
    """A step as diffusers' unconditional training script takes it; `tuned` gives it the fused optimizer and the batched average too."""
    peer: Any = diffusers()
    scheduler = peer.DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    average = peer.training_utils.EMAModel(
        network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75, foreach=tuned
    )
    parameters = list(network.train().parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8, fused=tuned)

    def step() -> None:
        noise = torch.randn_like(x0)
        times = torch.randint(0, 1000, (len(x0),))
        noisy = scheduler.add_noise(x0, noise, times)
        with lowered(precision):
            predicted = network(noisy, times).sample
        F.mse_loss(predicted.float(), noise).backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.step(parameters)

    return step


def main() -> None:
    """Measure and report."""
    chosen = options("training speed beside diffusers")
    peers: Peers = contestants(chosen.dropout)
    x0 = torch.rand(chosen.batch, *SHAPE) * 2 - 1
    seconds = interleaved(
        {
            "ours": our_step(peers.ours, x0, chosen.precision),
            "diffusers, best": their_step(peers.best, x0, chosen.precision, tuned=True),
            "diffusers, script": their_step(peers.script, x0, "fp32", tuned=False),
            "ceiling": bare_products(peers.ours.network, chosen.batch, chosen.precision, backward=True),
        },
        chosen.rounds,
    )
    report(
        seconds,
        chosen.batch,
        {
            "train_vs_script": ("diffusers, script", "ours"),
            "train_vs_best": ("diffusers, best", "ours"),
            "ceiling_fraction": ("ceiling", "ours"),
        },
    )


if __name__ == "__main__":
    main()
