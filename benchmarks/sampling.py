"""Sampling speed beside diffusers on the CPU: one step of DDIM (network and update) with Ho's CIFAR-10 network.

    python benchmarks/sampling.py --threads 2

The last line is JSON: how many times faster than diffusers as its training script runs the network, than diffusers at its best,
and what share of our step the network's own convolutions and matrix products take when run alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from unet_speed import SHAPE, Action, Peers, bare_products, contestants, diffusers, interleaved, lowered, options, report

from ddpm.denoiser import NetworkDenoiser
from ddpm.process import default_grid
from ddpm.sampling import DDIM

STEPS, PLACE = 50, 20  # a step in the middle of a plan of 50


def our_step(denoiser: NetworkDenoiser, x: Tensor, precision: str) -> Action:
    """One step of this package's sampler."""
    sampler, model = DDIM(), denoiser.eval().bind()
    row = sampler.plan(model, default_grid(denoiser.process, STEPS).times(denoiser.process, STEPS)).rows(x)[PLACE]

    def step() -> None:
        with torch.inference_mode(), lowered(precision):
            sampler.step(model, x, row, (), None)

    return step


def their_step(network: nn.Module, x: Tensor, precision: str) -> Action:
    """One step as diffusers' pipelines take it."""
    peer: Any = diffusers()
    scheduler = peer.DDIMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    scheduler.set_timesteps(STEPS)
    time = scheduler.timesteps[PLACE]
    network.eval()

    def step() -> None:
        with torch.inference_mode(), lowered(precision):
            scheduler.step(network(x, time).sample.float(), time, x)

    return step


def main() -> None:
    """Measure and report."""
    chosen = options("sampling speed beside diffusers")
    peers: Peers = contestants(chosen.dropout)
    x = torch.randn(chosen.batch, *SHAPE)
    seconds = interleaved(
        {
            "ours": our_step(peers.ours, x, chosen.precision),
            "diffusers, best": their_step(peers.best, x, chosen.precision),
            "diffusers, script": their_step(peers.script, x, "fp32"),
            "ceiling": bare_products(peers.ours.network.eval(), chosen.batch, chosen.precision, backward=False),
        },
        chosen.rounds,
    )
    report(
        seconds,
        chosen.batch,
        {
            "forward_vs_script": ("diffusers, script", "ours"),
            "forward_vs_best": ("diffusers, best", "ours"),
            "ceiling_fraction": ("ceiling", "ours"),
        },
    )


if __name__ == "__main__":
    main()
