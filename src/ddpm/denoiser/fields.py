"""What a model keeps of the fields it was trained on: names, units, places and times, and what turns its samples into fields again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A coordinate of the fields: its name and attributes, and where its entries lie."""

    name: str
    values: tuple[float, ...]
    units: str = ""
    standard_name: str = ""
    long_name: str = ""
    positive: str = ""  # "up" or "down", of a vertical axis

    @property
    def latitude(self) -> bool:
        """Whether it is one, by its units, standard name or name (CF conventions, section 4.1)."""
        return self._is("north", ("latitude", "grid_latitude"), ("lat", "latitude", "rlat"))

    @property
    def longitude(self) -> bool:
        """Whether it is one, likewise."""
        return self._is("east", ("longitude", "grid_longitude"), ("lon", "longitude", "rlon"))

    @property
    def circle(self) -> bool:
        """Whether it is longitudes that go all round the Earth, evenly."""
        values = self.values
        if len(values) < 3 or not self.longitude:
            return False
        step = values[1] - values[0]
        even = all(math.isclose(after - before, step, rel_tol=1e-3) for before, after in pairwise(values))  # files hold them in float32
        return even and math.isclose(abs(step) * len(values), 360.0, abs_tol=1e-3 * abs(step) * len(values))

    def _is(self, way: str, standard: tuple[str, ...], names: tuple[str, ...]) -> bool:
        said = self.units.lower().replace("s_", "_")
        unit = said in (f"degree_{way}", f"degree_{way[0]}", f"degree{way[0]}", f"degrees{way[0]}")
        return unit or self.standard_name in standard or self.name.lower() in names


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Fields (T, C, H, W) on a grid: a channel is a variable, or one level of it. Statistics are of the training part, per channel.

    With `past` a sample is no field but a departure, (x(start + lead) - expected) / scale[lead, channel].
    """

    names: tuple[str, ...]  # of the channels: "t2m", or "t@850" where a variable has levels
    variables: tuple[str, ...]  # the variable of each channel, as its file calls it
    levels: tuple[str, ...]  # its level, "" where it has none
    units: tuple[str, ...]
    standard_names: tuple[str, ...]
    long_names: tuple[str, ...]
    rows: Axis
    columns: Axis
    level: str = ""  # name of the vertical axis
    vertical: Axis | None = None  # its coordinate; None where no variable has levels, and of older models
    time: str = "time"  # name of the axis of time
    calendar: str = "standard"
    step: float = 1.0  # hours between two fields
    trained: tuple[str, str] = ("", "")  # first and last time of the training part
    held: str = ""  # first time of the held-out part; "" where nothing is held out
    past: int = 0  # fields a forecast is given, the newest that of its start; 0: a sample is a field by itself
    leads: tuple[float, ...] = ()  # hours from the start to what is forecast
    days: int = 0  # before the start, whose mean change over the same hours is expected again; 0: no change is
    season: bool = False  # whether a forecast is told the day of the year
    gaps: bool = False  # whether entries may be missing, and a forecast is told which
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()  # of the departures, lead by lead, channel by channel

    def scale(self, lead: float) -> tuple[float, ...]:
        """The root mean square of the departures at this lead, per channel, in their units."""
        first = self.leads.index(lead) * len(self.names)
        return self.scales[first : first + len(self.names)]
