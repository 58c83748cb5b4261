"""Forecasts as data: what is learned is the distribution of x(start + lead), given the fields up to the start.

A sample is its departure from what is expected, over the root mean square of such departures at that lead, so that all leads weigh alike.
Expected is x(start) + the mean over days j of x(start + lead - 24 h j) - x(start - 24 h j); without days, x(start). The conditions are past
fields and maps of the place ("image"), and the lead and the hour of the day ("vector"). No window reaches over a gap in time. Where entries
are missing the condition "mask" says which are expected; nothing that a forecast is told depends on what comes after its start.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.data.fields import DAY, HOUR, Record, boundary, with_statistics
from ddpm.data.found import Found
from ddpm.data.settings import DataSettings
from ddpm.denoiser.fields import Fields
from ddpm.errors import DataError

Array = NDArray[np.float32]
Rows = NDArray[np.int64]
_YEARS = {"360_day": 360.0, "noleap": 365.0, "365_day": 365.0, "all_leap": 366.0, "366_day": 366.0}


class Lazy(ABC):
    """N entries (*shape) in float32 that are computed when they are asked for; indexed as an array is."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self.shape, self.dtype = (count, *shape), np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any, /) -> Array:
        index = np.arange(len(self))[rows]
        return self.of(index[None])[0] if index.ndim == 0 else self.of(index)

    @abstractmethod
    def of(self, index: Rows) -> Array:
        """The entries of these numbers (n,), as (n, *shape)."""


class Windows:
    """Every start and lead a record has all fields for: start (N,) and target (N,) rows, lead (N,) numbers among the leads."""

    def __init__(self, record: Record, past: int, leads: tuple[float, ...], days: int, name: str) -> None:
        step = record.step
        wrong = [f"{lead:g}" for lead in leads if round(lead * HOUR) % max(step, 1)]
        if wrong:
            raise DataError(
                f"{name}: leads {', '.join(wrong)} h: no multiple of the step of its fields, {step / HOUR:g} h; choose such leads"
            )
        start = np.flatnonzero((given_rows(record, past, step, days, leads) >= 0).all(axis=0))
        targets = np.stack([record.row(record.seconds[start] + round(lead * HOUR)) for lead in leads], axis=1)
        place, self.lead = np.nonzero(targets >= 0)
        self.start, self.target = start[place], targets[place, self.lead]
        if not len(self.start):
            longest = leads[-1] + back(past, step, days) / HOUR
            raise DataError(f"{name}: no stretch of fields {step / HOUR:g} h apart without a gap is as long as {longest:g} h; ask for less")

    def keep(self, chosen: NDArray[np.bool_]) -> None:
        """Only the chosen ones (N,)."""
        self.start, self.target, self.lead = self.start[chosen], self.target[chosen], self.lead[chosen]


def given_rows(record: Record, past: int, step: int, days: int, leads: tuple[float, ...]) -> Rows:
    """The rows (n, T) of the fields that a forecast from each row (T,) is given, -1 where there is none: of so many, `step` seconds apart,
    and of those of the days before at the same hour and at the leads from it.
    """
    shifts = [-k * step for k in range(past)]
    shifts += [round(lead * HOUR) - DAY * day for day in range(1, days + 1) for lead in (0.0, *leads)]
    return np.stack([record.row(record.seconds + shift) for shift in shifts])


def back(past: int, step: int, days: int) -> int:
    """How many seconds before its start a forecast is given fields of."""
    return max((past - 1) * step, DAY * days)


class Context:
    """What a forecast is told: of a record and a model's description, the conditions of starts and leads."""

    def __init__(self, record: Record, about: Fields) -> None:
        self.record, self.about = record, about
        self.mean, self.std = (np.asarray(one, np.float32)[:, None, None] for one in (about.mean, about.std))
        self.maps = maps(about)
        size = len(about.names)
        self.image_channels = size * (about.past + 3 * bool(about.days) + about.gaps) + len(self.maps)

    def expected(self, starts: Rows, leads: NDArray[np.float64]) -> Array:
        """(n, C, H, W) in the fields' units: what comes if the days before are a guide, those of them whose entries are there; NaN where
        the newest field's entry is missing, or all of theirs.
        """
        return self.record.values[starts] + known_mean(self.usual(starts, leads)) if self.about.days else self.record.values[starts]

    def usual(self, starts: Rows, leads: NDArray[np.float64]) -> Array:
        """(days, n, C, H, W): how the fields changed from the same hour of each day before, the newest first."""
        record = self.record
        first = record.seconds[starts] - DAY * np.arange(1, self.about.days + 1)[:, None]
        return record.values[record.row(first + np.round(leads * HOUR).astype(np.int64))] - record.values[record.row(first)]

    def image(self, starts: Rows, leads: NDArray[np.float64]) -> Array:
        """(n, channels, H, W): the past fields, oldest first, each channel by its mean and deviation, zeros where an entry is missing; with
        `days` how the newest differs from the mean of those at the same hour, the mean change, and by how much that of the day before was
        another; the maps of the place; where entries may be missing, which of the newest field are there.
        """
        record, about, parts = self.record, self.about, list[Any]()
        before = np.arange(about.past - 1, -1, -1) * round(about.step * HOUR)
        rows = record.row(record.seconds[starts][:, None] - before)
        parts.append(((record.values[rows] - self.mean) / self.std).reshape(len(starts), -1, *self.maps.shape[1:]))
        if about.days:
            changes, mean = (usual := self.usual(starts, leads))[0], known_mean(usual)
            same = record.row(record.seconds[starts] - DAY * np.arange(1, about.days + 1)[:, None])
            scales = np.asarray([about.scale(lead) for lead in leads], np.float32)[:, :, None, None]
            parts += [(record.values[starts] - known_mean(record.values[same])) / self.std, mean / scales, (changes - mean) / scales]
        parts.append(np.broadcast_to(self.maps, (len(starts), *self.maps.shape)))
        if about.gaps:
            parts.append(~np.isnan(record.values[starts]))
        return np.nan_to_num(np.concatenate(parts, axis=1, dtype=np.float32))

    def vector(self, starts: Rows, leads: NDArray[np.float64]) -> Array:
        """(n, len(vector_names)): see there; leads (n,) in hours, each one of the model's."""
        about, clock, day = self.about, self.record.clock[starts], self.record.day[starts]
        which = (leads[:, None] == np.asarray(about.leads)).astype(np.float64)
        waves = [*_waves(clock, 24.0), *_waves(clock + leads, 24.0)]
        if about.season:
            waves += _waves(day + leads / 24.0, _YEARS.get(about.calendar, 365.2425))
        return np.concatenate([which, (leads / about.leads[-1])[:, None], np.stack(waves, axis=1)], axis=1).astype(np.float32)


def known_mean(values: Array) -> Array:
    """The mean over the first axis of what is no NaN; NaN where all is."""
    there = ~np.isnan(values)
    count = there.sum(axis=0)
    return np.where(count > 0, np.where(there, values, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan).astype(np.float32)


def vector_names(about: Fields) -> tuple[str, ...]:
    """The entries of the vector: which lead, and how long as a share of the longest; the hour of the day at the start and then; the day of
    the year then, where the record is long enough to have seasons.
    """
    names = [*(f"lead {lead:g} h" for lead in about.leads), "lead"]
    kinds = ["hour at the start", "hour then", *(["day of the year"] if about.season else [])]
    return (*names, *(f"{wave} of {kind}" for kind in kinds for wave in ("sine", "cosine")))


def _waves(phase: NDArray[np.float64], period: float) -> list[NDArray[np.float64]]:
    angle = 2.0 * math.pi * phase / period
    return [np.sin(angle), np.cos(angle)]


def maps(about: Fields) -> Array:
    """(2 or 3, H, W): how far down and how far right, from -1 to 1; longitudes all round the Earth by sine and cosine instead."""
    down, right = (np.linspace(-1.0, 1.0, len(axis.values)) for axis in (about.rows, about.columns))
    size = (len(down), len(right))
    across = _waves(np.asarray(about.columns.values), 360.0) if about.columns.circle else [right]
    return np.stack([np.broadcast_to(down[:, None], size), *(np.broadcast_to(one, size) for one in across)]).astype(np.float32)


class Departures(Lazy):
    """(x(target) - expected) / scale of the lead, zero where it is missing."""

    def __init__(self, given: Context, windows: Windows) -> None:
        super().__init__(len(windows.start), given.record.values.shape[1:])
        self.given, self.windows = given, windows
        self.leads = np.asarray(given.about.leads)[windows.lead]

    def expected(self, index: Rows) -> Array:
        """(n, C, H, W), see `Context`."""
        return self.given.expected(self.windows.start[index], self.leads[index])

    def raw(self, index: Rows) -> Array:
        """(n, C, H, W) in the fields' units, NaN where an entry is missing."""
        return self.given.record.values[self.windows.target[index]] - self.expected(index)

    def of(self, index: Rows) -> Array:
        """(n, C, H, W)."""
        scales = np.asarray([self.given.about.scale(lead) for lead in self.leads[index]], np.float32)
        return np.nan_to_num(self.raw(index) / scales[:, :, None, None])


class Expected(Departures):
    """Which entries are expected of each window: 1, or 0 where none is. Of what comes nothing is looked at."""

    def of(self, index: Rows) -> Array:
        """(n, C, H, W)."""
        return (~np.isnan(self.expected(index))).astype(np.float32)


class Images(Lazy):
    """The condition image of each window."""

    def __init__(self, given: Context, windows: Windows) -> None:
        super().__init__(len(windows.start), (given.image_channels, *given.maps.shape[1:]))
        self.given, self.starts = given, windows.start
        self.leads = np.asarray(given.about.leads)[windows.lead]

    def of(self, index: Rows) -> Array:
        """(n, channels, H, W)."""
        return self.given.image(self.starts[index], self.leads[index])


def windows(record: Record, settings: DataSettings, name: str) -> Found:
    """The departures of a record's windows as data, split by time: held out are those that lie wholly in its last share.

    Between these and the training windows nothing is used for as long as a window lasts, from its oldest past field to what is forecast.
    The mean change of the days before may be taken over days of the training part: they are past, and any forecast knows them.

    Raises: DataError where no window is left in one of the parts, or a lead does not fit the step.
    """
    past, leads, days = settings.fields.past, settings.fields.leads, settings.fields.days
    found = Windows(record, past, leads, days, name)
    before = back(past, record.step, 0)
    lasts = before + round(leads[-1] * HOUR)
    cut = boundary(record, settings.holdout, name)
    gap = lasts if settings.holdout else 0
    early, late = record.seconds[found.start] - before, record.seconds[found.target]
    found.keep((late < cut - gap) | (early >= cut))
    _check_parts(found, record, cut, settings.holdout, f"{name}: no window of {lasts / HOUR:g} h", "give a longer record, shorter leads")
    train = np.flatnonzero(record.seconds < cut - gap)
    about = with_statistics(record, train, np.flatnonzero(record.seconds >= cut))
    year = int(_YEARS.get(about.calendar, 365.2425))
    season = bool(record.seconds[train[-1]] - record.seconds[train[0]] + record.step >= year * DAY)
    about = replace(about, past=past, leads=leads, days=days, season=season)
    notices = record.notices
    if about.gaps and (lost := _without_holes(Departures(Context(record, about), found))):
        notices += (f"{lost} windows are left out: what comes lacks entries that are expected, and no forecast can know which",)
        _check_parts(
            found, record, cut, settings.holdout, f"{name}: no window whose last field has every entry that is expected of it",
            "fill what is missing now and then, or leave the variable out with --variables",
        )  # fmt: skip
    held = record.seconds[found.start] >= cut
    about = replace(about, scales=_scales(Departures(Context(record, about), found), ~held))
    given = Context(record, about)
    cond: dict[str, Any] = {"image": Images(given, found), "vector": given.vector(found.start, np.asarray(leads)[found.lead])}
    if about.gaps:
        cond["mask"] = Expected(given, found)
    return Found(
        name=name,
        kind="array",
        samples=Departures(given, found),
        cond=cond,
        vector=vector_names(about),
        held=np.flatnonzero(held),
        notices=notices,
        fields=about,
    )


def _check_parts(found: Windows, record: Record, cut: int, share: float, what: str, advice: str) -> None:
    """DataError where no window is left to train on, or none is held out though a share is asked for."""
    held = record.seconds[found.start] >= cut
    if held.all() or (share and not held.any()):
        raise DataError(f"{what} is {'to train on' if held.all() else 'held out'}; {advice}, or another --holdout")


def _without_holes(departures: Departures) -> int:
    """Leave out the windows whose last field lacks an entry that is expected; how many these are.

    The mask is told to the network, and says which entries a loss counts: where it followed what came, it would tell of it.
    """
    found, values = departures.windows, departures.given.record.values
    missing = np.isnan(values)
    if (missing == missing[0]).all():
        return 0  # the same places at all times
    good = np.ones(len(found.start), dtype=bool)
    for part in np.array_split(np.arange(len(good)), -(-len(good) // 64)):
        good[part] = (np.isnan(departures.expected(part)) | ~missing[found.target[part]]).all(axis=(1, 2, 3))
    found.keep(good)
    return int((~good).sum())


def _scales(departures: Departures, train: NDArray[np.bool_]) -> tuple[float, ...]:
    """Root mean square of the training departures, lead by lead, channel by channel; DataError where there are none, or they are zero."""
    about, scales = departures.given.about, list[float]()
    for lead in range(len(about.leads)):
        chosen = np.flatnonzero(train & (departures.windows.lead == lead))
        square, count = np.zeros(len(about.names)), np.zeros(len(about.names))
        for part in np.array_split(chosen, -(-len(chosen) // 64) or 1):
            raw = departures.raw(part).astype(np.float64)
            square, count = square + np.nansum(raw**2, axis=(0, 2, 3)), count + np.isfinite(raw).sum(axis=(0, 2, 3))
        root = np.sqrt(square / np.maximum(count, 1))
        if not root.all():
            name = about.names[int(np.argmin(root))]
            raise DataError(f"{name}: never departs from what is expected at {about.leads[lead]:g} h, or has no training window there")
        scales += root.tolist()
    return tuple(scales)
