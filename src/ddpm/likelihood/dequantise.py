"""Filling the bins of discrete data: log P(x) >= E_q[log p(z) - log q(z | x)], z in the bin of x, for any density q on the bin.

Reference: Theis, van den Oord, Bethge, 2016, arXiv:1511.01844, section 3.1 (uniform); Ho et al., 2019, arXiv:1902.00275,
section 3.1 (variational).
"""

# torch leaves the functions of torch.special and torch.linalg and Tensor.tolist untyped; their results are annotated here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ddpm.denoiser import Codec, Cond, Denoiser
from ddpm.denoiser.serving import evaluating
from ddpm.errors import ConfigError
from ddpm.likelihood.bound import continuous_draw
from ddpm.random import generator, torch_seed

SHARPEST = 6.0  # largest |log| of a shape parameter of the fitted density
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def bin_of(codec: Codec | None, x0: Tensor) -> Tensor | None:
    """Width of one level in the space diffused in, to broadcast over x0 (B, *D); None for continuous data."""
    return None if codec is None else codec.bin_width(x0)


class Filler(ABC):
    """A density q on the bin of each entry: x0 -> z = x0 + width (v - 1/2), v in (0, 1)."""

    @abstractmethod
    def place(self, x0: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """v (B, *D) and log q(v | x0) (B,) from uniforms w (B, *D)."""

    def fill(self, x0: Tensor, width: Tensor | None, seed: int, first: int, draw: int) -> tuple[Tensor, Tensor]:
        """z (B, *D) and log q(z | x0) in nats, (B,); sample i's draw is a function of (seed, first + i, draw)."""
        assert width is not None  # asked for discrete data only
        rows = [generator(seed, "start", first + i, draw).random(tuple(x0.shape[1:])) for i in range(len(x0))]
        v, log_q = self.place(x0, torch.stack([torch.from_numpy(row) for row in rows]).to(x0))
        return x0 + width * (v - 0.5), log_q - width.log().expand_as(x0).reshape(len(x0), -1).sum(1)


class Uniform(Filler):
    """q = 1 on the bin."""

    def place(self, x0: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """w itself, with log q = 0."""
        return w, w.new_zeros(len(w))


class Variational(nn.Module, Filler):
    """A density on each entry's bin whose two shape parameters are read off the whole sample by a small network; it starts uniform.

    Kumaraswamy's q(v) = a b v^(a-1) (1 - v^a)^(b-1), v = (1 - (1 - w)^(1/b))^(1/a) with w uniform; a = b = 1 is uniform. Any q keeps the
    bound, so it may be fitted on the very samples that are scored. The entries are independent given x0, where the paper has a flow.
    """

    def __init__(self, shape: tuple[int, ...], hidden: int = 64, seed: int = 0) -> None:
        super().__init__()
        mine = torch.random.get_rng_state()
        torch.manual_seed(torch_seed(seed, "network"))
        if not 1 <= len(shape) <= 4:
            raise ConfigError(f"dequantise: variational takes samples of 1 to 4 axes, got {shape}; use uniform or noise")
        channels, axes = shape[0], len(shape) - 1
        if axes == 0:
            layers: list[nn.Module] = [nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()]
            last: nn.Module = nn.Linear(hidden, 2 * channels)
        else:
            conv = CONVOLUTIONS[axes - 1]
            layers = [conv(channels, hidden, 3, padding=1), nn.SiLU(), conv(hidden, hidden, 3, padding=1), nn.SiLU()]
            last = conv(hidden, 2 * channels, 3, padding=1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.network = nn.Sequential(*layers, last)
        torch.random.set_rng_state(mine)  # the caller's generator is left as it was

    def place(self, x0: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """v and log q(v | x0), differentiable in the network's weights."""
        own = next(self.network.parameters()).dtype
        shapes = self.network(x0.to(own)).to(w.dtype)
        log_a, log_b = (SHARPEST * torch.tanh(shapes / SHARPEST)).chunk(2, dim=1)
        smallest = torch.finfo(w.dtype).eps
        rest = torch.log1p(-w.clamp(smallest, 1.0 - smallest)) / log_b.exp()  # log(1 - v^a)
        log_v = torch.log(-torch.expm1(rest)) / log_a.exp()
        log_q = log_a + log_b + (log_a.exp() - 1.0) * log_v + (log_b.exp() - 1.0) * rest
        return log_v.exp(), log_q.reshape(len(w), -1).sum(1)


def fit(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Cond = None,
    *,
    steps: int = 200,
    batch: int = 32,
    lr: float = 1e-2,
    hidden: int = 64,
    seed: int = 0,
) -> Variational:
    """A `Variational` for these encoded samples x0 (N, *D), fitted by Adam: it minimises log q plus the continuous bound of the density of
    the filled samples.

    Raises ConfigError for data without bins. Deterministic in the seed. The denoiser is not changed.
    """
    width = bin_of(denoiser.codec, x0)
    if width is None:
        raise ConfigError("dequantise: variational fills the bins of discrete levels; these data are continuous")
    filler = Variational(tuple(x0.shape[1:]), hidden, seed).to(x0.device)
    weights = list(filler.parameters())
    optimizer = torch.optim.Adam(weights, lr)
    entries, size = x0[0].numel(), min(batch, len(x0))
    with evaluating(denoiser):
        for step in range(steps):
            draw = generator(seed, "order", step)
            rows = torch.from_numpy(draw.choice(len(x0), size, replace=False)).to(x0.device)
            some = {key: value[rows] for key, value in cond.items()} if cond else None
            eps, eps_first = (torch.from_numpy(draw.standard_normal((size, *x0.shape[1:]))).to(x0) for _ in range(2))
            place = torch.from_numpy((draw.permutation(size) + draw.random(size)) / size)  # spread over the noise levels
            z, log_q = filler.fill(x0[rows], width, seed, step * size, 0)
            loss = (continuous_draw(denoiser, z, some, eps, eps_first, place, levels=False) + log_q).mean() / entries
            for group in optimizer.param_groups:
                group["lr"] = lr * 0.5 * (1.0 + math.cos(math.pi * step / steps))
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight.grad = gradient
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
    return filler.requires_grad_(False)
