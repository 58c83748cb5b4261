"""Shards whose samples are `.npy` arrays of one shape: signals, fields and volumes, or latents made beforehand."""

from __future__ import annotations

import io
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.data.arrays import bins_of, channels_second, is_pictures, numbers_of
from ddpm.data.decode import Unreadable
from ddpm.data.demand import OnDemand, Stamp, TarFiles
from ddpm.data.found import Found
from ddpm.data.labelling import label
from ddpm.data.names import Names, natural, places
from ddpm.data.pictures import Paths, judge
from ddpm.data.settings import DataSettings, Layout
from ddpm.data.sources import Member
from ddpm.errors import ConfigError, DataError

_DAMAGE = (ValueError, OSError, EOFError, SyntaxError, MemoryError)


class ArrayDecoder:
    """Bytes of a .npy file to a sample (C, *axes), its channels found as `read_arrays` finds them; pickled objects are never loaded."""

    def __init__(self, layout: Layout) -> None:
        self._layout: Layout = layout

    def __call__(self, data: bytes, /) -> NDArray[Any]:
        try:
            sample = np.load(io.BytesIO(data), allow_pickle=False)
            if not isinstance(sample, np.ndarray):
                raise Unreadable("not a .npy array")
            return np.ascontiguousarray(channels_second(numbers_of(sample[None], "the array"), self._layout, "the array")[0][0])
        except DataError as error:
            raise Unreadable(str(error)) from error
        except _DAMAGE as error:
            raise Unreadable("not a readable .npy array of numbers") from error


@dataclass
class ArrayScan:
    """What one pass over the arrays of shards gave."""

    decoder: ArrayDecoder
    names: list[str] = field(default_factory=list)
    places: array[int] = field(default_factory=lambda: array("q"))  # shard, offset and size of each
    forms: dict[tuple[tuple[int, ...], np.dtype[Any]], str] = field(default_factory=dict)  # and the first array that has it
    limits: tuple[Any, Any] | None = None
    bad: list[tuple[str, str]] = field(default_factory=list)

    def add(self, member: Member) -> None:
        """Takes note of an array."""
        data = member.open()
        if not isinstance(data, bytes):
            with data:
                data = data.read()
        try:
            sample = self.decoder(data)
        except Unreadable as error:
            self.bad.append((member.name, str(error)))
            return
        self.forms.setdefault((sample.shape, sample.dtype), member.name)
        low, high = sample.min(), sample.max()
        self.limits = (low, high) if self.limits is None else (min(low, self.limits[0]), max(high, self.limits[1]))
        self.names.append(member.name)
        self.places.extend((member.shard, member.offset, member.size))

    def found(self, root: Path, stamps: list[Stamp], title: str, settings: DataSettings, bad_files: Path | None, paths: Paths) -> Found:
        """The arrays as data. Raises DataError for unreadable ones and several shapes or types, ConfigError for settings of pictures."""
        asked = {"size": settings.size is not None, "crop": settings.crop != "none", "channels": settings.channels != "auto"}
        if wrong := [f"{key}: does not apply to {title}: its shards hold arrays, not pictures" for key, is_set in asked.items() if is_set]:
            raise ConfigError.of(wrong)
        skipped = judge(self.bad, len(self.names) + len(self.bad), title, settings, bad_files, "arrays")
        if len(self.forms) > 1:
            shown = "; ".join(f"{dtype} {shape} as {name}" for (shape, dtype), name in list(self.forms.items())[:5])
            raise DataError(f"{title}: arrays of {len(self.forms):,} shapes or types ({shown}); all samples must be alike")
        ((shape, dtype),) = self.forms
        where = places(paths(self.names))
        order = [i for i in sorted(range(len(self.names)), key=lambda i: natural(self.names[i])) if not where.left_out[i]]
        shard, offset, size = np.array(self.places, dtype=np.int64).reshape(-1, 3).T.copy()
        files = TarFiles(root, stamps, shard, offset, size, Names.of(self.names))
        unused = {where.inner[i] for i, out in enumerate(where.left_out) if out}
        labels = label({}, where, order, unused, settings)
        held = np.flatnonzero([where.held[i] for i in order]).astype(np.int64)
        return Found(
            name=title,
            kind="image" if is_pictures(dtype, (1, *shape)) else "array",
            samples=OnDemand(files, np.array(order, dtype=np.int64), self.decoder, shape, dtype, title, settings.shard_window),
            cond=labels.cond,
            classes=labels.classes,
            vector=labels.vector,
            tags=labels.tags,
            bins=bins_of(np.array(self.limits, dtype=dtype), None, title),
            held=held if len(held) else None,
            unreadable=skipped,
            notices=labels.notices,
        )
