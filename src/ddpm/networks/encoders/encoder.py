"""The one form all encoders have, and how one is opened."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.errors import ConfigError
from ddpm.networks.encoders.settings import EncoderSettings
from ddpm.networks.encoders.words import Words

Tokens = NDArray[np.float16]


class Encoder(Protocol):
    """A frozen encoder: texts, or pictures (N, C, H, W) in the data's units, to tokens."""

    about: EncoderSettings

    def encode(self, inputs: Any) -> list[Tokens]:
        """(L_i, E) of each, at most `about.length`; none of a blank text. Longer texts are cut, unknown words left out."""
        ...

    def faults(self, text: str) -> list[str]:
        """Why a text is not told as it stands, a reason each; empty where it is."""
        ...


@lru_cache(maxsize=2)
def open_encoder(about: EncoderSettings, folder: str | Path | None = None, device: str = "cpu") -> Encoder:
    """The encoder that a model or a data card describes; folder: where its files are now, if not where they were.

    Raises: ConfigError where the files are missing, or those of another encoder; MissingLibraryError without `transformers`.
    """
    if about.kind == "words":
        return Words(about)
    from ddpm.networks.encoders.files import check_files
    from ddpm.networks.encoders.pictures import PictureTower
    from ddpm.networks.encoders.text import TextTower

    place = Path(folder or about.folder).expanduser()
    check_files(about, place)
    return (TextTower if about.kind == "text" else PictureTower)(about, place, torch.device(device))


def padded(tokens: Sequence[Tokens], size: int) -> NDArray[np.float32]:
    """(N, L, E), zeros behind the tokens of each; L the longest's, at least 1."""
    out = np.zeros((len(tokens), max([1, *map(len, tokens)]), size), np.float32)
    for row, one in zip(out, tokens, strict=True):
        row[: len(one)] = one
    return out


def short(text: str) -> str:
    """A text in a message."""
    return repr(text) if len(text) <= 60 else f"{text[:57]!r}..."


def refuse(encoder: Encoder, texts: Sequence[str], what: str) -> None:
    """ConfigError naming every text, of those a person asks for, that the encoder cannot tell as it stands."""
    found = [f"{what}: {short(text)}: {reason}" for text in dict.fromkeys(texts) for reason in encoder.faults(text)]
    if found:
        raise ConfigError.of(found)
