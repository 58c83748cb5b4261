"""`--beside`: pictures of the same names laid beside the samples, as their condition image: sketches, depth, maps of labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.data.found import Found
from ddpm.data.settings import DataSettings
from ddpm.errors import DataError


def image_condition(raw: NDArray[Any], labels: int | None, where: str) -> NDArray[np.float32]:
    """What the network is shown of pictures (N, C, H, W) of unsigned integers: their range as -1..1; or, of maps of labels, a channel for
    each of the labels 0..labels-1, 1 where it is and else 0.

    Raises: DataError for maps of several channels, or labels that are not below the number of them.
    """
    if labels is None:
        half = float(np.iinfo(raw.dtype).max) / 2.0
        return (raw / half - 1.0).astype(np.float32)
    if raw.shape[1] != 1:
        raise DataError(
            f"{where}: maps of labels have one channel, these have {raw.shape[1]}; save them grey, the label as the level, no palette"
        )
    if int(raw.max()) >= labels:
        raise DataError(f"{where}: holds the label {int(raw.max())}; there are {labels} (0-{labels - 1}), as --beside-labels says")
    return (raw == np.arange(labels, dtype=raw.dtype).reshape(1, -1, 1, 1)).astype(np.float32)


def with_beside(found: Found, settings: DataSettings, read: Callable[[DataSettings], Found]) -> Found:
    """The samples with the pictures of `settings.beside`, which `read` reads, as their condition image.

    A picture belongs to the sample of the same name, folders included, endings aside.

    Raises: DataError for samples in no files or larger than the memory, and for pictures missing or of another size.
    """
    if settings.beside is None:
        return found
    if found.names is None:
        raise DataError(
            f"{found.name}: --beside needs pictures in files, decoded in memory (see --memory-share); give other data an 'image'"
        )
    smooth = settings.beside_labels is None
    asked = replace(
        settings, data=settings.beside, beside=None, labels="none", channels="auto", memory_share=1.0,
        size=settings.size if smooth else None, crop=settings.crop if smooth else "none",
    )  # fmt: skip
    pictures = read(asked)
    if pictures.names is None:
        raise DataError(f"{settings.beside}: --beside needs pictures in files, which fit in memory")
    rows: dict[str, int] = {}
    for i in range(len(pictures.samples)):
        other = rows.setdefault(_stem(pictures.names[i]), i)
        if other != i:
            raise DataError(f"{settings.beside}: {pictures.names[other]} and {pictures.names[i]} have one name, endings aside; keep one")
    missing = [found.names[i] for i in range(len(found.samples)) if _stem(found.names[i]) not in rows]
    if missing:
        more = f" (and {len(missing) - 5} more)" if len(missing) > 5 else ""
        raise DataError(f"{settings.beside}: has no picture for {', '.join(missing[:5])}{more}; names must agree, endings aside")
    order = [rows[_stem(found.names[i])] for i in range(len(found.samples))]
    raw = np.asarray(pictures.samples[np.array(order)])
    if raw.shape[2:] != tuple(found.samples.shape[2:]):
        advice = "" if smooth else "; maps of labels are not resized, since a smooth filter would make labels that are not there"
        raise DataError(f"{settings.beside}: pictures of {raw.shape[2:]}, the samples are {tuple(found.samples.shape[2:])}{advice}")
    image = image_condition(raw, settings.beside_labels, settings.beside)
    said = f"{settings.beside}: laid beside the samples, {image.shape[1]} channels"
    return replace(found, cond={**found.cond, "image": image}, notices=(*found.notices, said))


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))
