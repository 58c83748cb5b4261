"""Captions: a text for each sample, wherever a data set keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ddpm.data.names import Names
from ddpm.errors import DataError

TEXT = "text"  # the column, key, or ending that holds them
SHOWN = 5  # on the card
LONGEST = 100_000  # characters


def captions_of(given: Any, count: int, name: str) -> Names:
    """The captions (count,) of an array or list of texts; DataError for anything else, or another number of them."""
    texts = np.asarray(given)
    if texts.ndim != 1 or len(texts) != count:
        raise DataError(f"{name}: {count} samples but captions of shape {texts.shape}; give a text for each")
    if texts.dtype.kind not in "UT" and not (texts.dtype == object and all(isinstance(text, str) for text in texts)):
        raise DataError(f"{name}: captions of type {texts.dtype}; expected texts (a unicode array, no objects)")
    return packed([str(text) for text in texts], name)


def packed(texts: Sequence[str], name: str) -> Names:
    """Texts as a data set keeps them, without spaces at their ends; DataError for one that is no caption by its length."""
    for i, text in enumerate(texts):
        if len(text) > LONGEST:
            raise DataError(f"{name}: the caption of sample {i} has {len(text):,} characters, over {LONGEST:,}; is it one?")
    return Names.of([text.strip() for text in texts])


def examples(texts: Names | None) -> tuple[str, ...]:
    """The first few different captions, shortened, for the card."""
    if texts is None:
        return ()
    first = dict.fromkeys(texts[i] for i in range(min(len(texts), 200)))
    return tuple(text if len(text) <= 80 else f"{text[:77]}..." for text in first if text)[:SHOWN]


def blank(texts: Names) -> int:
    """How many samples have none."""
    ends = texts.ends
    return int((np.diff(ends, prepend=0) == 0).sum())
