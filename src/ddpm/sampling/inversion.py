"""`invert()`: data carried along the probability flow to the noise that sampling would turn back into them."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from ddpm.denoiser import Cond, Denoiser, Model
from ddpm.denoiser.student import refusal
from ddpm.errors import ConfigError
from ddpm.process import At, Grid, default_grid
from ddpm.sampling.clip import Clip, clipped
from ddpm.sampling.sampler import instants
from ddpm.sampling.walk import check_range, check_request, device_of


def invert(
    denoiser: Denoiser,
    x: Tensor,
    *,
    steps: int = 50,
    grid: Grid | None = None,
    cond: Cond = None,
    clip: Clip = "auto",
    rounds: int = 3,
    autocast: torch.dtype | None = None,
) -> Tensor:
    """Data x (B, *D), in the space diffused in, to x at the grid's first instant: what `trajectory(start=...)` takes to come back.

    The flow dy/du = eps - x0 (`Process.straightened`) is followed by Heun's method, second order, through the grid's instants from the
    cleanest to the noisiest. The model is never called at sigma = 0: a sampler ends by returning its prediction, so the step from the
    data to the cleanest instant solves x0_hat(x) = data by `rounds` fixed-point iterations. `rounds` + 2 (steps - 1) network calls.

    Raises ConfigError for a model that predicts no mean, for a condition that does not have B rows, and for a grid outside the trained
    range.

    Reference: Song et al., 2021, arXiv:2011.13456, section 4.3 (encoding by the probability flow); Heun: Karras et al., 2022,
    arXiv:2206.00364, algorithm 1; the implicit step: Pan et al., 2023, arXiv:2309.04907 (fixed-point iteration, there for DDIM).
    """
    if denoiser.meaning != "mean":
        raise ConfigError(f"invert: {refusal(denoiser.meaning)}")
    if rounds < 1:
        raise ConfigError(f"rounds: got {rounds}, must be at least 1")
    check_request(denoiser, len(x), cond, len(x), x)
    at = instants(denoiser.process, (grid or default_grid(denoiser.process, steps)).times(denoiser.process, steps))
    check_range(denoiser, at.log_snr[:-1])
    scale, u = denoiser.process.straightened(at)
    x = x.to(device_of(denoiser))
    model = clipped(denoiser.bind(cond), denoiser.codec, clip, x)
    training = denoiser.training
    denoiser.eval()
    try:
        lower = torch.autocast(x.device.type, autocast, enabled=autocast is not None)
        with nullcontext() if denoiser.needs_grad else torch.no_grad(), lower:
            y = x
            for _ in range(rounds):
                y = x + float(u[-2]) * _slope(model, y, at, scale, len(u) - 2)
            for k in range(len(u) - 2, 0, -1):
                step = float(u[k - 1] - u[k])
                here = _slope(model, y, at, scale, k)
                there = _slope(model, y + step * here, at, scale, k - 1)
                y = y + 0.5 * step * (here + there)
    finally:
        denoiser.train(training)
    return float(scale[0]) * y


def _slope(model: Model, y: Tensor, at: At, scale: Tensor, k: int) -> Tensor:
    """dy/du at the k-th instant."""
    prediction = model(float(scale[k]) * y, At(*(level[k] for level in at)).like(y))
    return prediction.eps - prediction.x0
