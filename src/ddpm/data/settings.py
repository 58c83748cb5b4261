"""The settings of the data: a frozen dataclass whose fields are the command line's flags."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

Crop = Literal["centre", "random", "none"]
Normalise = Literal["auto", "range", "standard"]
OnBadImage = Literal["fail", "skip"]
Channels = Literal["auto", "grey", "rgb"]
Layout = Literal["auto", "first", "last"]

_LARGEST_SIDE = 65_536
_COLOURS = {
    "white": "#ffffff",
    "black": "#000000",
    "grey": "#808080",
    "gray": "#808080",
    "red": "#ff0000",
    "green": "#008000",
    "blue": "#0000ff",
}


@dataclass(frozen=True, kw_only=True)
class FieldSettings:
    """Of fields on a grid (NetCDF, Zarr, GRIB): which variables, and what is forecast from what."""

    variables: tuple[str, ...] | None = field(
        default=None, metadata={"help": "of a file of fields: the variables to read, such as t2m,u10; none: all on the same grid"}
    )
    past: int = field(
        default=0, metadata={"help": "of a file of fields: how many each forecast is given; 0: no forecasts, fields by themselves"}
    )
    leads: tuple[float, ...] = field(default=(1.0, 3.0, 6.0, 12.0), metadata={"help": "hours ahead that are forecast, with --past"})
    days: int = field(
        default=0,
        metadata={
            "help": "with --past: departures from the mean change over the same hours of so many days before are forecast; 0: changes"
        },
    )

    def problems(self) -> list[str]:
        """One sentence for each value that cannot be used."""
        found: list[str] = []
        if not _is_whole(self.past) or not 0 <= self.past <= 1000:
            found.append(f"past: got {self.past!r}; allowed is a whole number from 0 to 1000")
        if not _is_whole(self.days) or not 0 <= self.days <= 1000:
            found.append(f"days: got {self.days!r}; allowed is a whole number from 0 to 1000")
        leads = self.leads
        if not isinstance(leads, tuple | list) or not leads or not all(_is_number(lead) and lead > 0 for lead in leads):
            found.append(f"leads: got {leads!r}; allowed are hours above 0, such as 1,3,6,12")
        elif list(leads) != sorted(set(leads)):
            found.append(f"leads: got {leads!r}; give each once, rising")
        elif self.days and max(leads) > 24:
            found.append(f"leads: got {max(leads):g} h with days; the day before knows changes of up to 24 h")
        if self.past == 0 and (self.days or tuple(leads) != (1.0, 3.0, 6.0, 12.0)):
            found.append("past: 0, so nothing is forecast, and leads and days say of what; give --past 2, say")
        if self.variables is not None and not all(isinstance(name, str) and name.strip() for name in self.variables):
            found.append(f"variables: got {self.variables!r}; give names, or none for all")
        return found


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which data to read, and how.

    Nothing is checked when the object is made: `problems()` returns one sentence for every value out of range, so that the
    command line can report all of them together.
    """

    data: str = field(
        default="digits",
        metadata={
            "help": "digits, a folder, .zip or .tar(.gz/.xz) of pictures, shards-{0..9}.tar, .npy/.npz/.safetensors, .nc, .zarr, hf:NAME"
        },
    )
    size: tuple[int, ...] | None = field(
        default=None, metadata={"help": "height and width pictures are resized to; one number means a square"}
    )
    crop: Crop = field(
        default="none",
        metadata={"help": "kept of a picture of another shape: its centre, a random part drawn anew each time, or all of it"},
    )
    flip: bool = field(default=False, metadata={"help": "mirror half of the training samples left to right; wrong for text and digits"})
    holdout: float = field(
        default=0.1, metadata={"help": "share of the samples kept out of training, unless the data have a validation/ folder"}
    )
    normalise: Normalise = field(
        default="auto", metadata={"help": "range: to [-1, 1]; standard: mean 0, standard deviation 1 per channel; auto: range for integers"}
    )
    on_bad_image: OnBadImage = field(
        default="fail", metadata={"help": "fail at the first unreadable pictures, or skip them (at most 1 % of all)"}
    )
    max_pixels: int = field(default=64_000_000, metadata={"help": "refuse pictures with more pixels than this before decoding them"})
    background: str = field(default="white", metadata={"help": "colour that shows through transparent pictures: a name or #rrggbb"})
    labels: str | None = field(
        default=None,
        metadata={
            "help": "labels file (.csv, .jsonl, EDM's .json); auto: the one beside the data, else folder names; none: no labels at all",
            "unset": "auto",
        },
    )
    classes: int | None = field(default=None, metadata={"help": "number of classes, when labels are numbers that must stay below it"})
    beside: str | None = field(
        default=None,
        metadata={"help": "folder or archive of pictures of the same names, which samples are drawn from: sketches, maps of labels"},
    )
    beside_labels: int | None = field(
        default=None, metadata={"help": "of --beside: its levels are labels, so many, each of which becomes a channel"}
    )
    channels: Channels = field(default="auto", metadata={"help": "grey: one channel; rgb: three; auto: one where every picture is grey"})
    layout: Layout = field(
        default="auto", metadata={"help": "where arrays hold their channels; auto: first, except (N,H,W) and 8-bit pictures (N,H,W,3)"}
    )

    memory_share: float = field(
        default=0.5,
        metadata={"help": "share of the memory that decoded pictures may fill; larger sets are decoded at each visit, with equal results"},
    )
    shard_window: int = field(
        default=4, metadata={"help": "shards shuffled together in an epoch; few: nearly sequential reading, many: a better shuffle"}
    )

    fields: FieldSettings = field(default=FieldSettings(), metadata={"help": "of fields on a grid", "flat": True})

    def problems(self) -> list[str]:
        """One sentence for each value that cannot be used; empty when all is well."""
        found = [*self._wrong_numbers(), *self._wrong_size(), *self.fields.problems()]
        choices = {"crop": Crop, "normalise": Normalise, "on_bad_image": OnBadImage, "channels": Channels, "layout": Layout}
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in get_args(allowed):
                found.append(f"{name}: got {value!r}; allowed {', '.join(get_args(allowed))}")
        if not isinstance(self.data, str) or not self.data.strip():
            found.append("data: empty; give digits, a file, a folder or hf:NAME")
        if not isinstance(self.flip, bool):
            found.append(f"flip: got {self.flip!r}; allowed true or false")
        if self.labels is not None and (not isinstance(self.labels, str) or not self.labels.strip()):
            found.append(f"labels: got {self.labels!r}; give a file, auto, or none to ignore labels")
        if self.beside is not None and (not isinstance(self.beside, str) or not self.beside.strip()):
            found.append(f"beside: got {self.beside!r}; give a folder or archive of pictures")
        if self.beside is not None and self.crop == "random":
            found.append("beside: not with crop random, whose parts are drawn anew each time; use centre")
        if not isinstance(self.background, str) or colour(self.background) is None:
            found.append(f"background: got {self.background!r}; give white, black, grey or #rrggbb")
        return found

    def _wrong_numbers(self) -> list[str]:
        found: list[str] = []
        share = self.holdout
        if not _is_number(share) or not 0 <= share < 1:
            found.append(f"holdout: got {share!r}; allowed values lie in [0, 1)")
        if not _is_whole(self.max_pixels) or not 1 <= self.max_pixels <= 2**32:
            found.append(f"max_pixels: got {self.max_pixels!r}; allowed is a whole number from 1 to {2**32}")
        if not _is_number(self.memory_share) or not 0 <= self.memory_share <= 1:
            found.append(f"memory_share: got {self.memory_share!r}; allowed values lie in [0, 1]")
        if not _is_whole(self.shard_window) or not 1 <= self.shard_window <= 1_000_000:
            found.append(f"shard_window: got {self.shard_window!r}; allowed is a whole number from 1 to 1000000")
        if self.beside_labels is not None and (not _is_whole(self.beside_labels) or not 2 <= self.beside_labels <= 256):
            found.append(f"beside_labels: got {self.beside_labels!r}; allowed is a whole number from 2 to 256")
        if self.beside_labels is not None and self.beside is None:
            found.append("beside_labels: counts the labels of maps, and there are none; name them with --beside")
        if self.classes is not None and (not _is_whole(self.classes) or not 1 <= self.classes <= 1_000_000):
            found.append(f"classes: got {self.classes!r}; allowed is a whole number from 1 to 1000000")
        return found

    def _wrong_size(self) -> list[str]:
        size = self.size
        if size is None:
            return [] if self.crop in ("none", None) else [f"crop: got {self.crop!r} without a size; give the size to crop to"]
        if isinstance(size, tuple | list) and len(size) in (1, 2) and all(_is_whole(side) and 1 <= side <= _LARGEST_SIDE for side in size):
            return []
        return [f"size: got {size!r}; allowed are one or two whole numbers from 1 to {_LARGEST_SIDE} (height, width)"]

    @property
    def height_width(self) -> tuple[int, int] | None:
        """The size as (height, width), or None where pictures keep theirs."""
        return None if self.size is None else (self.size[0], self.size[-1])


def colour(text: str) -> tuple[int, int, int] | None:
    """Red, green and blue in 0..255 of `white`, `black`, `grey`, `red`, ... or `#rrggbb`; None where the text is neither."""
    code = _COLOURS.get(text.strip().lower(), text.strip())
    digits = code.removeprefix("#")
    if not code.startswith("#") or len(digits) != 6 or any(digit not in "0123456789abcdefABCDEF" for digit in digits):
        return None
    return int(digits[0:2], 16), int(digits[2:4], 16), int(digits[4:6], 16)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
