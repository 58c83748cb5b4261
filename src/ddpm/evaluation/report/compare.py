"""Which of several runs is better, and whether the difference is more than the scatter of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from scipy.special import stdtrit

from ddpm.errors import ConfigError
from ddpm.evaluation.reference import Protocol
from ddpm.metrics.estimate import LEVEL
from ddpm.metrics.frechet import GROUPS

SCORE = "frechet"
DEGREES = GROUPS - 1  # of freedom, of one interval


class Place(NamedTuple):
    """A run's place: its name, distance and interval; p: how likely it is that among so many runs that are equally good any two come out
    as far apart as this one and the best; tied: p above 5 %; copies: the share of its samples that are, where it was found to copy.
    """

    name: str
    value: float
    low: float
    high: float
    p: float
    tied: bool
    copies: float | None = None


class Ranking(NamedTuple):
    """Places, the best first, and the distance of unseen real data, where it is known as well as that of the runs: with an interval."""

    places: list[Place]
    floor: float | None

    def table(self) -> str:
        """For a terminal."""
        wide = max(len(place.name) for place in self.places)
        lines = [f"{'':3} {'run':<{wide}} {'Frechet distance':>17} {'95 % interval':>23} {'p against the best':>20}"]
        for number, place in enumerate(self.places, 1):
            interval = f"{place.low:.4g} to {place.high:.4g}"
            told = "" if number == 1 else f"{place.p:.2g}" + (" (tied)" if place.tied else "")
            copies = "" if place.copies is None else f"  copies {100 * place.copies:.3g} %"
            lines.append(f"{number:>2}. {place.name:<{wide}} {place.value:>17.4g} {interval:>23} {told:>20}{copies}")
        if self.floor is not None:
            lines.append(f"real data that no model has seen: {self.floor:.4g}")
        if copying := ", ".join(place.name for place in self.places if place.copies is not None):
            lines.append(f"copies of training data bring the distance down: that of {copying} is no sign of quality")
        return "\n".join(lines)


def compare(reports: Sequence[tuple[str, dict[str, Any]]]) -> Ranking:
    """Rank reports, by name, of at least two runs. ConfigError where they were not scored alike.

    The difference of two distances to the same reference is given the sum of their variances, which are those of the intervals. That is
    exact for samples of different seeds; those of one seed begin at the same noise and go together, so that the true p is smaller. The
    best is known by the same numbers, so the law is that of the studentized range of all runs; of two it is Student's. Its degrees of
    freedom are Welch's, from 19 of an interval where the other is sure to 38 where both are as unsure.

    Reference: Tukey 1949, Biometrics 5; Welch 1947, Biometrika 34, and Games, Howell 1976, Journal of Educational Statistics 1 (of unequal
    variances).
    """
    if len(reports) < 2:
        raise ConfigError(f"runs: got {len(reports)}, a comparison needs at least 2")
    first = Protocol(**reports[0][1]["protocol"])
    for name, report in reports[1:]:
        try:
            first.check(Protocol(**report["protocol"]))
        except ConfigError as error:
            raise ConfigError(f"{reports[0][0]} and {name}: {error}") from error
    unsure = [name for name, report in reports if report["scores"][SCORE]["low"] is None]
    if unsure:
        raise ConfigError(f"{', '.join(unsure)}: scored on too few samples for an interval; evaluate again with a larger --n")
    ordered = sorted(reports, key=lambda item: item[1]["scores"][SCORE]["value"])
    best = ordered[0][1]["scores"][SCORE]
    places: list[Place] = []
    for name, report in ordered:
        mine, memory = report["scores"][SCORE], report["scores"].get("memorisation")
        error, other = _error(mine), _error(best)
        both = math.hypot(error, other)
        p = float(mine["value"] == best["value"])
        if both:
            degrees = DEGREES / ((error / both) ** 4 + (other / both) ** 4)
            p = _chance(abs(mine["value"] - best["value"]) / both, len(reports), degrees)
        copies = memory["copies"] if memory and memory["found"] else None
        places.append(Place(name, mine["value"], mine["low"], mine["high"], p, p > 1 - LEVEL, copies))
    real = (reports[0][1].get("real") or {}).get(SCORE)
    return Ranking(places, real["value"] if real and real["low"] is not None else None)


def _chance(apart: float, runs: int, degrees: float) -> float:
    """That the best and the worst of so many equal runs are so many standard errors of a difference apart, which are known by so many
    degrees of freedom.
    """
    from scipy.stats import studentized_range

    return float(studentized_range.sf(apart * math.sqrt(2.0), runs, degrees))


def _error(estimate: dict[str, Any]) -> float:
    return (estimate["high"] - estimate["low"]) / 2 / float(stdtrit(DEGREES, 0.5 + LEVEL / 2))
