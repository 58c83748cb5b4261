"""The index of data that stay in their files: found and examined once, kept, and used again while no file and no setting has changed.

Kept in $DDPM_CACHE, or else in the user's folder for caches (`~/.cache/ddpm` on Linux), never beside the data; one file for each data set
and settings. It is written aside and renamed, and begins with the SHA-256 of the rest: it is whole or counts as absent.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import __version__ as pillow_version

from ddpm.cache import folder
from ddpm.data.dataset import Dataset
from ddpm.data.demand import Files, OnDemand, OnDemandCrops, Stamp, TarFiles, stamp
from ddpm.data.hub import HubFiles, hub_files
from ddpm.data.lsun import FILE, files_of, is_lmdb
from ddpm.data.names import Names
from ddpm.data.ragged import allowance
from ddpm.data.settings import DataSettings
from ddpm.data.shard_arrays import ArrayDecoder
from ddpm.data.shards import find_shards
from ddpm.data.sources import listed
from ddpm.data.store import PictureDecoder
from ddpm.denoiser.card import Card
from ddpm.errors import DDPMError

_HEAD = b"ddpm data index 3\n"


@dataclass(frozen=True)
class Index:
    """The place of one data set's index, and what the data looked like before they were read."""

    path: Path
    state: str
    root: Path
    stamps: list[Stamp]

    @classmethod
    def of(cls, settings: DataSettings) -> Index | None:
        """The index of the data that the settings name; None for data of a kind that is always held in memory, that have other pictures
        beside them, or that are not there.

        The state is made of name, size and time of change of every file, of all settings, and of the versions that decide what is decoded.
        """
        if settings.beside is not None:
            return None
        try:
            found = _source(settings)
            labels = [] if settings.labels in (None, "none") else [stamp(Path(), str(Path(settings.labels).expanduser()))]
        except (DDPMError, OSError):
            return None  # the reader says what is wrong
        if found is None:
            return None
        kind, root, stamps = found
        asked = [asdict(settings), str(root.resolve()), kind]
        name = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]
        # which pictures stay in their files depends on the memory; shards always do
        limit = 0 if kind == "shards" else allowance(settings.memory_share)
        state = hashlib.sha256(json.dumps([asked, limit, labels, pillow_version, np.__version__]).encode())
        for one in stamps:
            state.update(f"{one}\n".encode("utf-8", "surrogateescape"))
        return cls(folder() / f"{name}.index", state.hexdigest(), root, stamps if kind != "folder" else [])

    def load(self, settings: DataSettings) -> Dataset | None:
        """The data set, without a look at any sample; None where the index is absent, damaged, or of other files or settings."""
        try:
            raw = self.path.read_bytes()
            head, digest, rest = raw[: len(_HEAD)], raw[len(_HEAD) : len(_HEAD) + 32], raw[len(_HEAD) + 32 :]
            if head != _HEAD or hashlib.sha256(rest).digest() != digest:
                return None
            with np.load(io.BytesIO(rest), allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            about = json.loads(arrays.pop("about").tobytes())
            return self._dataset(about, arrays, settings) if about["state"] == self.state else None
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    def save(self, dataset: Dataset) -> None:
        """Keeps a data set whose samples stay in their files. An index that cannot be written is done without."""
        samples = dataset.samples
        if not isinstance(samples, OnDemand):
            return
        decoder = samples.decoder
        about = {
            "state": self.state,
            "card": asdict(dataset.card),
            "decoder": [decoder.channels, decoder.itemsize] if isinstance(decoder, PictureDecoder) else None,
            "crops": isinstance(samples, OnDemandCrops),
            "shape": samples.shape[1:],
            "dtype": samples.dtype.str,
            "title": samples.title,
            "window": samples.window,
        }
        arrays = {f"file {name}": values for name, values in samples.files.arrays().items()}
        arrays |= {f"cond {name}": values for name, values in dataset.cond.items()}
        arrays |= {"numbers": samples.numbers, "train": dataset.train_rows, "held": dataset.held_rows}
        arrays |= {} if dataset.keys is None else {"keys": dataset.keys}
        texts = dataset.texts
        arrays |= {"texts": texts.block, "texts end": texts.ends} if isinstance(texts, Names) else {}
        block = io.BytesIO()
        np.savez(block, allow_pickle=False, about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8), **arrays)
        rest = block.getvalue()
        _write(self.path, _HEAD + hashlib.sha256(rest).digest() + rest)

    def _dataset(self, about: dict[str, Any], arrays: dict[str, Any], settings: DataSettings) -> Dataset:
        known = {name.removeprefix("file "): values for name, values in arrays.items() if name.startswith("file ")}
        files: Files
        if "shard" in known:
            names = Names(known["names"], known["ends"])
            files = TarFiles(self.root, self.stamps, known["shard"], known["offset"], known["size"], names)
        elif "names" in known:
            files = files_of(self.root, Names(known["names"], known["ends"]))
        else:
            files = HubFiles.of(settings.data)
        decoder = ArrayDecoder(settings.layout) if about["decoder"] is None else PictureDecoder(settings, *about["decoder"])
        kind = OnDemandCrops if about["crops"] else OnDemand
        shape, dtype = tuple(about["shape"]), np.dtype(about["dtype"])
        card: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in about["card"].items()}
        return Dataset(
            card=Card(**card),
            samples=kind(files, arrays["numbers"], decoder, shape, dtype, about["title"], about["window"]),
            cond={name.removeprefix("cond "): values for name, values in arrays.items() if name.startswith("cond ")},
            train_rows=arrays["train"],
            held_rows=arrays["held"],
            flip=settings.flip,
            keys=arrays.get("keys"),
            texts=Names(arrays["texts"], arrays["texts end"]) if "texts" in arrays else None,
        )


def _source(settings: DataSettings) -> tuple[str, Path, list[Stamp]] | None:
    """Kind, folder and files of data that may stay in their files."""
    hub = hub_files(settings.data)
    if hub is not None:
        return "hub", Path(), hub
    if (shards := find_shards(settings.data)) is not None:
        return "shards", shards.root, shards.stamps
    path = Path(settings.data).expanduser()
    if is_lmdb(path):
        return "lmdb", path, [stamp(path, FILE)]
    if path.is_dir():
        return "folder", path, [stamp(path, name) for name, _ in listed(path)]
    return ("tar", path.parent, [stamp(path.parent, path.name)]) if path.name.lower().endswith(".tar") and path.is_file() else None


def _write(path: Path, data: bytes) -> None:
    aside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}.", delete=False) as file:
            aside = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        if aside is not None:
            aside.unlink(missing_ok=True)
