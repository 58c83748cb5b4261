"""Instants fitted to a model by damped least squares, always at knots of a chain: between them its network was never trained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm.process import Process

NUDGES = (0.1, 0.2, 0.05)  # of the way to the neighbour, in turn: what a network answers is rough in t, and its slopes depend on the scale
FURTHEST = 0.45  # of the way to the neighbour, in one move: instants never meet
DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of each instant's own curvature; from nearly Newton's step to a short one downhill
ENOUGH = 0.01  # three rounds that each gain less, relatively, are the last


def on_knots(process: Process, times: tuple[float, ...]) -> tuple[float, ...]:
    """The instants at knots of the chain, where there is one, those that fall together moved to the next free knot."""
    length = process.schedule.T
    if length is None:
        return times
    knots = [max(1, min(length, round(t * length))) for t in times]
    for i in range(1, len(knots)):
        knots[i] = min(knots[i], knots[i - 1] - 1)
    knots = [max(knot, len(knots) - i) for i, knot in enumerate(knots)]
    return tuple(knot / length for knot in knots)


def rooms(process: Process, times: Tensor) -> tuple[Tensor, Tensor]:
    """(steps - 1,) each: how far every instant but the first is from the next one, or from the last the process knows, and from the one
    before.
    """
    ends = torch.cat([times[2:], torch.tensor([process.schedule.first], dtype=torch.float64)])
    return (times[1:] - ends).clamp(min=0.0), times[:-1] - times[1:]


def refine(process: Process, begin: Tensor, gap: Callable[[tuple[float, ...]], Tensor], rounds: int = 30) -> tuple[float, ...]:
    """Instants near `begin` (steps,) with |gap|^2 small: Gauss-Newton, derivatives by moving one instant, the best of several dampings.

    The first instant stays. gap: instants -> residuals of any shape; what it raises is passed on, so keep the best beside. rounds: moves
    at most; each asks for `gap` once for each free instant and for each damping, less what was asked before.

    Reference: Levenberg, 1944, Quart. Appl. Math. 2(2); Marquardt, 1963, J. Soc. Indust. Appl. Math. 11(2).
    """
    known: dict[tuple[float, ...], Tensor] = {}

    def at(place: Tensor) -> tuple[tuple[float, ...], Tensor]:
        key = on_knots(process, tuple(place.tolist()))
        if key not in known:
            known[key] = torch.nan_to_num(gap(key).reshape(-1).to(torch.float64), nan=1e6)
        return key, known[key]

    knot = 1.0 / process.schedule.T if process.schedule.T else 0.0
    here, now = at(begin.to(torch.float64))
    idle = 0
    for number in range(rounds):
        times = torch.tensor(here, dtype=torch.float64)
        below, above = rooms(process, times)
        share = NUDGES[number % len(NUDGES)]
        down = (below > above) ^ bool(number % 2)  # the other way next time
        nudges = torch.where(down, -(share * below).clamp(min=knot), (share * above).clamp(min=knot))
        slopes: list[Tensor] = []
        for k, nudge in enumerate(nudges.tolist()):
            moved, there = at(torch.cat([times[: k + 1], times[k + 1 : k + 2] + nudge, times[k + 2 :]]))
            way = moved[k + 1] - here[k + 1]
            alone = all(a == b for i, (a, b) in enumerate(zip(moved, here, strict=True)) if i != k + 1)
            slopes.append((there - now) / way if way and alone else torch.zeros_like(now))
        if not slopes:
            break
        normal = (matrix := torch.stack(slopes, 1)).T @ matrix
        own = normal.diagonal().clamp(min=1e-12 * float(normal.diagonal().max()) + 1e-300).diag()
        before = float(now.square().sum())
        for damping in DAMPINGS:
            move = -torch.linalg.solve(normal + damping * own, matrix.T @ now)
            move = torch.maximum(torch.minimum(move, FURTHEST * above), -FURTHEST * below)
            at(torch.cat([times[:1], times[1:] + move]))
        here, now = min(known.items(), key=lambda one: float(one[1].square().sum()))  # a single instant's move may have been the best
        idle = 0 if float(now.square().sum()) < (1.0 - ENOUGH) * before else idle + 1
        if idle == len(NUDGES):
            break
    return here
