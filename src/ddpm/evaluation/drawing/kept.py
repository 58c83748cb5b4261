"""Samples on the disk as they are drawn: a call that was interrupted leaves whole files, and the same call again goes on behind them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm.errors import ConfigError
from ddpm.training.checkpoints import storage

if TYPE_CHECKING:
    from numpy.typing import NDArray

MANIFEST = "manifest.json"
SUFFIXES = (".png", ".npz", ".zip", ".tar")
UNFINISHED = ".unfinished"  # beside the samples until the call has ended: what was asked for, and the batches drawn so far


class Drawn:
    """The folder of one call and the batches in it; a batch counts once its file has its name."""

    def __init__(self, folder: Path, request: str, *, featured: bool = False) -> None:
        self.folder, self.request, self.featured = folder, request, featured  # featured: each batch has its features beside it
        self._parts = folder / UNFINISHED

    @classmethod
    def open(cls, asked: Path | None, usual: Path, call: Sequence[Any], *, featured: bool = False) -> Drawn:
        """The folder asked for, or the next usual one, that is free or holds what this very call had begun.

        call: everything the samples depend on, as JSON can hold it. Raises: ConfigError where the folder asked for holds other samples.
        """
        request = hashlib.sha256(json.dumps(call).encode()).hexdigest()
        for folder in _places(asked, usual):
            drawn = cls(folder, request, featured=featured)
            if drawn._begun() or not _taken(folder):
                return drawn
        raise _refusal(asked)

    def _begun(self) -> bool:
        try:
            return (self._parts / "request").read_text(encoding="utf-8").strip() == self.request
        except (OSError, ValueError):
            return False

    def _files(self, kind: str = "from") -> Iterator[Path]:
        yield from sorted(self._parts.glob(f"{kind}-*.npy"))

    def begin(self) -> None:
        """Make the folder, where it has not been begun. Raises: OSError."""
        if not self._begun():
            self._parts.mkdir(parents=True, exist_ok=True)
            storage.replace_text(self._parts / "request", self.request + "\n")

    @property
    def samples(self) -> int:
        """How many samples of this call have been drawn and written."""
        return sum(map(len, self.parts())) if self._begun() else 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return next(self.parts()).shape[1:]

    def _place(self, first: int, kind: str = "from") -> Path:
        return self._parts / f"{kind}-{first:09d}.npy"

    def has(self, first: int) -> bool:
        """Whether the batch that begins with sample number `first` is there."""
        kinds = ("features", "from") if self.featured else ("from",)
        return self._begun() and all(self._place(first, kind).is_file() for kind in kinds)

    def add(self, first: int, samples: NDArray[Any], features: NDArray[Any] | None = None) -> None:
        """Keep the batch that begins with sample number `first`, and what an extractor made of it. Raises: OSError."""
        import numpy as np

        for kind, values in (("features", features), ("from", samples)):  # the samples last: a batch that has them is whole
            if values is None:
                continue
            path = self._place(first, kind)
            aside = path.with_suffix(".tmp")
            with aside.open("wb") as file:
                np.save(file, values, allow_pickle=False)
            aside.replace(path)

    def features(self) -> NDArray[Any]:
        """Of every sample, in order. Raises: OSError."""
        import numpy as np

        return np.concatenate([np.load(path, allow_pickle=False) for path in self._files("features")])

    def parts(self) -> Iterator[NDArray[Any]]:
        """The batches, in order, read from their files when they are used. Raises: OSError."""
        import numpy as np

        return (np.load(path, mmap_mode="r", allow_pickle=False) for path in self._files())

    def all(self) -> NDArray[Any]:
        """Every sample, in order. Raises: OSError."""
        import numpy as np

        return np.concatenate(list(self.parts()))

    def some(self, numbers: Sequence[int]) -> NDArray[Any]:
        """The samples of these rising numbers. Raises: OSError."""
        import numpy as np

        wanted, found, first = np.asarray(numbers), [], 0
        for part in self.parts():
            here = wanted[(wanted >= first) & (wanted < first + len(part))] - first
            found.append(part[here])
            first += len(part)
        return np.concatenate(found)

    def wait(self, wanted: int, seconds: float = 0.2) -> None:
        """Until the other processes have drawn their shares; torchrun ends this one where one of them fails. Raises: ConfigError."""
        while self.samples < wanted:
            if rank()[1] == 1 or not self._begun():
                raise ConfigError(f"{self.folder}: ended by another copy of this very command, which has what was drawn; look there")
            time.sleep(seconds)

    def describe(self, what: Mapping[str, Any]) -> Path:
        """manifest.json: what was asked for, and the SHA-256 of every file, so that a copy can be checked. Raises: OSError."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file() and UNFINISHED not in path.parts and path.name != MANIFEST)
        sums = {path.relative_to(self.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        storage.replace_text(self.folder / MANIFEST, json.dumps({**what, "files": sums}, indent=1) + "\n")
        return self.folder / MANIFEST

    def end(self) -> None:
        """The samples are written out: the batches may go."""
        with suppress(OSError):
            (self._parts / "request").unlink(missing_ok=True)  # first: what is half removed must not be continued
        shutil.rmtree(self._parts, ignore_errors=True)

    def left(self, wanted: int) -> str:
        """After an interruption: what is there and what to do; half a file, or a folder without samples, is not left behind."""
        done = self.samples
        for torn in self.folder.rglob(".*.tmp"):
            with suppress(OSError):
                torn.unlink()
        with suppress(OSError):
            if not done and list(self.folder.iterdir()) == [self._parts]:
                self.end()
                self.folder.rmdir()
        return f"wrote {done} of {wanted} in {self.folder}; the same command continues"


def rank() -> tuple[int, int]:
    """Number of this process and how many there are, as torchrun says: (0, 1) alone."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def free_folder(asked: Path | None, usual: Path) -> Path:
    """Where samples go, never among those of another call: the folder asked for, refused where it holds samples, or the next free usual
    one.
    """
    for folder in _places(asked, usual):
        if not _taken(folder):
            return folder
    raise _refusal(asked)


def _places(asked: Path | None, usual: Path) -> Iterator[Path]:
    later = (usual.with_name(f"{usual.name}-{number}") for number in count(2))
    yield from chain([usual], later) if asked is None else [asked]


def _taken(folder: Path) -> bool:
    names = (UNFINISHED, "report.json")
    return folder.is_dir() and any(path.suffix in SUFFIXES or path.name in names for path in folder.rglob("*"))


def _refusal(asked: Path | None) -> ConfigError:
    return ConfigError(f"--out: {asked} holds samples already; name another folder, so that the two do not mix")
