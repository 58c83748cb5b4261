"""A student's jumps: where one from an instant ends, and what its prediction makes of it there."""

from __future__ import annotations

import torch
from torch import Tensor

from ddpm.denoiser import Prediction
from ddpm.process import At, Process


def knots(process: Process, times: tuple[float, ...]) -> At:
    """The instants of `times` followed by `clean`, float64 (len(times) + 1,)."""
    at = process.at(torch.tensor(times, dtype=torch.float64))
    return At(*(torch.cat([level, end[None]]) for level, end in zip(at, process.clean, strict=True)))


def segment_end(process: Process, times: tuple[float, ...], time: Tensor) -> At:
    """The greatest of times[1:], which fall, below each time (B,); `clean` below them all, so that without times it is everyone's end."""
    inner = torch.tensor(times[1:], dtype=torch.float64)
    return knots(process, times[1:]).take((inner >= time.cpu()[:, None]).sum(1))


def jump(process: Process, said: Prediction, at: At, end: At) -> Tensor:
    """The deterministic step to `end`, alpha_e x0_hat + sigma_e eps_hat: x0_hat itself where that is `clean`."""
    c_x0, c_eps, _ = process.implicit(end, at)
    return c_x0 * said.x0 + c_eps * said.eps
