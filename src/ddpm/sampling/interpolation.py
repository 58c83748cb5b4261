"""Interpolation between two samples: through their noises, or through their perturbed selves."""

from __future__ import annotations

import torch
from torch import Tensor

from ddpm.denoiser import Cond, Denoiser
from ddpm.errors import ConfigError
from ddpm.process import Below, Grid
from ddpm.random import normals
from ddpm.sampling.clip import Clip
from ddpm.sampling.ddim import DDIM
from ddpm.sampling.inversion import invert
from ddpm.sampling.multistep import Multistep
from ddpm.sampling.sampler import Sampler
from ddpm.sampling.walk import device_of, trajectory


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """(sin((1 - share) w) a + sin(share w) b) / sin w with w the angle between a and b (*D); share (n,) -> (n, *D).

    Keeps the norm where a and b have the same, as straight lines between noises do not. Vectors in one line are interpolated linearly.

    Reference: Song, Meng, Ermon, 2020, arXiv:2010.02502, appendix D.5.
    """
    one, other = a.double().flatten(), b.double().flatten()
    length: Tensor = (one.square().sum() * other.square().sum()).sqrt()
    cosine = (one @ other / length.clamp(min=1e-300)).clamp(-1.0, 1.0)
    angle = cosine.acos()
    share = share.double().to(a.device)
    straight = bool(angle.sin() < 1e-6)
    left, right = 1.0 - share, share
    if not straight:
        left, right = (left * angle).sin() / angle.sin(), (right * angle).sin() / angle.sin()
    mixed = left[:, None] * one + right[:, None] * other
    return mixed.reshape(len(share), *a.shape).to(a.dtype)


def perturbed(denoiser: Denoiser, x0: Tensor, grid: Grid, steps: int, seed: int = 0, first: int = 0, *, shared: bool = False) -> Tensor:
    """x0 (n, *D) perturbed to the grid's first instant, x_t = alpha x0 + sigma eps: where `sample(start=..., grid=grid)` begins an edit.

    The noise of row i is that of sample first + i; `shared`: that of sample `first` for every row.

    Reference: Meng et al., 2022, arXiv:2108.01073, algorithm 1 (their t_0 is the grid's first instant).
    """
    at = denoiser.process.at(grid.times(denoiser.process, steps)[0], like=x0)
    indices = [first] * len(x0) if shared else range(first, first + len(x0))
    eps = normals(seed, indices, denoiser.shape, "start", dtype=x0.dtype).to(x0.device)
    return denoiser.process.perturb(x0, eps, at)


def interpolate(
    denoiser: Denoiser,
    a: Tensor,
    b: Tensor,
    n: int = 8,
    *,
    level: float | None = None,
    steps: int = 50,
    sampler: Sampler | None = None,
    grid: Grid | None = None,
    seed: int = 0,
    cond: Cond = None,
    clip: Clip = "auto",
    autocast: torch.dtype | None = None,
) -> Tensor:
    """n samples (n, *D) from a to b, both (*D), all in the space diffused in; cond as for one sample, (1, ...) tensors.

    level None: a and b are carried to noise along the probability flow, mixed spherically and sampled back; the ends are a and b as far as
    `steps` resolve the flow. level t: a and b are perturbed to t with the *same* noise, mixed linearly and sampled from there, so t says
    how freely the model may invent what lies between; the ends vary about a and b. (The paper draws both from q(x_t | x0) and does not
    say whether they share their noise; unshared, the mixture would hold less noise than its level.) sampler: Multistep() by default,
    second order as `invert` is. Raises ConfigError as `trajectory`.

    Reference: level None: Song, Meng, Ermon, 2020, arXiv:2010.02502, section 5.3; level t: Ho, Jain, Abbeel, 2020, arXiv:2006.11239,
    section 4.3 and fig. 8.
    """
    if n < 2:
        raise ConfigError(f"n: got {n}, must be at least 2: the two ends")
    device = device_of(denoiser)
    ends = torch.stack([a, b]).to(device)
    share = torch.linspace(0.0, 1.0, n, dtype=torch.float64)
    sampler = sampler or (Multistep() if steps > 1 else DDIM())
    if level is None:
        twice = {key: value.expand(2, *value.shape[1:]) for key, value in cond.items()} if cond else None
        noise = invert(denoiser, ends, steps=steps, grid=grid, cond=twice, clip=clip, autocast=autocast)
        start = slerp(noise[0], noise[1], share)
    else:
        grid = Below(base=grid, begin=level)
        ends = perturbed(denoiser, ends, grid, steps, seed, shared=True)
        mix = share.to(ends).reshape(-1, *[1] * a.ndim)
        start = (1.0 - mix) * ends[0] + mix * ends[1]
    some = {key: value.expand(n, *value.shape[1:]) for key, value in cond.items()} if cond else None
    training = denoiser.training
    denoiser.eval()
    try:
        frames = trajectory(
            denoiser, n, steps=steps, sampler=sampler, grid=grid, seed=seed, indices=[0] * n, cond=some, clip=clip, start=start,
            dtype=start.dtype, autocast=autocast,
        )  # fmt: skip
        x = start
        for frame in frames:
            x = frame.x
        return x
    finally:
        denoiser.train(training)
