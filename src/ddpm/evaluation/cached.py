"""Tensors that are computed once and kept in the folder for caches: read where their file is whole, else made, by one process at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import filelock
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ddpm.errors import DiskError
from ddpm.lazy import at_least
from ddpm.training.checkpoints.storage import write_text

at_least(filelock)

PATIENCE = 2.0  # seconds of waiting that nobody needs to be told of


def cached(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    make: Callable[[], dict[str, Tensor]],
    say: Callable[[str], None],
    about: dict[str, str] | None = None,
) -> dict[str, Tensor]:
    """The tensors of these names and shapes that a file holds, or that `make` returns now, which are kept there.

    A file that is cut, damaged or holds other tensors is made again, and said to be. Of several processes one makes it and the others
    read it, so that all have the same bits. about: goes into the file. Raises: DiskError where the folder cannot be written.
    """
    found = _read(path, shapes)
    if found is not None:
        return found
    with _alone(path, say):
        found = _read(path, shapes)  # another process may have made it meanwhile
        if found is None:
            if path.exists():
                say(f"{path} is damaged; it is made again")
            found = make()
            write_text(path, save(found, metadata=about))
    return found


def _read(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
    """What the file holds; None where it is absent or not what was asked for."""
    try:
        found = load_file(path)
    except (OSError, SafetensorError):
        return None
    return found if {name: tuple(tensor.shape) for name, tensor in found.items()} == dict(shapes) else None


@contextmanager
def _alone(path: Path, say: Callable[[str], None]) -> Generator[None]:
    """Within this context no other process makes the file."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            say(f"waiting for another process, which makes {path}")
            lock.acquire()
    except NotImplementedError:
        pass  # a file system without locks: each process makes its own
    except OSError as error:
        raise DiskError(f"{path} cannot be written ({error.strerror or error}); DDPM_CACHE names another folder") from error
    try:
        yield
    finally:
        lock.release()
