"""Fields on a grid over time, from NetCDF, Zarr and GRIB: values with their names, units, places and times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.data.field_opening import first_line, open_fields
from ddpm.data.found import Found
from ddpm.data.settings import DataSettings
from ddpm.denoiser.fields import Axis, Fields
from ddpm.errors import ConfigError, DataError

SUFFIXES = (".nc", ".nc4", ".zarr", ".grib", ".grb", ".grib2", ".grb2")
HOUR, DAY = 3600, 86_400  # seconds
_VERTICAL = ("level", "lev", "plev", "isobaricinhpa", "pressure", "pressure_level", "height", "depth", "altitude", "hybrid", "z")


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """Fields in memory: values (T, C, H, W) float32, NaN where an entry is missing, in the file's units.

    times (T,) are as the file has them (datetime64, or cftime's of other calendars); seconds (T,) int64 count from the first; clock and
    day (T,) are the hour of the day and the day of the year, from 0, with fractions.
    """

    about: Fields
    values: NDArray[np.float32]
    times: NDArray[Any]
    seconds: NDArray[np.int64]
    clock: NDArray[np.float64]
    day: NDArray[np.float64]
    notices: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    @property
    def step(self) -> int:
        """Seconds between two fields that follow each other: what most are apart, of equals the shortest."""
        if len(self) < 2:
            return 0
        apart, often = np.unique(np.diff(self.seconds), return_counts=True)
        return int(apart[int(often.argmax())])

    def row(self, seconds: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of each time, -1 where there is none."""
        place = np.searchsorted(self.seconds, seconds).clip(max=len(self) - 1)
        return np.where(self.seconds[place] == seconds, place, -1)

    def said(self, row: int) -> str:
        """The time of a row in ISO 8601."""
        return text(self.times[row])


def text(time: Any) -> str:
    """A time, datetime64 or cftime's, in ISO 8601 to the second."""
    return str(time.astype("datetime64[s]")) if isinstance(time, np.datetime64) else str(time.isoformat())


def is_fields(path: Path) -> bool:
    """Whether a path is a file or folder of fields, by its name."""
    return path.suffix.lower() in SUFFIXES


def read_fields(path: Path, settings: DataSettings) -> Found:
    """The fields of a file as data: each a sample (C, H, W), or with `past` each departure of a forecast, see `ddpm.data.forecast`.

    The last share of the record is held out. Raises: DataError, ConfigError, MissingLibraryError as `read_record`.
    """
    record = read_record(path, settings.fields.variables)
    if settings.fields.past:
        from ddpm.data.forecast import windows

        return windows(record, settings, path.name)
    held = np.flatnonzero(record.seconds >= boundary(record, settings.holdout, path.name))
    train = np.arange(len(record) - len(held))
    about = with_statistics(record, train, held)
    missing = np.isnan(record.values)
    filled = np.where(missing, np.asarray(about.mean, np.float32)[:, None, None], record.values)
    return Found(
        name=path.name,
        kind="array",
        samples=filled,
        cond={"mask": (~missing).astype(np.float32)} if about.gaps else {},
        held=held,
        notices=record.notices,
        fields=about,
    )


def with_statistics(record: Record, train: NDArray[np.int64], held: NDArray[np.int64]) -> Fields:
    """The record's description with mean and deviation of each channel over the training rows, and when they begin and end.

    Raises: DataError for a channel that never changes.
    """
    some = record.values[train].astype(np.float64)
    mean, std = np.nanmean(some, axis=(0, 2, 3)), np.nanstd(some, axis=(0, 2, 3))
    if not std.all():
        name = record.about.names[int(np.argmin(std))]
        raise DataError(f"{name}: the same number everywhere and at all times; leave it out with --variables")
    return replace(
        record.about,
        trained=(record.said(train[0]), record.said(train[-1])),
        held=record.said(held[0]) if len(held) else "",
        gaps=bool(np.isnan(record.values).any()),
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
    )


def boundary(record: Record, share: float, name: str) -> int:
    """Second at which the held-out part begins: the last share of the record, from a midnight on where that moves it by little.

    Raises: DataError where one of the parts would be empty.
    """
    end = int(record.seconds[-1]) + max(record.step, 1)
    if share == 0:
        return end
    cut = end - share * end
    later = record.seconds >= cut
    midnight = later & (record.clock == 0.0) & (record.seconds <= cut + min(DAY, 0.5 * share * end))
    chosen = np.flatnonzero(midnight if midnight.any() else later)
    if not len(chosen) or chosen[0] == 0:
        raise DataError(f"{name}: {len(record)} fields are too few to hold out {share:g} of them; give more, or another --holdout")
    return int(record.seconds[chosen[0]])


def read_record(path: Path, variables: Sequence[str] | None = None) -> Record:
    """All fields of a file, in memory. variables: those wanted, by name; None: all that lie on one grid over time.

    The last two axes are rows and columns (longitude and latitude: the other way round), one axis is time, and a vertical axis makes a
    channel of each level. Fields that are missing as a whole are left out, as if the file had a gap there.

    Raises:
        MissingLibraryError: a library of the extra `fields` is not installed.
        DataError: a file that cannot be read; no such variable; variables on several grids, or along other axes; times that do not rise.
    """
    dataset = open_fields(path)
    try:
        chosen, time = _chosen(dataset, variables, path)
        dataset = _upright(dataset, chosen)
        arrays = [_channels(dataset[name], time, path) for name in chosen]
        values = np.concatenate([one.astype(np.float32) for one, _ in arrays], axis=1)
        levels = [level for _, said in arrays for level in said]
        about = _about(dataset, chosen, [said for _, said in arrays], time, path)
        when = dataset[time]
        accessor = when.dt
        clock = np.asarray(accessor.hour + accessor.minute / 60 + accessor.second / HOUR, dtype=np.float64)
        day = np.asarray(accessor.dayofyear, dtype=np.float64) - 1.0 + clock / 24.0
        calendar = str(accessor.calendar)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise DataError(f"{path}: damaged, or not as its ending says ({first_line(error)})") from error
    finally:
        dataset.close()
    assert len(levels) == values.shape[1]
    infinite = np.isinf(values).reshape(len(values), -1).any(axis=1)
    if infinite.any():
        raise DataError(f"{path}: infinite values at {text(when.values[int(np.argmax(infinite))])}; mark missing entries by NaN instead")
    seconds = _seconds(when.values, path)
    whole = ~np.isnan(values).all(axis=(2, 3)).any(axis=-1)
    lost = int((~whole).sum())
    if lost == len(values):
        raise DataError(f"{path}: every entry of some variable is missing, at all times")
    record = Record(
        about=about, values=values[whole], times=when.values[whole], seconds=seconds[whole] - seconds[whole][0], clock=clock[whole],
        day=day[whole], notices=(f"{lost} fields are missing as a whole; taken for gaps in time",) if lost else (),
    )  # fmt: skip
    return replace(record, about=replace(about, calendar=calendar, step=record.step / HOUR))


def _chosen(dataset: Any, variables: Sequence[str] | None, path: Path) -> tuple[list[str], str]:
    """The variables to read, and the axis of time they share."""
    there = [str(name) for name in dataset.data_vars]
    if unknown := [name for name in variables or () if name not in there]:
        raise DataError(f"{path}: no variable {', '.join(unknown)}; it has {', '.join(there) or 'none'}")
    times = [str(dim) for dim in dataset.dims if dim in dataset.coords and _is_time(dataset[dim])]
    if not times:
        axes = ", ".join(f"{dim} ({size})" for dim, size in dataset.sizes.items())
        raise DataError(f"{path}: no axis of time with a date for each entry; axes: {axes}. Give the axis units such as 'hours since ...'")
    time = "time" if "time" in times else times[0]
    fit = [name for name in variables or there if time in dataset[name].dims and dataset[name].ndim >= 3]
    if variables and len(fit) < len(variables):
        raise DataError(f"{path}: {', '.join(set(variables) - set(fit))}: not over {time} and two axes of a grid")
    if not fit:
        raise DataError(f"{path}: no variable over {time} and two axes of a grid; it has {', '.join(there) or 'none'}")
    grids = {dataset[name].dims[-2:]: name for name in fit}
    if len(grids) > 1:
        said = "; ".join(f"{name} on {' x '.join(map(str, dims))}" for dims, name in grids.items())
        raise DataError(f"{path}: variables on several grids ({said}); choose those of one with --variables")
    return fit, time


def _upright(dataset: Any, chosen: Sequence[str]) -> Any:
    """The dataset with latitudes as rows and longitudes as columns, where its last two axes are these the other way round."""
    *_, rows, columns = dataset[chosen[0]].dims
    if not (_axis(dataset, rows).longitude and _axis(dataset, columns).latitude):
        return dataset
    return dataset.assign({name: dataset[name].transpose(..., columns, rows) for name in chosen})


def _is_time(coordinate: Any) -> bool:
    values = coordinate.values
    return values.ndim == 1 and len(values) > 0 and (values.dtype.kind == "M" or hasattr(values.flat[0], "calendar"))


def _channels(array: Any, time: str, path: Path) -> tuple[NDArray[Any], list[str]]:
    """A variable as (T, channels, H, W), and the level of each channel, "" for none."""
    inner = [dim for dim in array.dims[:-2] if dim != time]
    if time in array.dims[-2:]:
        raise DataError(f"{path}: {array.name} has axes {', '.join(map(str, array.dims))}; its last two must be those of a grid")
    alone = {dim: 0 for dim in inner if array.sizes[dim] == 1 and not _is_vertical(array, dim)}
    array, inner = array.isel(alone), [dim for dim in inner if dim not in alone]
    wrong = [dim for dim in inner if not _is_vertical(array, dim)]
    if wrong or len(inner) > 1:
        raise DataError(
            f"{path}: {array.name} has a further axis {(wrong or inner)[0]} ({array.sizes[(wrong or inner)[0]]}); choose one of it"
        )
    if array.dtype.kind not in "iuf":
        raise DataError(f"{path}: {array.name} is of type {array.dtype}; allowed are numbers")
    if not inner:
        return array.transpose(time, *array.dims[-2:]).values[:, None], [""]
    said = array[inner[0]].values if inner[0] in array.coords else np.arange(array.sizes[inner[0]])
    # all digits of its own type: 5902.058, whether float32 or float64
    return array.transpose(time, inner[0], *array.dims[-2:]).values, [np.format_float_positional(level, trim="-") for level in said]


def _is_vertical(array: Any, dim: str) -> bool:
    attributes = array[dim].attrs if dim in array.coords else {}
    return str(dim).lower() in _VERTICAL or attributes.get("axis") == "Z" or "positive" in attributes


def _about(dataset: Any, chosen: Sequence[str], levels: Sequence[Sequence[str]], time: str, path: Path) -> Fields:
    """The description of the channels and of the grid, without statistics; DataError for variables along several vertical axes."""
    pairs = [(name, level) for name, some in zip(chosen, levels, strict=True) for level in some]
    rows, columns = (str(dim) for dim in dataset[chosen[0]].dims[-2:])
    inner = [(name, dim) for name in chosen for dim in dataset[name].dims[:-2] if dim != time]
    vertical = list(dict.fromkeys(str(dim) for name, dim in inner if _is_vertical(dataset[name], dim)))
    if len(vertical) > 1:
        raise DataError(f"{path}: variables along several vertical axes ({', '.join(vertical)}); choose those of one with --variables")

    def told(attribute: str) -> tuple[str, ...]:
        return tuple(str(dataset[name].attrs.get(attribute, "")) for name, _ in pairs)

    return Fields(
        names=tuple(f"{name}@{level}" if level else name for name, level in pairs), variables=tuple(name for name, _ in pairs),
        levels=tuple(level for _, level in pairs), units=told("units"), standard_names=told("standard_name"), long_names=told("long_name"),
        rows=_axis(dataset, rows), columns=_axis(dataset, columns), time=time, level=vertical[0] if vertical else "",
        vertical=_axis(dataset, vertical[0]) if vertical else None,
    )  # fmt: skip


def _axis(dataset: Any, dim: str) -> Axis:
    """The coordinate of an axis; where it has none, or none of numbers, its entries are counted from 0."""
    size = int(dataset.sizes[dim])
    values = dataset[dim].values if dim in dataset.coords else np.arange(size)
    values = values if values.ndim == 1 and values.dtype.kind in "iuf" else np.arange(size)
    attributes = dataset[dim].attrs if dim in dataset.coords else {}
    told = {key: str(attributes.get(key, "")) for key in ("units", "standard_name", "long_name", "positive")}
    return Axis(name=dim, values=tuple(float(value) for value in values), **told)


def _seconds(times: NDArray[Any], path: Path) -> NDArray[np.int64]:
    """Seconds since the first time; DataError where they do not rise."""
    if times.dtype.kind == "M":
        seconds = (times - times[0]) // np.timedelta64(1, "s")
    else:
        seconds = np.array([round((time - times[0]).total_seconds()) for time in times])
    falls = np.flatnonzero(np.diff(seconds) <= 0)
    if len(falls):
        first, second = (text(times[int(falls[0]) + k]) for k in (0, 1))
        raise DataError(f"{path}: times must rise; {second} comes after {first}. Sort them, and keep one of each")
    return seconds.astype(np.int64)


def refuse_field_settings(settings: DataSettings, name: str) -> None:
    """ConfigError for settings of fields where the data are none, so that none is ignored in silence."""
    usual = DataSettings().fields
    wrong = [key for key in ("variables", "past", "leads", "days") if getattr(settings.fields, key) != getattr(usual, key)]
    if wrong:
        raise ConfigError.of([f"{key}: does not apply to {name}: it is no file of fields ({', '.join(SUFFIXES)})" for key in wrong])
