"""Tuning, on mixtures whose denoiser is exact: the result beats the defaults on starts it never saw, and stays within its bounds."""

from __future__ import annotations

import functools
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from worlds import three_bumps

from ddpm.denoiser import Cond, Denoiser, Prediction
from ddpm.errors import ConfigError
from ddpm.evaluation import Tuned, cost_of, tune
from ddpm.evaluation.tuning.refine import on_knots, refine
from ddpm.evaluation.tuning.search import CANDIDATES, grids, pairs
from ddpm.evaluation.tuning.walks import FIRST
from ddpm.guidance import Guided
from ddpm.process import EDM, VPSDE, At, Cosine, Linear, Process, Schedule, Straight
from ddpm.sampling import DDIM, Ancestral, Multistep, SingleStep, sample

FEW = (DDIM(), Multistep(), Multistep(order=3, rule="exact"))
SMALL: dict[str, Any] = {"n": 16, "candidates": FEW, "reference_steps": 60, "budget": 25_000, "finalists": 1, "dtype": torch.float64}


class Watched(Denoiser):
    """An exact denoiser that notes with how many samples it is called, at which log-SNRs, and for which starts."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner, self.called, self.levels, self.starts = inner, 0, list[float](), list[set[int]]()
        self.process, self.shape = inner.process, inner.shape
        ends = (1.0, inner.process.schedule.first)
        self.log_snr_range = (inner.process.log_snr(ends[0]).item() - 1e-6, inner.process.log_snr(ends[1]).item() + 1e-6)

    def forward(self, x: Tensor, at: At, cond: Cond = None) -> Prediction:
        """The inner prediction."""
        self.called += len(x)
        self.levels.append(float(at.log_snr))
        self.starts.append(set(cond["number"].tolist()) if cond else set())
        return self.inner(x, at, cond)

    def residual(self, at: At) -> Tensor:
        """The inner denoiser's."""
        return self.inner.residual(at)


def world(schedule: Schedule) -> Watched:
    """Three bumps on a schedule."""
    return Watched(three_bumps(Process(schedule)))


@functools.cache
def tuned(schedule: Schedule, nfe: int = 6) -> tuple[Watched, Tuned]:
    """A tuning run, kept for several laws."""
    denoiser = world(schedule)
    return denoiser, tune(denoiser, nfe, **SMALL)


@pytest.mark.parametrize("schedule", [Cosine(), VPSDE(), EDM(), Straight(T=50)], ids=lambda schedule: type(schedule).__name__)
def test_it_beats_the_defaults_on_starts_it_never_saw(schedule: Schedule) -> None:
    """The reported errors are those of fresh walks from the held-out starts against a reference made here by another sampler."""
    denoiser, found = tuned(schedule)
    assert found.error < 0.7 * min(found.defaults.values()), found
    n = found.starts
    options = {"seed": found.seed, "first": FIRST + n, "dtype": torch.float64}
    steps = schedule.T or 200
    truth = sample(denoiser, n, steps=steps, sampler=Multistep(order=3, prediction="flow", variable="level", rule="exact"), **options)
    for name, sampler, grid, count in (("DDIM", DDIM(), None, 6), ("", found.sampler, found.grid, found.steps)):
        apart = (sample(denoiser, n, steps=count, sampler=sampler, grid=grid, **options) - truth).square().mean().sqrt().item()
        said = found.defaults[name] if name else found.error
        assert apart == pytest.approx(said, rel=0.2 if schedule.T == 50 else 0.12)  # one reference of 60 calls, one of 200 or more


@pytest.mark.parametrize("schedule", [Cosine(), VPSDE(), Straight(T=50)], ids=lambda schedule: type(schedule).__name__)
def test_calls_stay_in_the_trained_range_and_within_the_budget(schedule: Schedule) -> None:
    denoiser, found = tuned(schedule)
    low, high = denoiser.log_snr_range
    assert low <= min(denoiser.levels) and max(denoiser.levels) <= high
    assert found.calls <= SMALL["budget"] and denoiser.called >= found.calls
    assert len(found.at) == found.steps == 6 and found.at[0] == 1.0 and found.at[-1] >= schedule.first
    assert all(a > b for a, b in pairwise(found.at))
    if schedule.T is not None:
        assert all(abs(t * schedule.T - round(t * schedule.T)) < 1e-9 for t in found.at)
    assert found.sampler.calls(found.steps) <= found.nfe


def test_calls_are_counted_and_the_same_arguments_give_the_same_result() -> None:
    first, second = (world(Linear()) for _ in range(2))
    small = {**SMALL, "n": 4, "candidates": FEW[:1]}
    one, other = tune(first, 4, **small), tune(second, 4, **small)
    assert one == other and first.called == one.calls <= 25_000
    tight = cost_of(first, 4, n=4, candidates=FEW[:1], reference_steps=60).least
    assert tune(world(Linear()), 4, **{**small, "budget": tight}).calls <= tight < one.calls


def test_no_choice_sees_the_held_out_starts() -> None:
    """Only the reference, first, and the three walks that are reported, last, are given their numbers."""
    denoiser = world(Linear())
    tune(denoiser, 4, cond={"number": torch.arange(8)}, **{**SMALL, "n": 4, "candidates": FEW[:1]})
    held_out = [bool(numbers & set(range(4, 8))) for numbers in denoiser.starts]
    assert all(numbers == set(range(4, 8)) for numbers in denoiser.starts[-12:])
    begin = held_out.index(True)
    end = held_out.index(False, begin)
    assert all(numbers == set(range(8)) for numbers in denoiser.starts[begin:end]) and end - begin in (60, 120, 240)
    assert len(held_out) - 12 - end > 40 and not any(held_out[end:-12])


def test_what_cannot_be_is_refused() -> None:
    denoiser = world(Cosine(T=20))
    with pytest.raises(ConfigError, match="nfe: got 2, no candidate"):
        tune(denoiser, 2, candidates=(Multistep(order=3),))
    with pytest.raises(ConfigError, match="nfe: got 0, must be at least 1"):
        tune(denoiser, 0)
    with pytest.raises(ConfigError, match="draws noise"):
        tune(denoiser, 5, candidates=(Ancestral(),))
    with pytest.raises(ConfigError, match="a chain of 20 has no 30 instants"):
        tune(denoiser, 30, candidates=(DDIM(),))
    with pytest.raises(ConfigError, match="budget: got 100, tuning needs at least"):
        tune(denoiser, 5, budget=100)
    with pytest.raises(ConfigError, match="must be 2n = 8"):
        tune(denoiser, 5, n=4, cond={"class": torch.zeros(4)})


def test_a_sampler_of_several_calls_a_step_gets_fewer_steps() -> None:
    found = tune(world(VPSDE()), 7, **{**SMALL, "candidates": (SingleStep(prediction="x0", reach=0.5),), "n": 8, "budget": 20_000})
    assert found.steps == 4 and found.sampler.calls(found.steps) == 7


def test_every_candidate_and_grid_is_tried_once() -> None:
    process = Process(Cosine())
    field = pairs(process, CANDIDATES, 10)
    assert {pair.sampler for pair in field} == set(CANDIDATES) and not any(sampler.stochastic for sampler in CANDIDATES)
    assert len({(pair.sampler, tuple(pair.grid.times(process, pair.steps).tolist())) for pair in field}) == len(field)
    assert len(grids(process, 10)) >= 6


def test_refining_finds_a_known_optimum() -> None:
    """Residuals that vanish at one list of instants only."""
    process = Process(VPSDE())
    wanted = torch.tensor([1.0, 0.7, 0.45, 0.2, 0.05], dtype=torch.float64)
    goal = process.log_snr(wanted)
    begin = torch.linspace(1.0, 0.2, 5, dtype=torch.float64)
    found = refine(process, begin, lambda times: process.log_snr(torch.tensor(times, dtype=torch.float64)) - goal, rounds=20)
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("schedule", [Cosine(), Straight(T=12)], ids=repr)
def test_a_network_is_asked_at_knots_only(schedule: Schedule) -> None:
    """While the search goes on too: it was trained nowhere else on a chain."""
    assert schedule.T is not None
    process = Process(schedule)
    crowded = on_knots(process, (1.0, 0.999, 0.998, 0.5, 0.001, 0.0009))
    assert all(a > b > 0 for a, b in pairwise(crowded))
    denoiser = world(schedule)
    found = tune(denoiser, 4, **{**SMALL, "n": 4, "candidates": FEW[:2]})
    knots = schedule.T * process.time_of(torch.tensor(denoiser.levels, dtype=torch.float64).unique())
    assert found.at[0] == 1.0 and float((knots - knots.round()).abs().max()) < 1e-6


class Pushed(Guided):
    """Guidance whose two parts differ at middle noise levels only, so an interval costs nothing."""

    def plain(self) -> Denoiser:
        """The denoiser."""
        return self.denoiser

    def rest(self, x: Tensor, at: At, cond: Cond) -> Prediction:
        """Off by a constant where sigma/alpha is between 0.3 and 3."""
        x0, eps, _ = self.denoiser(x, at, cond)
        off = torch.where((at.ratio > 0.3) & (at.ratio < 3.0), 0.3, 0.0)
        return Prediction(x0 - off, eps + at.alpha / at.sigma * off)

    def parts(self, x: Tensor, at: At, cond: Cond) -> tuple[Prediction, Prediction]:
        """Both."""
        return self.denoiser(x, at, cond), self.rest(x, at, cond)


def test_guidance_is_left_out_where_it_changes_nothing() -> None:
    inner = three_bumps(Process(VPSDE()))
    found = tune(Pushed(inner, 2.0), 12, **{**SMALL, "n": 8, "candidates": (Multistep(),)})
    assert found.interval is not None
    low, high = found.interval
    assert 0.02 < low < 0.6 and 1.5 < high < 60.0 and high / low > 3.0
    assert tune(inner, 6, **{**SMALL, "n": 4, "candidates": (DDIM(),)}).interval is None
    assert math.isfinite(found.error) and found.error < found.defaults["DDIM"]
