"""Samples on the disk as they are drawn: a call that was interrupted leaves whole files, and the same call again goes on behind them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm.errors import ConfigError
from ddpm.training.checkpoints import storage

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNFINISHED = ".unfinished"  # beside the samples until the call has ended: what was asked for, and the batches drawn so far


class Drawn:
    """The folder of one call and the batches in it; a batch counts once its file has its name."""

    def __init__(self, folder: Path, request: str) -> None:
        self.folder, self.request = folder, request
        self._parts = folder / UNFINISHED

    @classmethod
    def open(cls, asked: Path | None, usual: Path, call: Sequence[Any]) -> Drawn:
        """The folder asked for, or the next usual one, that is free or holds what this very call had begun.

        call: everything the samples depend on, as JSON can hold it. Raises: ConfigError where the folder asked for holds other samples.
        """
        request = hashlib.sha256(json.dumps(call).encode()).hexdigest()
        for folder in _places(asked, usual):
            drawn = cls(folder, request)
            if drawn._begun() or not _taken(folder):
                return drawn
        raise _refusal(asked)

    def _begun(self) -> bool:
        try:
            return (self._parts / "request").read_text(encoding="utf-8").strip() == self.request
        except (OSError, ValueError):
            return False

    def _files(self) -> Iterator[Path]:
        yield from sorted(self._parts.glob("from-*.npy"))

    def begin(self) -> None:
        """Make the folder, where it has not been begun. Raises: OSError."""
        if not self._begun():
            self._parts.mkdir(parents=True, exist_ok=True)
            storage.replace_text(self._parts / "request", self.request + "\n")

    @property
    def samples(self) -> int:
        """How many samples of this call have been drawn and written."""
        import numpy as np

        if not self._begun():
            return 0
        return sum(len(np.load(path, mmap_mode="r", allow_pickle=False)) for path in self._files())

    def add(self, first: int, samples: NDArray[Any]) -> None:
        """Keep the batch that begins with sample number `first`. Raises: OSError."""
        import numpy as np

        path = self._parts / f"from-{first:09d}.npy"
        aside = path.with_suffix(".tmp")
        with aside.open("wb") as file:
            np.save(file, samples, allow_pickle=False)
        aside.replace(path)

    def all(self) -> NDArray[Any]:
        """Every sample, in order. Raises: OSError."""
        import numpy as np

        return np.concatenate([np.load(path, allow_pickle=False) for path in self._files()])

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
    return folder.is_dir() and any(path.suffix in (".png", ".npz") or path.name == UNFINISHED for path in folder.rglob("*"))


def _refusal(asked: Path | None) -> ConfigError:
    return ConfigError(f"--out: {asked} holds samples already; name another folder, so that the two do not mix")
