"""LSUN as its authors publish it: an LMDB folder (data.mdb) of encoded pictures, WebP as a rule, under keys that say nothing.

https://github.com/fyu/lsun. Pictures are read in place and decoded when they are wanted. Needs `pip install 'ddpm[lsun]'`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from ddpm.data.dataset import Rows
from ddpm.data.demand import Arrays, Files, FolderFiles, stamp
from ddpm.data.names import Names
from ddpm.data.sources import Member
from ddpm.errors import ConfigError, DataError

FILE = "data.mdb"
SUFFIX = ".webp"  # given to the keys, which have none; what a picture really is, its first bytes say
_opened: WeakValueDictionary[Path, Any] = WeakValueDictionary()  # environments, by their folders


def is_lmdb(path: Path) -> bool:
    """Whether a folder is an LMDB."""
    return (path / FILE).is_file()


def open_lmdb(root: Path) -> Any:
    """The environment, for reading only; ConfigError where the library is missing, DataError for what is no LMDB.

    It closes when nothing holds it any more: the library opens a file only once in a process, so that those who read it share it.
    """
    try:
        import lmdb
    except ImportError as error:
        raise ConfigError(f"{root}: is an LMDB, which takes a library of its own: pip install 'ddpm[lsun]'") from error
    if (environment := _opened.get(root.resolve())) is not None:
        return environment
    try:
        environment = lmdb.open(str(root), readonly=True, lock=False, readahead=False, meminit=False, max_readers=64)
    except lmdb.Error as error:
        raise DataError(f"{root}: cannot be read as LMDB ({error})") from error
    _opened[root.resolve()] = environment
    return environment


@contextmanager
def reading(root: Path, environment: Any, *, buffers: bool = False) -> Generator[Any]:
    """A transaction of an LMDB. Raises: DataError where it is cut short or damaged."""
    import lmdb

    try:
        whole, size = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"], stamp(root, FILE)[1]
        if size < whole:  # it is mapped: to read beyond its end would end the process
            raise DataError(f"{root / FILE}: {size:,} bytes of {whole:,}; it is cut short, fetch it again")
        with environment.begin(buffers=buffers) as transaction:
            yield transaction
    except lmdb.Error as error:
        raise DataError(f"{root / FILE}: is damaged ({error}); fetch it again") from error


def lmdb_members(root: Path) -> Iterator[Member]:
    """Every picture, in the order of the keys."""
    with reading(root, open_lmdb(root), buffers=True) as transaction:
        for key, value in transaction.cursor():
            yield Member(name_of(bytes(key), root), len(value), lambda value=value: bytes(value))


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
        with reading(self.root, self._environment) as transaction:
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
