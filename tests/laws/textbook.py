"""Samplers as their papers print them, on Gaussian data and Ho's chain, where every quantity is affine: an independent second writing.

Levels are alpha_bar alone (alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar)); nothing of the package's formulas is used.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.integrate import quad
from torch import Tensor

from ddpm.sampling import DDIM, Ancestral, EulerMaruyama, Langevin, Multistep, Restart, Sampler, SingleStep

V = 0.3  # the variance output of the model
KNOTS = np.concatenate([[0.0], np.cumsum(np.log1p(-np.linspace(1e-4, 0.02, 1000)))])  # log alpha_bar of Ho's chain


@dataclass
class Affine:
    """matrix @ basis + offset: a vector that depends linearly on the basis vectors of one step."""

    matrix: np.ndarray
    offset: np.ndarray

    def __add__(self, other: Affine) -> Affine:
        return Affine(self.matrix + other.matrix, self.offset + other.offset)

    def __sub__(self, other: Affine) -> Affine:
        return self + -1.0 * other

    def __rmul__(self, factor: float | np.ndarray) -> Affine:
        if isinstance(factor, np.ndarray):
            return Affine(factor @ self.matrix, factor @ self.offset)
        return Affine(factor * self.matrix, factor * self.offset)


@dataclass
class World:
    """N(mean, c) and the instants walked, as alpha_bar; the last is 1."""

    mean: np.ndarray
    c: np.ndarray
    bars: list[float]

    def hat(self, bar: float, x: Affine) -> Affine:
        """E[x0 | x] at a level."""
        gain = math.sqrt(bar) * self.c @ np.linalg.inv(bar * self.c + (1 - bar) * np.eye(len(self.c)))
        out = gain @ x.matrix, gain @ x.offset + self.mean - math.sqrt(bar) * gain @ self.mean
        return Affine(*out)

    def eps(self, bar: float, x: Affine) -> Affine:
        """(x - alpha E[x0 | x])/sigma."""
        return 1 / math.sqrt(1 - bar) * (x - math.sqrt(bar) * self.hat(bar, x))

    def residual(self, bar: float) -> float:
        """Mean over entries of Var[x0 | x]."""
        gain = math.sqrt(bar) * self.c @ np.linalg.inv(bar * self.c + (1 - bar) * np.eye(len(self.c)))
        return float(np.trace(self.c - gain @ self.c * math.sqrt(bar)) / len(self.c))


def bar_at(t: float) -> float:
    """alpha_bar at a time, interpolated in its logarithm."""
    return math.exp(np.interp(t * 1000, np.arange(1001), KNOTS))


def time_at(rho: float) -> float:
    """The time at which sigma/alpha = rho."""
    return float(np.interp(math.log1p(rho**2), -KNOTS, np.arange(1001))) / 1000


def lam(bar: float) -> float:
    """log(alpha/sigma)."""
    return 0.5 * math.log(bar / (1 - bar)) if bar < 1 else math.inf


def rho_of(bar: float) -> float:
    """sigma/alpha."""
    return math.sqrt((1 - bar) / bar)


Out = tuple[Affine, list[Affine]]


def ancestral(sampler: Ancestral, w: World, k: int, x: Affine, memory: list[Affine], z: list[Affine]) -> Out:
    """Ho et al., 2020, eqs. 6-7."""
    now, after = w.bars[k], w.bars[k + 1]
    beta = 1 - now / after
    a, b = math.sqrt(after) * beta / (1 - now), math.sqrt(now / after) * (1 - after) / (1 - now)
    small = beta * (1 - after) / (1 - now)
    wide = {
        "small": small,
        "large": beta,
        "learned": math.exp((1 - V) * math.log(max(small, 1e-300)) + V * math.log(beta)),
        "analytic": small + a**2 * w.residual(now),
    }
    return a * w.hat(now, x) + b * x + (0.0 if after == 1.0 else math.sqrt(wide[sampler.variance])) * z[0], memory


def ddim(sampler: DDIM, w: World, k: int, x: Affine, memory: list[Affine], z: list[Affine]) -> Out:
    """Song, Meng, Ermon, 2020, eqs. 12 and 16."""
    now, after = w.bars[k], w.bars[k + 1]
    std = sampler.eta * math.sqrt((1 - after) / (1 - now)) * math.sqrt(1 - now / after)
    out = math.sqrt(after) * w.hat(now, x) + math.sqrt(max(1 - after - std**2, 0.0)) * w.eps(now, x)
    return (out + std * z[0] if z else out), memory


def _polynomial(nodes: list[float], j: int) -> Callable[[float], float]:
    others = [v for i, v in enumerate(nodes) if i != j]
    return lambda v: math.prod((v - o) / (nodes[j] - o) for o in others)


def _gauss(f: Callable[[float], float], low: float, high: float) -> float:
    places, weights = np.polynomial.legendre.leggauss(8)
    return sum(w * f((low + high + (high - low) * p) / 2) for p, w in zip(places, weights, strict=True)) * (high - low) / 2


def _integrals(sampler: Multistep, start: float, stop: float, nodes: list[float]) -> tuple[float, list[float], float]:
    """keep, weights and std of a step from alpha_bar `start` to `stop` through the predictions at `nodes`, by quadrature."""
    tau2 = sampler.noise**2
    places = {
        "log_snr": lam,
        "ratio": rho_of,
        "level": lambda bar: math.sqrt(1 - bar) / (math.sqrt(bar) + math.sqrt(1 - bar)),
        "time": lambda bar: float(np.interp(-math.log(bar), -KNOTS, np.arange(1001))),
    }
    alpha, sigma = math.sqrt(stop), math.sqrt(1 - stop)
    if sampler.variable == "index":
        base = nodes.index(start)
        v = [float(base - i) for i in range(len(nodes))]
        fractions = [quad(_polynomial(v, j), 0.0, 1.0)[0] for j in range(len(nodes))]
        keep, (whole,), std = _integrals(Multistep(prediction=sampler.prediction, order=1), start, stop, [start])
        return keep, [whole * f for f in fractions], std
    read = places[sampler.variable]
    basis = [_polynomial([read(bar) for bar in nodes], j) if len(nodes) > 1 else (lambda v: 1.0) for j in range(len(nodes))]
    if stop == 1.0:
        return _last(sampler, start, basis, read)
    h = lam(stop) - lam(start)

    def bar(z: float) -> float:
        return 1 / (1 + math.exp(-2 * (lam(start) + z)))

    kernel = {
        "x0": lambda z: alpha * (1 + tau2) * math.exp(-(1 + tau2) * (h - z)),
        "eps": lambda z: -sigma * math.exp(h - z),
        "flow": lambda z: -(alpha + sigma) * math.sqrt(bar(z) * (1 - bar(z))) / (math.sqrt(bar(z)) + math.sqrt(1 - bar(z))) ** 2,
    }[sampler.prediction]
    if sampler.variable == "time":  # the table has a kink at every knot
        edges = [0.0, *(v for knot in KNOTS[:0:-1] if 0 < (v := lam(math.exp(knot)) - lam(start)) < h), h]
        found = [sum(_gauss(lambda z, f=f: kernel(z) * f(read(bar(z))), a, b) for a, b in itertools.pairwise(edges)) for f in basis]
    else:
        found = [quad(lambda z, f=f: kernel(z) * f(read(bar(z))), 0.0, h, epsabs=1e-13, epsrel=1e-12, limit=400)[0] for f in basis]
    keep = {
        "x0": sigma / math.sqrt(1 - start) * math.exp(-tau2 * h),
        "eps": alpha / math.sqrt(start),
        "flow": (alpha + sigma) / (math.sqrt(start) + math.sqrt(1 - start)),
    }[sampler.prediction]
    return keep, found, sigma * math.sqrt(1 - math.exp(-2 * tau2 * h))


def _last(
    sampler: Multistep, start: float, basis: list[Callable[[float], float]], read: Callable[[float], float]
) -> tuple[float, list[float], float]:
    """To the data: x0 is read off the polynomial; eps and flow are integrated over sigma/alpha and the level."""
    if sampler.prediction == "x0":
        return 0.0, [f(read(1.0)) for f in basis] if len(basis) > 1 else [1.0], 0.0
    rho = rho_of(start)
    if sampler.prediction == "eps":
        edges = [0.0, *(v for knot in KNOTS[1:] if (v := rho_of(math.exp(knot))) < rho), rho]
        pieces = [-sum(_gauss(lambda r, f=f: f(read(1 / (1 + r * r))), a, b) for a, b in itertools.pairwise(edges)) for f in basis]
        return 1 / math.sqrt(start), pieces, 0.0
    u = rho / (1 + rho)
    size = math.sqrt(start) + math.sqrt(1 - start)
    return 1 / size, [-quad(lambda s, f=f: f(read((1 - s) ** 2 / ((1 - s) ** 2 + s**2))), 0.0, u, limit=400)[0] for f in basis], 0.0


def multistep(sampler: Multistep, w: World, k: int, x: Affine, memory: list[Affine], z: list[Affine]) -> Out:
    """Predictor and corrector written out: x_c = base + sum c_j m_j replaces x, then base = keep x_c + std z and x = base + sum p_j m_j.

    memory: base, then predictions, newest first; zeros at the start.
    """
    base, *past = memory
    bars = w.bars
    m = {"x0": w.hat(bars[k], x), "eps": w.eps(bars[k], x)}.get(sampler.prediction) or w.eps(bars[k], x) - w.hat(bars[k], x)
    known = [m, *past]
    if sampler.corrector and k:
        points = min(k, sampler.order)
        _, c, _ = _weights(sampler, bars[k - 1], bars[k], [bars[k - i] for i in range(points + 1)])
        x = base
        for weight, value in zip(c, known, strict=False):
            x = x + weight * value
    points = min(k + 1, sampler.order)
    if bars[k + 1] == 1.0 and sampler.variable == "log_snr":
        points = 1
    keep, p, std = _weights(sampler, bars[k], bars[k + 1], [bars[k - i] for i in range(points)])
    base = keep * x
    if z:
        base = base + std * z[0]
    x = base
    for weight, value in zip(p, known, strict=False):
        x = x + weight * value
    return x, [base, *known[: len(past)]]


def _weights(sampler: Multistep, start: float, stop: float, nodes: list[float]) -> tuple[float, list[float], float]:
    if sampler.rule == "exact" or len(nodes) != 2:
        return _integrals(sampler, start, stop, nodes)
    keep, (whole,), std = _integrals(sampler, start, stop, [start])
    half = whole / 2
    if sampler.rule == "bh1" and stop < 1:
        half = (
            (lam(stop) - lam(start))
            * (1 + sampler.noise**2)
            * (math.sqrt(stop) if sampler.prediction == "x0" else -math.sqrt(1 - stop))
            / 2
        )
    if nodes[0] != start:  # the corrector's
        return keep, [half, whole - half], std
    read = {
        "log_snr": lam,
        "ratio": rho_of,
        "level": lambda b: rho_of(b) / (1 + rho_of(b)),
        "time": lambda b: float(np.interp(-math.log(b), -KNOTS, np.arange(1001))),
    }[sampler.variable]
    before = half * (read(stop) - read(start)) / (read(nodes[1]) - read(start))
    return keep, [whole - before, before], std


def _heun(w: World, begin: float, after: float, x: Affine, kind: str, order: int, reach: float) -> Affine:
    """One step of a single-step method between two alpha_bars."""

    def m(bar: float, y: Affine) -> Affine:
        return {"x0": w.hat(bar, y), "eps": w.eps(bar, y), "flow": w.eps(bar, y) - w.hat(bar, y)}[kind]

    def held(bar: float) -> Affine:
        return math.sqrt(bar) * w.hat(begin, x) + math.sqrt(1 - bar) * w.eps(begin, x)

    if after == 1.0:
        return w.hat(begin, x)
    rule = Multistep(prediction=kind, order=2, rule="exact")  # type: ignore[arg-type]
    first = m(begin, x)

    def bar_between(share: float) -> float:
        return 1 / (1 + math.exp(-2 * (lam(begin) + share * (lam(after) - lam(begin)))))

    if order == 2:
        there = bar_between(reach)
        _, (whole,), _ = _integrals(Multistep(prediction=kind, order=1), begin, after, [begin])  # type: ignore[arg-type]
        return held(after) + whole / (2 * reach) * (m(there, held(there)) - first)
    one, two = bar_between(1 / 3), bar_between(2 / 3)
    change = m(one, held(one)) - first
    change = m(two, held(two) + _integrals(rule, begin, two, [begin, one])[1][1] * change) - first
    return held(after) + _integrals(rule, begin, after, [begin, two])[1][1] * change


def singlestep(sampler: SingleStep, w: World, k: int, x: Affine, memory: list[Affine], z: list[Affine]) -> Out:
    """Karras et al., 2022, algorithm 2, around one step."""
    now, after = w.bars[k], w.bars[k + 1]
    begin, rho = now, rho_of(now)
    if sampler.churn and sampler.churn_low <= rho <= sampler.churn_high:
        up = min(rho * (1 + min(sampler.churn / (len(w.bars) - 1), math.sqrt(2) - 1)), rho_of(bar_at(1.0)))
        if up > rho * (1 + 1e-9):
            begin = 1 / (1 + up**2)
            x = math.sqrt(begin / now) * x + math.sqrt(begin) * math.sqrt(up**2 - rho**2) * sampler.churn_noise * z[0]
    return _heun(w, begin, after, x, sampler.prediction, sampler.order, sampler.reach), memory


def restart(sampler: Restart, w: World, k: int, x: Affine, memory: list[Affine], z: list[Affine]) -> Out:
    """Xu et al., 2023, algorithm 1: up by fresh noise where the next instant of the way down begins at `high`."""
    now, after = w.bars[k], w.bars[k + 1]
    begin = now
    if after < now or (sampler.inner == 1 and after == now):  # an instant noisier than this one comes next
        begin = 1 / (1 + sampler.high**2)
    if begin != now:
        x = math.sqrt(begin / now) * x + math.sqrt(begin) * math.sqrt(sampler.high**2 - rho_of(now) ** 2) * z[0]
    return _heun(w, begin, after, x, "flow", 2, 1.0), memory


def euler_maruyama(sampler: EulerMaruyama, w: World, k: int, x: Affine, memory: list[Affine], z: list[Affine], times: list[float]) -> Out:
    """Song et al., 2021, eq. 6, with beta of the knot's interval times 1000 as the rate."""
    now, after = w.bars[k], w.bars[k + 1]
    if after == 1.0:
        return w.hat(now, x), memory
    knot = math.ceil(times[k] * 1000 - 1e-6)
    rate = -1000 * (KNOTS[knot] - KNOTS[knot - 1])
    dt = times[k] - times[k + 1]
    score = -1 / math.sqrt(1 - now) * w.eps(now, x)
    return x + dt * (0.5 * rate * x + rate * score) + math.sqrt(rate * dt) * z[0], memory


def langevin(sampler: Langevin, w: World, k: int, x: Affine, memory: list[Affine], z: list[Affine]) -> Out:
    """Song et al., 2021, algorithm 2, with |score| taken as |z|/sigma."""
    now, after = w.bars[k], w.bars[k + 1]
    sigma, hat = math.sqrt(1 - now), w.hat(now, x)
    step = 2 * (sampler.snr * sigma) ** 2
    for i in range(sampler.corrections):
        hat = w.hat(now, x)
        x = x + step * (-1 / sigma * w.eps(now, x)) + math.sqrt(2 * step) * z[i]
    if sampler.predictor == "none":
        return (hat if after == 1.0 else math.sqrt(after / now) * x), memory
    return ancestral(Ancestral(variance="small"), w, k, x, memory, z[-1:])


TEXTBOOK: dict[type[Sampler], Callable[..., Out]] = {
    Ancestral: ancestral,
    DDIM: ddim,
    Multistep: multistep,
    SingleStep: singlestep,
    EulerMaruyama: euler_maruyama,
    Langevin: langevin,
    Restart: restart,
}  # a new sampler's recursion goes here


def remembered(sampler: Sampler) -> int:
    """How many vectors the textbook carries beside x."""
    return 1 + sampler.order if isinstance(sampler, Multistep) else 0


def textbook(sampler: Sampler, times: Tensor, mean: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance at the end of the walk of these instants (rows,) on N(mean, c)."""
    assert type(sampler) in TEXTBOOK, f"give {type(sampler).__name__} its textbook recursion, so that it is tested"
    t = [float(v) for v in times]
    w, n = World(mean, c, [*(bar_at(v) for v in t), 1.0]), len(c)
    kept = 1 + remembered(sampler)
    width = n * (kept + sampler.draws)
    blocks = [Affine(np.eye(width)[n * i : n * (i + 1)], np.zeros(n)) for i in range(kept + sampler.draws)]
    m, cov = np.zeros(n * kept), np.zeros((n * kept, n * kept))
    cov[:n, :n] = np.eye(n)
    for k in range(len(t)):
        extra = (t,) if isinstance(sampler, EulerMaruyama) else ()
        x, memory = TEXTBOOK[type(sampler)](sampler, w, k, blocks[0], blocks[1:kept], blocks[kept:], *extra)
        push = np.concatenate([part.matrix for part in (x, *memory)])
        m = push[:, : n * kept] @ m + np.concatenate([part.offset for part in (x, *memory)])
        cov = push[:, : n * kept] @ cov @ push[:, : n * kept].T + push[:, n * kept :] @ push[:, n * kept :].T
    return m[:n], cov[:n, :n]
