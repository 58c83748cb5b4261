"""Tuning: the sampler and the instants with the least error for one model at a number of network calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.denoiser import Cond, Denoiser
from ddpm.errors import ConfigError
from ddpm.evaluation.tuning.refine import on_knots, refine
from ddpm.evaluation.tuning.stored import Trial, Tuned, name_of
from ddpm.evaluation.tuning.walks import FIRST, BudgetSpent, Free, Walks
from ddpm.guidance import Guided
from ddpm.process import Grid, Karras, Listed, LogSNR, Process, Quadratic, Trailing, default_grid, log_snr_ends
from ddpm.sampling import DDIM, PRESETS, Multistep, Sampler, steps_for
from ddpm.sampling.clip import Clip

CANDIDATES: tuple[Sampler, ...] = tuple(
    dict.fromkeys(preset.value for preset in PRESETS if not preset.value.stochastic and isinstance(preset.value, DDIM | Multistep))
)
"""The samplers of one call a step that draw no noise: at few calls those of several never came near. Others can be named."""
DEFAULTS: dict[str, Sampler] = {"DDIM": DDIM(), "dpm++2m": Multistep()}  # on the schedule's usual grid: what the result is held against
TRUTH = Multistep(order=3)
BUDGET = 300_000
SHARES = (4, 2)  # stage (a) walks a 4th of the starts, then a half, then all; each time a 3rd of the pairs stays
ROUGH = 0.05  # part of the default's error that the reference may be off by
SAVING = 1.01  # an interval of guidance may cost this much more error for the calls it saves


class Cost(NamedTuple):
    """Calls of the model, a sample each: what has to be spent, and the budget, the rest of which refines instants."""

    least: int
    budget: int


class _Pair(NamedTuple):
    sampler: Sampler
    grid: Grid
    steps: int
    name: str  # of the grid
    error: float = math.inf


@dataclass(frozen=True)
class _Search:
    walks: Walks
    truth: Tensor
    n: int
    say: Callable[[str], None]


def grids(process: Process, steps: int) -> dict[str, Grid]:
    """Where the search begins, by name; "log-snr to X" goes evenly in log-SNR and jumps to the data from X."""
    found: dict[str, Grid] = {
        "usual": default_grid(process, steps),
        "trailing": Trailing(),
        "quadratic": Quadratic(),
        "log-snr": LogSNR(),
        "karras 7": Karras(),
    }
    low, high = log_snr_ends(process)
    for end in (3.0, 6.0):
        if low < end < high:
            times = process.time_of(torch.linspace(low, end, steps, dtype=torch.float64))[1:]
            found[f"log-snr to {end:g}"] = Listed(at=on_knots(process, (1.0, *times.tolist())))
    return found


def pairs(process: Process, samplers: Iterable[Sampler], nfe: int) -> list[_Pair]:
    """Every sampler with every grid that allows so many calls; ConfigError where there is none."""
    found: dict[tuple[Sampler, tuple[float, ...]], _Pair] = {}
    refused: list[str] = []
    for sampler in samplers:
        try:
            if sampler.stochastic:
                raise ConfigError("it draws noise, so its ends cannot be compared with a reference one by one")
            steps = steps_for(sampler, nfe)
            usable = grids(process, steps) if process.schedule.T is None or steps <= process.schedule.T else {}
            if not usable:
                raise ConfigError(f"nfe: got {nfe}, a chain of {process.schedule.T} has no {steps} instants")
        except ConfigError as error:
            refused.append(f"{name_of(sampler)}: {error}")
            continue
        for name, grid in usable.items():
            try:
                key = (sampler, tuple(grid.times(process, steps).tolist()))
            except ConfigError:  # instants that fall together on a short chain
                continue
            found.setdefault(key, _Pair(sampler, grid, steps, name))
    if not found:
        raise ConfigError("\n".join([f"nfe: got {nfe}, no candidate can be tuned to it", *refused]))
    return list(found.values())


def _rounds(count: int, n: int) -> list[tuple[int, int]]:
    """(pairs, starts) of each round of stage (a)."""
    out: list[tuple[int, int]] = []
    for share in (*SHARES, 1):
        out.append((count, max(2, n // share)))
        count = max(3, -(-count // 3))
    return out


def cost_of(denoiser: Denoiser, nfe: int, *, n: int = 64, candidates: Sequence[Sampler] = CANDIDATES, reference_steps: int = 200,
            budget: int = BUDGET) -> Cost:  # fmt: skip
    """What `tune` will spend, before it does; ConfigError as there."""
    stages = sum(number * starts * nfe for number, starts in _rounds(len(pairs(denoiser.process, candidates, nfe)), n))
    return Cost(_reference_cost(n, nfe, reference_steps) + stages + (len(DEFAULTS) + 8) * n * nfe, budget)


def _reference_cost(n: int, nfe: int, steps: int) -> int:
    """The walks of all 2n starts, and the check on some of them."""
    return 2 * n * steps + min(n, 16) * (3 * steps + nfe)


def tune(
    denoiser: Denoiser,
    nfe: int,
    *,
    cond: Cond = None,
    n: int = 64,
    seed: int = 0,
    candidates: Sequence[Sampler] = CANDIDATES,
    reference_steps: int = 200,
    budget: int = BUDGET,
    finalists: int = 3,
    clip: Clip = "auto",
    batch: int = 256,
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Tuned:
    """The sampler, the instants and, for a `Guided` model without one, the interval of guidance with the least error at `nfe` calls.

    Error: root mean square distance per entry, in the space diffused in, between where a walk ends and where a reference walk of many calls
    (dpm++3m, doubled until it has converged) ends from the same start. Two stages: (a) every candidate on every parametrised grid, by
    successive halving over growing numbers of starts; (b) the instants of the best few samplers by damped least squares. The error
    reported, and those of the defaults beside it, are over n starts that no choice has seen.

    n: starts tuned on, and as many held out. cond: (2n, ...) tensors, those tuned on first. candidates: samplers that draw no noise.
    budget: calls of the model allowed, a sample each (`cost_of` says how many are needed). autocast: in less than float32
    rounding hides the small differences that the search goes by. The result is a function of the arguments.
    Raises ConfigError for an nfe below what every candidate needs, a budget too small, a condition that does not have 2n rows.
    """
    _check_request(nfe, n, cond)
    length = denoiser.process.schedule.T
    reference_steps = min(reference_steps, length or reference_steps)
    cost = cost_of(denoiser, nfe, n=n, candidates=candidates, reference_steps=reference_steps, budget=budget)
    if cost.least > budget:
        raise ConfigError(f"budget: got {budget}, tuning needs at least {cost.least} calls; allow more, or take a smaller n")
    later = cost.least - _reference_cost(n, nfe, reference_steps)
    kept_back = (len(DEFAULTS) + 2) * n * nfe
    kept_back += min(budget - cost.least, nfe * n * nfe) if isinstance(denoiser, Guided) else 0
    walks = Walks(denoiser, cond, seed, budget - later, clip=clip, batch=batch, dtype=dtype, autocast=autocast)
    truth, off = _reference(walks, n, nfe, reference_steps, say)
    walks.limit = budget - kept_back
    search = _Search(walks, truth, n, say)
    trials, best = _halving(search, pairs(denoiser.process, candidates, nfe), finalists)
    winner = min((_refined(search, pair, len(best) - i) for i, pair in enumerate(best)), key=lambda pair: pair.error)
    walks.limit = budget - (len(DEFAULTS) + 1) * n * nfe
    interval = _interval(search, winner)
    walks.limit = math.inf  # the last few were kept back
    unseen = range(n, 2 * n)
    defaults = {
        name: walks.apart(sampler, None, nfe, unseen, truth) if nfe >= sampler.least else math.inf for name, sampler in DEFAULTS.items()
    }
    error = walks.apart(winner.sampler, winner.grid, winner.steps, unseen, truth, _within(denoiser, interval))
    times = tuple(winner.grid.times(denoiser.process, winner.steps).tolist())
    return Tuned(
        nfe=nfe, sampler=winner.sampler, at=times, interval=interval, error=error, defaults=defaults, reference_error=off,
        trials=trials, calls=walks.spent, starts=n, seed=seed,
    )  # fmt: skip


def _check_request(nfe: int, n: int, cond: Cond) -> None:
    problems = [f"{name}: got {value}, must be at least {least}" for name, value, least in (("nfe", nfe, 1), ("n", n, 2)) if value < least]
    rows = {key: len(value) for key, value in (cond or {}).items()}
    problems += [f"cond[{key!r}]: got {count} rows, must be 2n = {2 * n}" for key, count in rows.items() if count != 2 * n]
    if problems:
        raise ConfigError.of(problems)


def _reference(walks: Walks, n: int, nfe: int, steps: int, say: Callable[[str], None]) -> tuple[Tensor, float | None]:
    """Where all 2n starts lead, and by how much that still changes when the calls are doubled; None on a chain that has no more steps."""
    length, some = walks.denoiser.process.schedule.T, range(min(n, 16))
    near = walks.ends(TRUTH, None, steps, some)
    usual = walks.apart(DDIM(), None, min(nfe, steps), some, near)
    while True:
        if length is not None and 2 * steps > length:
            off = None
            break
        finer = walks.ends(TRUTH, None, 2 * steps, some)
        off = float((near - finer).square().mean().sqrt())
        if off <= ROUGH * usual or walks.spent + (2 * n + min(n, 16) * 2) * 2 * steps > walks.limit:
            break
        steps, near = 2 * steps, finer
    told = "the whole chain" if off is None else f"changes by {off:.2g} when doubled"
    say(f"reference: dpm++3m of {steps} calls, {told}; DDIM of {min(nfe, steps)} is off by {usual:.3g}")
    return walks.ends(TRUTH, None, steps, range(2 * n)), off


def _halving(search: _Search, field: list[_Pair], finalists: int) -> tuple[tuple[Trial, ...], list[_Pair]]:
    """Stage (a): the table of all pairs with the errors they went out with, and the best pair of each of the best samplers."""
    out: list[_Pair] = []
    rounds = _rounds(len(field), search.n)
    for number, (_, starts) in enumerate(rounds):
        scored = [
            pair._replace(error=search.walks.apart(pair.sampler, pair.grid, pair.steps, range(starts), search.truth)) for pair in field
        ]
        scored.sort(key=lambda pair: pair.error)  # stable: the same order every time
        kept = rounds[number + 1][0] if number + 1 < len(rounds) else 0
        out = scored[kept:] + out
        field = scored[:kept]
        search.say(f"{len(scored)} pairs on {starts} starts: best {name_of(scored[0].sampler)}, error {scored[0].error:.4g}")
    trials = tuple(Trial(name_of(pair.sampler), pair.name, pair.error) for pair in out)
    firsts: dict[Sampler, _Pair] = {}
    for pair in out:
        firsts.setdefault(pair.sampler, pair)
    return trials, [pair for pair in list(firsts.values())[:finalists] if math.isfinite(pair.error)]


def _refined(search: _Search, pair: _Pair, left: int) -> _Pair:
    """Stage (b) for one pair, with its part of what is left of the budget: the better of the refined instants and those it came with."""
    walks, process, every = search.walks, search.walks.denoiser.process, range(search.n)
    whole, keep = walks.limit, 3 * left * search.n * pair.sampler.calls(pair.steps)
    walks.limit = walks.spent + max(0.0, whole - walks.spent - keep) / left
    found: list[tuple[float, tuple[float, ...]]] = []

    def gap(times: tuple[float, ...]) -> Tensor:
        try:
            gaps = walks.ends(pair.sampler, Free(at=times), pair.steps, every) - search.truth[: search.n]
        except ConfigError:  # instants too near to be told apart
            return torch.full_like(search.truth[: search.n], 1e3)
        found.append((float(gaps.square().mean()), times))
        return gaps

    try:
        refine(process, pair.grid.times(process, pair.steps), gap)
    except BudgetSpent:
        search.say(f"{name_of(pair.sampler)}: the budget ended the search")
    walks.limit = whole
    options = [pair._replace(error=walks.apart(pair.sampler, pair.grid, pair.steps, every, search.truth))]
    if found:
        rounded = Listed(at=on_knots(process, min(found)[1]))
        options.append(pair._replace(grid=rounded, error=walks.apart(pair.sampler, rounded, pair.steps, every, search.truth)))
    best = min(options, key=lambda option: option.error)
    search.say(f"{name_of(pair.sampler)}: refined from {options[0].error:.4g} to {best.error:.4g}")
    return best


def _within(denoiser: Denoiser, interval: tuple[float, float] | None) -> Denoiser:
    """The guided model with this interval; itself for None."""
    if interval is None:
        return denoiser
    narrowed = copy(denoiser)
    assert isinstance(narrowed, Guided)
    narrowed.interval = interval
    return narrowed


def _interval(search: _Search, pair: _Pair) -> tuple[float, float] | None:
    """The narrowest (low, high] in sigma/alpha outside which guidance can be left out at no loss; None to guide everywhere."""
    denoiser = search.walks.denoiser
    if not isinstance(denoiser, Guided) or denoiser.interval is not None or denoiser.scale == 1.0:
        return None
    process, every = denoiser.process, range(search.n)
    levels = process.at(pair.grid.times(process, pair.steps)).ratio.clamp(max=1e6).tolist()
    least = process.at(process.schedule.first).ratio.item()
    cuts = [2.0 * levels[0], *(math.sqrt(a * b) for a, b in pairwise(levels)), 0.0]
    found: tuple[float, float] | None = None
    first, last, side = 0, len(levels), 0
    while side < 2 and last - first > 1:
        begin, end = (first + 1, last) if side == 0 else (first, last - 1)
        interval = (cuts[end], cuts[begin])
        if interval[1] <= least:
            break
        try:
            error = search.walks.apart(pair.sampler, pair.grid, pair.steps, every, search.truth, _within(denoiser, interval))
        except BudgetSpent:
            break
        if error > SAVING * pair.error:
            side += 1
        else:
            first, last, found = begin, end, interval
    return found


__all__ = ["CANDIDATES", "DEFAULTS", "FIRST", "Cost", "cost_of", "grids", "pairs", "tune"]
