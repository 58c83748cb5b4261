"""What is computed once of a data set and kept in files of many rows, filled by all processes and gone on with after a stop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ddpm.errors import DiskError
from ddpm.training.checkpoints import storage
from ddpm.training.distributed.world import World

SAID = 10.0  # seconds between lines of progress
ABOUT = "about.json"


def fill(
    path: Path,
    about: Mapping[str, Any],
    shards: int,
    write: Callable[[int], None],
    what: str,
    told: Callable[[int], str],
    say: Callable[[str], None],
    world: World,
) -> None:
    """Write the shards 0..shards-1 that are missing into a folder; about.json, written last, says that none is.

    write(number) makes a file that is there already no more; told(number) says how far a shard is. No process waits for another longer
    than for one shard. Raises: DiskError where the folder cannot be written, and whatever `write` raises.
    """
    if all(world.gather((path / ABOUT).is_file())):
        return
    said = [time.monotonic()]

    def share(numbers: Iterable[int]) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            for number in numbers:
                write(number)
                if time.monotonic() - said[0] > SAID:
                    said[0] = time.monotonic()
                    say(told(number))
        except OSError as error:
            raise DiskError(f"{what}: {path} cannot be written ({error.strerror}); DDPM_CACHE names another folder") from error

    every = range(shards)
    for first in every[:: world.size]:
        world.everywhere(partial(share, every[first + world.rank : first + world.rank + 1]))
    world.everywhere(partial(share, every))  # what another machine has written to a folder of its own
    storage.write_text(path / ABOUT, json.dumps(about, indent=1))


def place(file: Path, write: Callable[[Any], None]) -> None:
    """A file written aside and renamed: another process that makes the same has the same numbers. Raises: OSError."""
    staged = storage.aside(file)
    try:
        with staged.open("wb") as handle:
            write(handle)
        staged.replace(file)
    finally:
        storage.remove(staged)
