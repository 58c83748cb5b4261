"""What `samplers.py` measures with: ten exact mixtures on one schedule, their true end points, and two distances.

The probability flow is one curve whatever the schedule, once it is written in y = x / (alpha + sigma) and u = sigma / (alpha + sigma): that
is the straight schedule's flow, so starts, ends and exact predictions of every method are carried over there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from ddpm.denoiser import Cond, Denoiser, Mixture, Prediction
from ddpm.process import At, Linear, Process, Straight
from ddpm.random import normals
from ddpm.sampling import Sampler

LINEAR = Process(Linear(T=None))  # Ho's chain and the line between its knots: any instant may be called
STRAIGHT = Process(Straight(t_min=1e-9))
TUNING, REPORTING = range(5), range(5, 10)
DIRECTIONS, PER_START = 32, 16  # of the sliced distance: projections, and exact draws for each sample


def mixture(process: Process, seed: int) -> Mixture:
    """The exact denoiser of three to five unlike correlated Gaussians in the plane, standard deviations 0.06 to 0.6."""
    rng = np.random.default_rng(seed)
    count = 3 + seed % 3
    means = rng.uniform(-1.5, 1.5, (count, 2))
    stds = np.exp(rng.uniform(math.log(0.06), math.log(0.6), (count, 2)))
    angles = rng.uniform(0.0, math.pi, count)
    turns = np.stack([[np.cos(angles), -np.sin(angles)], [np.sin(angles), np.cos(angles)]]).transpose(2, 0, 1)
    covariances = np.einsum("kij,kj,klj->kil", turns, stds**2, turns)
    return Mixture(process, *(torch.from_numpy(part) for part in (means, covariances, rng.dirichlet(np.full(count, 3.0)))))


class Stack(Denoiser):
    """Several exact denoisers walked as one batch: row block i of x (M * n, 2) belongs to member i.

    Written out for the plane, all members at once: many times faster than one after the other, and compared with them when it is made.
    """

    def __init__(self, process: Process, seeds: range) -> None:
        super().__init__()
        self.process, self.shape = process, (2,)
        self.members = [mixture(process, seed) for seed in seeds]
        most = max(len(member.means) for member in self.members)
        self.log_weights = torch.full((len(seeds), most), -math.inf, dtype=torch.float64)
        self.means = torch.zeros(len(seeds), most, 2, dtype=torch.float64)
        self.variances, axes = torch.ones_like(self.means), torch.zeros(len(seeds), most, 2, 2, dtype=torch.float64)
        for i, member in enumerate(self.members):
            assert member.basis is not None
            count = len(member.means)
            self.log_weights[i, :count], self.means[i, :count] = member.log_weights, member.means
            self.variances[i, :count], axes[i, :count] = member.variances, member.basis.transpose(1, 2)
        self.axes = axes.transpose(1, 2).flatten(1, 2)  # (M, 2 K, 2): first axes of all components, then second ones
        self.variances = self.variances.transpose(1, 2).flatten(1, 2)[:, None]
        self.places = (self.axes * self.means.repeat(1, 2, 1)).sum(-1)[:, None]
        x = torch.randn(len(seeds) * 64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for t in (0.002, 0.3, 1.0):
            parts = [member(rows, process.at(t)) for member, rows in zip(self.members, x.chunk(len(seeds)))]
            together = self(x, process.at(t))
            torch.testing.assert_close(together.x0, torch.cat([part.x0 for part in parts]), rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(together.eps, torch.cat([part.eps for part in parts]), rtol=1e-8, atol=1e-8)

    def forward(self, x: Tensor, at: At, cond: Cond = None) -> Prediction:
        """Each member's prediction for its own rows; at is one instant."""
        rows = x.to(torch.float64).reshape(len(self.members), -1, 2)
        alpha, sigma = (level.to(torch.float64).reshape(()) for level in (at.alpha, at.sigma))
        total = alpha**2 * self.variances + sigma**2
        offset = torch.baddbmm(-alpha * self.places, rows, self.axes.transpose(1, 2))
        solved = offset / total
        log_joint = (offset * solved + total.log()).unflatten(-1, (2, -1)).sum(-2).mul_(-0.5).add_(self.log_weights[:, None])
        share = log_joint.softmax(-1)
        gain = (share.repeat(1, 1, 2) * solved) @ torch.cat([sigma * self.axes, alpha * self.variances.transpose(1, 2) * self.axes], -1)
        eps, x0 = gain[..., :2], torch.baddbmm(gain[..., 2:], share, self.means)
        return Prediction(x0.reshape(x.shape).to(x.dtype), eps.reshape(x.shape).to(x.dtype))

    def residual(self, at: At) -> Tensor:
        """E|x0 - E[x0|x_t]|^2 per entry, by draws, averaged over the members."""
        levels = [At(*(level.reshape(-1)[i] for level in at)) for i in range(at.t.numel())]
        noise = normals(0, range(2048 * len(self.members)), (2,), "noise", dtype=torch.float64)
        x0 = self.draws(2048)
        values = [(x0 - self(self.process.perturb(x0, noise, level), level).x0).square().mean() for level in levels]
        return torch.stack(values).reshape(at.t.shape)

    def draws(self, count: int) -> Tensor:
        """Exact data (M * count, 2), the same in every run."""
        parts: list[Tensor] = []
        for i, member in enumerate(self.members):
            rng = np.random.default_rng((1, i))
            choice = rng.choice(len(member.means), count, p=member.log_weights.exp().numpy())
            parts.append(member.draw(torch.from_numpy(rng.standard_normal((count, 2))), torch.from_numpy(choice)))
        return torch.cat(parts)


@dataclass(frozen=True)
class World:
    """Some of the mixtures with common starts z ~ N(0, I), the state at t = 1 of Ho's chain, and where the exact flow takes them."""

    seeds: range
    count: int  # starts of each mixture

    @cached_property
    def denoiser(self) -> Stack:
        """On Ho's chain."""
        return Stack(LINEAR, self.seeds)

    @cached_property
    def straight(self) -> Stack:
        """The same data on the straight schedule."""
        return Stack(STRAIGHT, self.seeds)

    @cached_property
    def z(self) -> Tensor:
        """(M * count, 2): the same starts for every mixture."""
        return normals(0, range(self.count), (2,), "start", dtype=torch.float64).repeat(len(self.seeds), 1)

    @cached_property
    def noisy(self) -> float:
        """u at t = 1."""
        at = LINEAR.at(1.0)
        return float(at.sigma / (at.alpha + at.sigma))

    def exact(self, alpha: float, sigma: float, x: Tensor) -> Prediction:
        """The exact prediction at any alpha and sigma of any schedule."""
        return self.straight(x.to(torch.float64), At(*(torch.tensor(value, dtype=torch.float64) for value in (0.0, alpha, sigma))))

    def flow(self, y: Tensor, start: float, stop: float) -> Tensor:
        """The exact probability flow from y at u = start to u = stop."""

        def rate(u: float, state: np.ndarray) -> np.ndarray:
            at = STRAIGHT.at(u)
            prediction = self.straight(torch.from_numpy(state).reshape(-1, 2), at)
            return STRAIGHT.velocity(prediction.x0, prediction.eps, at).numpy().ravel()

        solved = solve_ivp(rate, (start, stop), y.numpy().ravel(), method="DOP853", rtol=1e-9, atol=1e-9)
        return torch.from_numpy(solved.y[:, -1]).reshape(-1, 2)

    @cached_property
    def ends(self) -> Tensor:
        """The exact end points of the starts, (M * count, 2)."""
        return self.states[0.0]

    def start(self, alpha: float, sigma: float) -> Tensor:
        """Where a method with this first level starts: at more noise than t = 1 on the exact flow through z; at less, where its users start
        it, z times the standard deviation of unit data.
        """
        u = sigma / (alpha + sigma)
        if u > self.noisy + 1e-7:
            return self.states[u] * (alpha + sigma)
        return self.z * math.hypot(alpha, sigma)

    @cached_property
    def states(self) -> States:
        """y of the exact flow through the starts, by u."""
        return States(self)

    def rms(self, x: Tensor) -> float:
        """Root mean square of an entry of x minus the exact end point; mean over the mixtures."""
        squares = (x.to(torch.float64) - self.ends).square().reshape(len(self.seeds), -1)
        return float(squares.mean(1).sqrt().mean())

    @cached_property
    def _projected(self) -> Tensor:
        return self._project(self.denoiser.draws(self.count * PER_START))

    def _project(self, x: Tensor) -> Tensor:
        """Sorted projections (M, directions, n)."""
        angles = torch.arange(DIRECTIONS, dtype=torch.float64) * math.pi / DIRECTIONS
        lines = torch.stack([angles.cos(), angles.sin()])
        return (x.to(torch.float64).reshape(len(self.seeds), -1, 2) @ lines).transpose(1, 2).sort(-1).values

    def sliced(self, x: Tensor) -> float:
        """Sliced W2 to the data, 16 exact draws a sample; mean over the mixtures."""
        if not bool(x.isfinite().all()):
            return math.inf
        gaps = self._project(x).repeat_interleave(PER_START, -1) - self._projected
        return float(gaps.square().mean((1, 2)).sqrt().mean())


class States(dict[float, Tensor]):
    """y on the exact flow through the starts at any u, integrated once each."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def __missing__(self, u: float) -> Tensor:
        level = LINEAR.at(1.0)
        self[u] = self.world.flow(self.world.z / (level.alpha + level.sigma), self.world.noisy, u)
        return self[u]


def walk(
    world: World,
    sampler: Sampler,
    times: Tensor,
    *,
    start: Tensor | None = None,
    denoiser: Stack | None = None,
    noises: list[Tensor] | None = None,
    rows: int | None = None,
) -> Tensor:
    """Our sampler from z (or `start`) along these instants, in float64. rows: how many steps to take, all by default."""
    x = world.z if start is None else start
    model = (world.denoiser if denoiser is None else denoiser).bind()
    state = sampler.init(x)
    for k, row in enumerate(sampler.plan(model, times).rows(x)[:rows]):
        shape = (len(x), 2) if sampler.draws < 2 else (sampler.draws, len(x), 2)
        z = None if not sampler.draws else noises[k] if noises else torch.from_numpy(np.random.default_rng((7, k)).standard_normal(shape))
        x, state, _ = sampler.step(model, x, row, state, z)
    return x
