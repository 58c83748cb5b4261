"""LSUN as its authors publish it: an LMDB folder (data.mdb) of encoded pictures, WebP as a rule, under keys that say nothing.

https://github.com/fyu/lsun. Pictures are read in place and decoded when they are wanted. Needs `pip install 'ddpm[lsun]'`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ddpm.data.dataset import Rows
from ddpm.data.demand import Arrays, Files, FolderFiles
from ddpm.data.names import Names
from ddpm.data.sources import Member
from ddpm.errors import ConfigError, DataError

FILE = "data.mdb"
SUFFIX = ".webp"  # given to the keys, which have none; what a picture really is, its first bytes say


def is_lmdb(path: Path) -> bool:
    """Whether a folder is an LMDB."""
    return (path / FILE).is_file()


def open_lmdb(root: Path) -> Any:
    """The environment, for reading only; ConfigError where the library is missing, DataError for what is no LMDB."""
    try:
        import lmdb
    except ImportError as error:
        raise ConfigError(f"{root}: is an LMDB, which takes a library of its own: pip install 'ddpm[lsun]'") from error
    try:
        return lmdb.open(str(root), readonly=True, lock=False, readahead=False, meminit=False, max_readers=64)
    except lmdb.Error as error:
        raise DataError(f"{root}: cannot be read as LMDB ({error})") from error


def lmdb_members(root: Path) -> Iterator[Member]:
    """Every picture, in the order of the keys."""
    environment = open_lmdb(root)
    try:
        with environment.begin(buffers=True) as transaction:
            for key, value in transaction.cursor():
                yield Member(name_of(bytes(key), root), len(value), lambda value=value: bytes(value))
    finally:
        environment.close()


def name_of(key: bytes, root: Path) -> str:
    """The key as a file's name; DataError for one that is no text."""
    try:
        return key.decode("ascii") + SUFFIX
    except UnicodeDecodeError as error:
        raise DataError(f"{root}: key {key[:40]!r} is no text; this is not LSUN's LMDB") from error


class LmdbFiles:
    """The values of an LMDB, by their keys."""

    def __init__(self, root: Path, names: Names) -> None:
        self.root, self.names = root, names

    @cached_property
    def _environment(self) -> Any:
        return open_lmdb(self.root)

    def read(self, numbers: Rows) -> Iterator[tuple[int, bytes]]:
        """The bytes of each picture, in the order asked for."""
        with self._environment.begin() as transaction:
            for place, number in enumerate(numbers):
                name = self.names[int(number)]
                value = transaction.get(name.removesuffix(SUFFIX).encode("ascii"))
                if value is None:
                    raise DataError(f"{self.root}: {name} is gone; it was there when training began")
                yield place, value

    def name(self, number: int) -> str:
        """The key, as a file's name."""
        return self.names[number]

    def arrays(self) -> Arrays:
        """The keys."""
        return {"names": self.names.block, "ends": self.names.ends}


def files_of(root: Path, names: Names) -> Files:
    """The pictures of a folder: an LMDB's, or files."""
    return LmdbFiles(root, names) if is_lmdb(root) else FolderFiles(root, names)
