"""Captions, or reference pictures, as tokens of a frozen encoder: made once, kept in the folder for caches, and read from there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.cache import folder
from ddpm.data.dataset import Dataset, Named
from ddpm.denoiser import Denoiser
from ddpm.errors import ConfigError, DataError
from ddpm.networks.encoders import EncoderSettings
from ddpm.networks.encoders.encoder import Encoder, open_encoder
from ddpm.networks.encoders.words import vocabulary
from ddpm.training.distributed.world import World
from ddpm.training.row_cache import fill, place
from ddpm.training.state import digest_of
from ddpm.training.text import TextSettings

SHARD = 1024  # texts or pictures of a file
VERSION = 1  # of what the cache holds
UNUSED = "has {count:,} captions, which are not used; --text words, or --text FOLDER of an encoder, has the model told by them"

Say = Callable[[str], None]


class Tokens:
    """The condition "tokens" of every row, (N, L, E) float32, zeros where a row has fewer than L; equal captions are kept once.

    Files hold the tokens of `SHARD` texts end to end, (sum of L_i, E) float16, mapped, and where each ends. which (N,): each row's text.
    In place of an array.
    """

    def __init__(self, path: Path, which: NDArray[np.int64], size: int) -> None:
        names = sorted(path.glob(f"{'[0-9]' * 6}.npy"))
        self.parts = [np.load(name, mmap_mode="r") for name in names]
        self.ends = [np.load(name.with_name(f"{name.stem}-ends.npy")) for name in names]
        self.which = which
        longest = max((int(np.diff(ends, prepend=0).max()) for ends in self.ends), default=0)
        self.shape: tuple[int, ...] = (len(which), max(1, longest), size)
        self.dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        wanted = self.which[rows]
        out = np.zeros((*wanted.shape, *self.shape[1:]), np.float32)
        flat = out.reshape(-1, *self.shape[1:])
        for row, text in enumerate(np.atleast_1d(wanted).tolist()):
            shard, number = divmod(text, SHARD)
            ends = self.ends[shard]
            tokens = self.parts[shard][int(ends[number - 1]) if number else 0 : int(ends[number])]
            flat[row, : len(tokens)] = tokens
        return out


def encoder_of(dataset: Dataset, settings: TextSettings) -> EncoderSettings:
    """The encoder that the settings name, for these data: of words, those of the captions that are trained on.

    Raises: ConfigError for one that does not suit the data, or is not there; MissingLibraryError without `transformers`.
    """
    if settings.reference is not None:
        from ddpm.networks.encoders.pictures import picture_settings

        return picture_settings(settings.reference, _levels(dataset))
    if dataset.texts is None:
        raise ConfigError(
            f"text: {dataset.card.name} has no captions; give them as a column `text` of a labels file, as .txt files in shards, or as key "
            "`text` of arrays"
        )
    if settings.encoder == "words":
        texts = dataset.texts
        return vocabulary((texts[int(row)] for row in dataset.train_rows), settings.size, settings.length, settings.around)
    from ddpm.networks.encoders.text import text_settings

    return text_settings(str(settings.encoder), settings.length)


def _levels(dataset: Dataset) -> tuple[float, float]:
    """What is black and what is white in the pictures that a tower is shown."""
    card, shown = dataset.card, dataset.cond.get("image")
    if shown is None:
        return card.bins or (min(card.low), max(card.high))
    return (0.0, 255.0) if shown.dtype == np.uint8 else (float(np.min(shown)), float(np.max(shown)))


def with_tokens(dataset: Dataset, about: EncoderSettings, say: Say = lambda _: None, *, cache: Path | None = None,
                world: World | None = None, device: str = "cpu") -> Dataset:  # fmt: skip
    """The data set with the condition "tokens" that an encoder makes of its captions, or of its pictures; made now unless the cache has
    them. A tower of pictures reads the image condition, where there is one, which is then no longer laid beside the samples.

    Held-out captions may have words that the encoder does not know: these are left out, and what is too long is cut; both are counted.

    Raises: ConfigError for data without a fingerprint or without captions, or an encoder that is not there; DiskError.
    """
    before = dataset.card.tokens
    if before is not None and before.identity != about.identity:
        raise ConfigError(
            f"{about.flag}: {dataset.card.name} was opened with another encoder, {before.asked}, not {about.asked}; open it anew"
        )
    if before is not None:
        return dataset
    if not dataset.card.fingerprint:
        raise ConfigError(f"{about.flag}: the data have no fingerprint to keep their tokens under; open them by ddpm.data")
    picture = about.kind == "picture"
    texts, which = ([], np.arange(len(dataset))) if picture else _different(dataset)
    count = len(dataset) if picture else len(texts)
    described = {"version": VERSION, "data": dataset.card.fingerprint, "encoder": about.identity, "count": count}
    path = (cache or folder()) / "tokens" / digest_of({}, json.dumps(described, sort_keys=True))
    opened: list[Encoder] = []

    def write(number: int) -> None:
        file, some = path / f"{number:06d}.npy", range(number * SHARD, min((number + 1) * SHARD, count))
        if file.is_file():
            return
        if not opened:
            opened.append(open_encoder(about, None, device))
        made = opened[0].encode(_pictures(dataset, some) if picture else [texts[i] for i in some])
        ends = np.cumsum([len(one) for one in made], dtype=np.int64)
        place(path / f"{number:06d}-ends.npy", lambda handle: np.save(handle, ends))
        place(file, lambda handle: np.save(handle, np.concatenate(made)))

    def told(number: int) -> str:
        return f"reading {dataset.card.name} by {about.title}: {min((number + 1) * SHARD, count):,} of {count:,}"

    fill(path, described, -(-count // SHARD), write, f"tokens of {dataset.card.name}", told, say, world or World())
    card = replace(dataset.card, tokens=about, image_channels=0 if picture else dataset.card.image_channels)
    cond = {key: values for key, values in dataset.cond.items() if not (picture and key == "image")}
    return replace(dataset, card=card, cond={**cond, "tokens": Tokens(path, which, about.size)})


def told_by(dataset: Dataset, denoiser: Denoiser) -> Dataset:
    """The data set with the tokens that a model is told by; as it is where the model takes none, or the data have no captions."""
    about = denoiser.text
    if about is None or (about.kind != "picture" and dataset.texts is None):
        return dataset
    return with_tokens(dataset, about)


def tokenised(
    dataset: Dataset, settings: TextSettings, conditional: bool, say: Say, world: World | None = None, device: str = "cpu"
) -> Dataset:
    """The data set as a run is told of it: with tokens where an encoder is asked for, and what is to be said of its captions said.

    Raises: as `encoder_of` and `with_tokens`.
    """
    card = dataset.card
    if card.tokens is not None:
        return dataset
    if not settings.wanted or not conditional:
        if card.captions and conditional:
            say(f"{card.name}: {UNUSED.format(count=card.captions)}")
        return dataset
    about = encoder_of(dataset, settings)
    if about.kind != "picture":
        for line in faults(dataset, open_encoder(about, None, device)):
            say(f"{card.name}: {line}")
    return with_tokens(dataset, about, say, world=world, device=device)


def faults(dataset: Dataset, encoder: Encoder) -> Iterator[str]:
    """What of the captions the encoder does not tell, counted, in words."""
    texts, which = _different(dataset)
    often = np.bincount(which, minlength=len(texts))
    counts: Counter[str] = Counter()
    for text, number in zip(texts, often.tolist(), strict=True):
        found = encoder.faults(text)
        counts["cut"] += number * any("shorten" in reason for reason in found)
        counts["unknown"] += number * any("unknown" in reason or "know" in reason for reason in found)
        counts["blank"] += number * (not text)
    words = {
        "cut": f"captions are longer than {encoder.about.length} tokens and cut (--text-length)",
        "unknown": "held-out captions have words that no training caption has; these are left out",
        "blank": "samples have no caption; they are trained on as if it were hidden",
    }
    return (f"{counts[kind]:,} {line}" for kind, line in words.items() if counts[kind])


def _different(dataset: Dataset) -> tuple[Sequence[str], NDArray[np.int64]]:
    """The different captions, in order, and which of them each row has (N,)."""
    texts: Named | None = dataset.texts
    if texts is None:
        raise DataError(f"{dataset.card.name}: has no captions, and this model is told by them")
    found: dict[str, int] = {}
    which = np.array([found.setdefault(texts[i], len(found)) for i in range(len(texts))], dtype=np.int64)
    return list(found), which


def _pictures(dataset: Dataset, rows: range) -> NDArray[Any]:
    """What a tower is shown for the rows: the image condition where there is one, else the samples."""
    shown = dataset.cond.get("image")
    return dataset.batch(np.asarray(rows))[0] if shown is None else np.asarray(shown[rows.start : rows.stop])
