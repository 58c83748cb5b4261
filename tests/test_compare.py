"""`ddpm compare`: the order, when a difference is more than chance, and what a reader is told beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ddpm.evaluation.report import compare
from ddpm.evaluation.report.page import curves as curves_of


def estimate(value: float, reach: float) -> dict[str, float]:
    return {"value": value, "low": value - reach, "high": value + reach}


def made(value: float, reach: float, extractor: str = "raw-1") -> dict[str, Any]:
    protocol = {"data": "d", "rows": "train", "extractor": extractor}
    return {"protocol": protocol, "scores": {"frechet": estimate(value, reach)}, "real": {"frechet": estimate(0.5, 0.1)}}


def test_differences_within_the_scatter_are_ties() -> None:
    ranking = compare([("c", made(9.0, 0.1)), ("a", made(1.0, 0.1)), ("b", made(1.05, 0.1))])
    assert [place.name for place in ranking.places] == ["a", "b", "c"] and [place.tied for place in ranking.places] == [True, True, False]
    # the difference of 0.05 has standard error 0.1 sqrt(2) / 2.093, so t = 0.740 with 38 degrees of freedom, and of two p = 0.464
    assert ranking.places[1].p == pytest.approx(0.7415, abs=1e-3) and ranking.floor == 0.5
    assert "real data that no model has seen: 0.5" in ranking.table()
    assert compare([("a", made(1.0, 0.1)), ("b", made(1.05, 0.1))]).places[1].p == pytest.approx(0.4639, abs=1e-3)
    with pytest.raises(Exception, match="do not compare"):
        compare([("a", made(1.0, 0.1)), ("b", made(1.0, 0.1, "raw-2"))])


def test_equal_runs_are_told_apart_one_time_in_twenty() -> None:
    """Errors as Student's law takes them: known from 20 groups."""
    draw = np.random.default_rng(0)
    wrong = 0
    for _ in range(300):
        reports = []
        for name, part in zip("ab", draw.normal(1.0, 0.2, (2, 20)), strict=True):
            reports.append((name, made(float(part.mean()), 2.093 * float(part.std(ddof=1)) / 20**0.5)))
        wrong += not compare(reports).places[1].tied
    assert 1 < wrong < 33  # 15 +- 4.5 standard deviations of a binomial


def test_runs_that_are_not_equally_sure_are_told_apart_one_time_in_twenty_too() -> None:
    """One known from 20 groups, beside one that is certain: the size which chance exceeds once in twenty has p = 5 %."""
    draw = np.random.default_rng(0)
    far = float(np.quantile(np.abs(draw.normal(size=400_000)) / np.sqrt(draw.chisquare(19, 400_000) / 19), 0.95))
    for reaches in ((2.0930, 1e-9), (1e-9, 2.0930)):
        places = compare([("a", made(1.0, reaches[0])), ("b", made(1.0 + far, reaches[1]))]).places
        assert places[1].p == pytest.approx(0.05, rel=0.03)


def test_of_many_equal_runs_any_two_may_be_far_apart() -> None:
    """Six runs, errors of 38 degrees of freedom: the chance that the best and the worst are 3.2 errors of a difference apart."""
    draw = np.random.default_rng(0)
    spread = np.ptp(draw.normal(size=(400_000, 6)), axis=1) / np.sqrt(draw.chisquare(38, 400_000) / 38)
    chance = float((spread > 3.2 * 2**0.5).mean())
    reports = [(name, made(1.0 + k / 5 * 3.2 * 2**0.5 * 0.1, 2.0930 * 0.1)) for k, name in enumerate("abcdef")]
    places = compare(reports).places
    assert places[-1].p == pytest.approx(chance, rel=0.03) and 0.02 < chance < 0.05
    assert compare([reports[0], reports[-1]]).places[1].p == pytest.approx(0.00277, rel=0.02)  # alone, by Student's law


def test_an_uncorrected_floor_is_no_floor() -> None:
    """Of runs with intervals: a distance that is too large by an unknown amount would make a poor model look good."""
    runs = [(name, made(value, 0.1)) for name, value in (("a", 1.0), ("b", 2.0))]
    runs[0][1]["real"]["frechet"] |= {"low": None, "high": None}
    assert compare(runs).floor is None
    points = [{"at": at, "value": 1.0, "raw": 1.0, "low": low, "high": low} for at, low in ((5, 0.9), (10, None))]
    report = {"sweeps": {"nfe": points}, "sweep_n": 40}
    assert "uncorrected" in "".join(curves_of({**report, "real": runs[0][1]["real"]}))
    assert "stroke-dasharray" not in "".join(curves_of({**report, "real": runs[0][1]["real"]}))
    assert "stroke-dasharray" in "".join(curves_of({**report, "real": runs[1][1]["real"]}))


def test_a_run_that_copies_keeps_its_place_and_is_marked() -> None:
    """The nearest to the data is the one that copies them; one that was tested and does not copy is not marked."""
    reports = [(name, made(value, 0.1)) for name, value in (("copier", 1.0), ("honest", 2.0), ("untested", 3.0))]
    reports[0][1]["scores"]["memorisation"] = {"found": True, "copies": 0.93}
    reports[1][1]["scores"]["memorisation"] = {"found": False, "copies": 0.01}
    ranking = compare(reports)
    first, second, third, *rest = ranking.table().splitlines()[1:]
    assert [place.copies for place in ranking.places] == [0.93, None, None]
    assert "1. copier" in first and first.endswith("copies 93 %") and "copies" not in second + third
    assert "that of copier is no sign of quality" in rest[-1] and "copies" not in compare(reports[1:]).table()
