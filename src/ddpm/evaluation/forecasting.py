"""Ensemble forecasts of fields by a trained model, and how good they are beside persistence, climatology and the expected field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.data.fields import DAY, HOUR, Record, text
from ddpm.data.forecast import Context, back, given_rows
from ddpm.denoiser.fields import Axis, Fields
from ddpm.errors import ConfigError, DataError
from ddpm.metrics import Ensemble, Scores, latitude_weights

Rows = NDArray[np.int64]
Draw = Callable[[int, int, dict[str, Tensor]], Tensor]
System = Callable[[int], NDArray[np.float32]]  # the number of a case -> its members (M, C, H, W)
HELD_OUT = "held-out"
MIDDLE, APART = 40.0, 20.0  # standard deviations from the training's mean: of a variable's median, and of what may be a fill value
FILLS, HUGE = (999.0, 9999.0, 99999.0, 32767.0, 32768.0), 1e15  # what stands for missing entries where nobody declared it, of any sign


def fits(record: Record, about: Fields, name: str) -> Record:
    """The record, where it holds what the model's description says: variables, levels, units, grid, calendar and step of time, and
    values that may be in those units.

    Raises: DataError listing everything that does not fit.
    """
    wrong: list[str] = []
    if record.about.names != about.names:
        wrong.append(f"variables: model: {', '.join(about.names)}, file: {', '.join(record.about.names)}")
    for channel, unit in zip(about.names, about.units, strict=True):
        its = dict(zip(record.about.names, record.about.units, strict=True)).get(channel, unit)
        if its != unit:
            wrong.append(f"units of {channel}: model: {unit or 'none'}, file: {its or 'none'}; convert first")
    for mine, its in ((about.rows, record.about.rows), (about.columns, record.about.columns)):
        if not _same(mine, its):
            wrong.append(f"{mine.name}: model: {_told(mine)}, file: {_told(its)}; bring the fields to the model's grid")
    if record.about.calendar != about.calendar:
        wrong.append(f"calendar: model: {about.calendar}, file: {record.about.calendar}")
    step = round(about.step * HOUR)
    if (about.past > 1 or about.days) and record.step and step % record.step:
        wrong.append(f"step of time: model: {about.step:g} h, file: {record.step / HOUR:g} h")
    wrong = wrong or _strange(record, about)
    if wrong:
        raise DataError(f"{name} does not fit the model:\n  " + "\n  ".join(wrong))
    return record


def _strange(record: Record, about: Fields) -> list[str]:
    """Variables whose values lie where those of no such variable do: in other units than the file says, or with undeclared fill values."""
    wrong: list[str] = []
    for channel, (variable, mean, std) in enumerate(zip(about.names, about.mean, about.std, strict=False)):  # may have none
        values = record.values[:, channel][~np.isnan(record.values[:, channel])]
        model = f"the model's lie about {mean:g} with a deviation of {std:g}"
        size = np.abs(values)
        fill = values[(np.isin(size, FILLS) | (size >= HUGE)) & (np.abs(values - mean) > APART * std)]
        if len(values) and abs(middle := float(np.median(values)) - mean) > MIDDLE * std:
            wrong.append(f"values of {variable}: their median is {middle + mean:g}, {model}; are they in other units than the file says?")
        elif len(fill):
            wrong.append(f"values of {variable}: {len(fill)} are {fill[0]:g}, {model}; if that means missing, make it NaN or _FillValue")
    return wrong


def _same(mine: Axis, its: Axis) -> bool:
    """Whether entries lie at the same places, longitudes whatever turns they count: 350 is -10."""
    if len(mine.values) != len(its.values):
        return False
    apart = np.subtract(mine.values, its.values)
    if mine.longitude and its.longitude:
        apart = (apart + 180.0) % 360.0 - 180.0
    return bool((np.abs(apart) <= 1e-5 + 1e-5 * np.abs(its.values)).all())


def _told(axis: Axis) -> str:
    return f"{len(axis.values)} from {axis.values[0]:g} to {axis.values[-1]:g}"


def starts(record: Record, about: Fields, asked: Sequence[str], every: float, name: str) -> Rows:
    """The rows that are asked for: times in ISO 8601 (a prefix will do), "last", or "held-out": what the model's training held out, each
    `every` hours. DataError for a time that is not there, or without the fields before it; or where entries of these are missing, and the
    model was trained on fields without gaps. Of the held-out ones such are left out.
    """
    step = round(about.step * HOUR)
    given = given_rows(record, about.past, step, about.days, about.leads)
    there: NDArray[np.bool_] = np.all(given >= 0, axis=0)
    holes: NDArray[np.bool_] = np.any(np.isnan(record.values), axis=(1, 2, 3)) & (not about.gaps)
    good = there & ~np.any(holes[given], axis=0)
    said = [text(time) for time in record.times]
    chosen: list[int] = []
    for want in asked:
        if want == HELD_OUT:
            late = record.seconds - back(about.past, step, 0)
            first = next((row for row, time in enumerate(said) if about.held and time >= about.held), None)
            if first is None:
                raise DataError(f"{name}: no fields of the time the model's training held out ({about.held or 'nothing'} and later)")
            on = (record.seconds - record.seconds[first]) % round(every * HOUR) == 0
            chosen += np.flatnonzero(good & (late >= record.seconds[first]) & on).tolist()
            continue
        found = [row for row, time in enumerate(said) if want == "last" or _begins(time, want.replace(" ", "T"))]
        found = found[-1:] if want == "last" else found[:1]
        if not found:
            raise DataError(f"{name}: no field at {want}; its times go from {said[0]} to {said[-1]}")
        if not there[found[0]]:
            needs = f"those of the last {back(about.past, step, about.days) / HOUR:g} h, {about.step:g} h apart"
            raise DataError(f"{name}: {said[found[0]]}: not all fields before it are there; a forecast needs {needs}")
        if not good[found[0]]:
            where = ", ".join(said[row] for row in np.unique(given[:, found[0]]) if holes[row])
            raise DataError(
                f"{name}: {said[found[0]]}: entries are missing (NaN) at {where}, which a forecast from there is given, and the model was "
                "trained on fields without gaps; fill them, start elsewhere, or train on data with gaps"
            )
        chosen += found
    if not chosen:
        whole, finer = ", without missing entries" * bool(holes.any()), ", or a smaller --every" * (HELD_OUT in asked)
        raise DataError(f"{name}: no start has the fields before it{whole}; use another --start{finer}")
    return np.unique(np.asarray(chosen, dtype=np.int64))


def _begins(time: str, want: str) -> bool:
    """Whether the time begins so, and its next figure is of another number: 2019-03-2 is no beginning of 2019-03-20."""
    return time.startswith(want) and not (want[-1:].isdigit() and time[len(want) :][:1].isdigit())


def check_leads(about: Fields, asked: Sequence[float] | None) -> tuple[float, ...]:
    """The leads to forecast; ConfigError for those the model was not trained on, and for one asked for twice."""
    leads = tuple(asked or about.leads)
    if len(set(leads)) < len(leads):
        raise ConfigError(f"leads: got {', '.join(f'{lead:g}' for lead in leads)}; name each once")
    if wrong := [f"{lead:g}" for lead in leads if lead not in about.leads]:
        raise ConfigError(f"leads: got {', '.join(wrong)} h; this model knows {', '.join(f'{lead:g}' for lead in about.leads)} h")
    return leads


def ensemble(
    draw: Draw,
    record: Record,
    about: Fields,
    rows: Rows,
    leads: Sequence[float],
    members: int,
    batch: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """Members (S, L, M, C, H, W) in the units of the fields, for each start row (S,) and lead; NaN where the newest field has none.

    draw(first, size, cond): so many samples in the model's units, the first being number `first`: number (s L + l) M + m is member m of
    start s at lead l.
    """
    given, shape = Context(record, about), record.values.shape[1:]
    size = len(rows) * len(leads) * members
    out = np.empty((size, *shape), dtype=np.float32)
    hours, scales = np.asarray(leads, dtype=np.float64), np.asarray([about.scale(lead) for lead in leads], dtype=np.float32)
    for first in range(0, size, batch):
        case = np.arange(first, min(first + batch, size)) // members
        start, lead = rows[case // len(leads)], case % len(leads)
        unlike, place = np.unique(case, return_index=True)
        same = case - unlike[0]  # members of a case are given the same
        image, expected = (make(start[place], hours[lead[place]])[same] for make in (given.image, given.expected))
        cond = {"image": torch.from_numpy(image), "vector": torch.from_numpy(given.vector(start, hours[lead]))}
        if about.gaps:
            cond["mask"] = torch.from_numpy(~np.isnan(expected))
        out[first : first + len(case)] = expected + draw(first, len(case), cond).numpy() * scales[lead][:, :, None, None]
        if progress is not None:
            progress(min(first + batch, size), size)
    return out.reshape(len(rows), len(leads), members, *shape)


def check_inflation(factors: Sequence[float], leads: Sequence[float], members: int) -> tuple[float, ...]:
    """One factor for each lead, of one for all or as many as leads; ConfigError for another number of them, or of a single member."""
    if members == 1 and set(factors) != {1.0}:
        raise ConfigError("inflate: an ensemble of one member has no width; ask for more --members, or leave --inflate out")
    if len(factors) not in (1, len(leads)):
        raise ConfigError(
            f"inflate: got {len(factors)} factors for {len(leads)} leads ({', '.join(f'{lead:g}' for lead in leads)} h); give one for all "
            "of them, or one each"
        )
    return tuple(factors) * (len(leads) // len(factors))


def inflated(drawn: NDArray[np.float32], factors: Sequence[float]) -> NDArray[np.float32]:
    """Members (S, L, M, C, H, W) moved away from the mean of their ensemble: mean + a_l (x_m - mean), with the factor of their lead.

    What a network does not know, and its members do not tell, makes ensembles too narrow on days it was not trained on; a = 1/ratio, by the
    spread-skill ratio of other such days, makes them as wide as the errors are. Source: covariance inflation, Anderson, Anderson (1999),
    Monthly Weather Review 127, 2741.
    """
    mean = drawn.mean(axis=2, keepdims=True)
    return mean + np.asarray(factors, dtype=np.float32)[:, None, None, None, None] * (drawn - mean)


def truth(record: Record, rows: Rows, lead: float) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """For which of the starts (S,) the field at this lead is there (S,), and those fields (n, C, H, W)."""
    target = record.row(record.seconds[rows] + round(lead * HOUR))
    return target >= 0, record.values[target[target >= 0]]


def climatology(record: Record, about: Fields, hour: float) -> NDArray[np.float32]:
    """The fields of the training part at this hour of the day, (days, C, H, W): those with every entry that any of them has; none where the
    record does not hold that part.
    """
    began, ended = about.trained
    inside = [began <= text(time) <= ended for time in record.times]
    found = record.values[np.asarray(inside) & (np.abs(record.clock - hour) < 1e-6)]
    there = ~np.isnan(found)
    return found[(there == there.any(axis=0)).all(axis=(1, 2, 3))]


def area(about: Fields) -> Tensor:
    """Weights of the rows (H, 1): cosines of latitudes; ones where the rows are none."""
    values = torch.tensor(about.rows.values, dtype=torch.float64)
    latitudes = about.rows.latitude and bool((values.abs() <= 90.0).all())
    return latitude_weights(values) if latitudes else torch.ones(len(values), 1, dtype=torch.float64)


def scores(record: Record, about: Fields, rows: Rows, leads: Sequence[float], drawn: NDArray[np.float32]) -> dict[str, dict[str, Scores]]:
    """By lead ("6"), then by what is scored: "model", "persistence" (the field of the start), for a model of departures from the change of
    the days before "expected" (the field of the start plus that change) and "climatology" (the training fields at that hour of the day, as
    an ensemble; the newest, as many for every hour), all of the starts whose truth is there, on the entries that all of these and the truth
    have; averages over the area. Of several variables each is scored by itself, in its own units: "model t2m".

    drawn (S, L, M, C, H, W): what `ensemble` returns. DataError where no truth is there at all.
    """
    check_scored(record, rows, leads)
    out, given = dict[str, dict[str, Scores]](), Context(record, about)
    for number, lead in enumerate(leads):
        there, real = truth(record, rows, lead)
        if not len(real):
            continue
        begun, members = rows[there], drawn[there, number]
        systems: dict[str, System] = {
            "model": lambda case, members=members: members[case],
            "persistence": lambda case, begun=begun: record.values[begun[[case]]],
        }
        if about.days:
            systems["expected"] = lambda case, begun=begun, lead=lead: given.expected(begun[[case]], np.asarray([lead]))
        hours = (record.clock[begun] + lead) % (DAY / HOUR)
        usual = {hour: climatology(record, about, hour) for hour in np.unique(hours)}
        least = min((len(some) for some in usual.values()), default=0)
        if least > 1:
            systems["climatology"] = lambda case, hours=hours, usual=usual, least=least: usual[hours[case]][-least:]
        out[f"{lead:g}"] = _scored(systems, real, about)
    return out


def check_scored(record: Record, rows: Rows, leads: Sequence[float]) -> None:
    """DataError where no truth is there at all."""
    if not any(truth(record, rows, lead)[0].any() for lead in leads):
        raise DataError("score: the file has no field at any of the times that are forecast; start earlier, or leave --score out")


def _scored(systems: dict[str, System], real: NDArray[np.float32], about: Fields) -> dict[str, Scores]:
    """The scores of systems on the truths (S, C, H, W), by system, and where there are several variables by these; case by case, so that
    memory does not grow with them.
    """
    totals: dict[str, Ensemble] = {}
    weights = area(about)
    for case, one in enumerate(real):
        some = {name: system(case) for name, system in systems.items()}
        known = np.isfinite(one) & np.all([np.isfinite(members).all(axis=0) for members in some.values()], axis=0)
        for name, members in some.items():
            for number, variable in enumerate(about.names):
                key = name if len(about.names) == 1 else f"{name} {variable}"
                found = totals.get(key, Ensemble.none(len(members)))
                there = torch.from_numpy(known[number])
                if there.any():
                    found += Ensemble.of(torch.from_numpy(members[None, :, number]), torch.from_numpy(one[None, number]), weights * there)
                totals[key] = found
    return {key: total.result() for key, total in totals.items()}


def table(found: dict[str, dict[str, Scores]], unit: str) -> str:
    """The scores as lines of text."""
    lines = [f"{'lead':>6s}  {'':12s} {'CRPS':>8s} {'MAE':>8s} {'RMSE':>8s} {'spread':>8s} {'ratio':>6s}   ({unit})"]
    for lead, systems in found.items():
        for name, one in systems.items():
            ratio = f"{one.ratio:6.2f}" if one.members > 1 else f"{'-':>6s}"
            lines.append(f"{lead:>4s} h  {name:12s} {one.crps:8.3f} {one.mae:8.3f} {one.rmse:8.3f} {one.spread:8.3f} {ratio}")
    return "\n".join(lines)


def as_json(found: dict[str, dict[str, Scores]]) -> dict[str, Any]:
    """The scores as JSON holds them."""
    return {lead: {name: one._asdict() for name, one in systems.items()} for lead, systems in found.items()}
