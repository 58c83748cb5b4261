"""Where pictures come from: a folder, a zip or a tar, read in place and in one pass; nothing is ever unpacked to disk."""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any, BinaryIO

from ddpm.data.names import natural, safe_name
from ddpm.errors import DataError

MOST_MEMBERS = 1_000_000
MOST_RATIO = 500  # uncompressed over compressed; text and flat pictures stay below 100
BOMB_FROM = 1 << 20  # bytes; smaller members do no harm
SMALL = 32 << 20  # bytes; larger members are spooled through an unnamed temporary file instead of the memory

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")


@dataclass(frozen=True)
class Member:
    """A file of a data set. `open()` gives its bytes, or a stream that can seek when they are many; call it before the next member."""

    name: str
    size: int
    open: Callable[[], bytes | BinaryIO]
    offset: int = -1  # of the bytes in the archive, where they lie in it as they are
    shard: int = 0  # number of the archive, of several


def members(path: Path) -> Iterator[Member]:
    """All files of a folder or archive, each checked before it is offered. Folders and zips come in natural order, tars in their own.

    Raises:
        DataError: a member that is not a plain file or folder, points elsewhere, is there twice, or unpacks to more than 500 times its
            size; more than 10^6 members; an archive that is damaged or of another kind.
    """
    if path.is_dir():
        from ddpm.data.lsun import is_lmdb, lmdb_members

        return lmdb_members(path) if is_lmdb(path) else _folder(path)
    name = path.name.lower()
    if name.endswith(".zip"):
        return _zip(path)
    if name.endswith(TAR_SUFFIXES):
        from ddpm.data.tar import tar_members

        return tar_members(path)
    raise DataError(f"{path}: not a kind of data that is read; give a folder, .zip, .tar, .tar.gz, .tar.xz, .npy, .npz or .safetensors")


def keep(stream: IO[bytes], size: int) -> bytes | BinaryIO:
    """The bytes of a member, or a rewound temporary file of them when there are more than `SMALL`."""
    if size <= SMALL:
        return stream.read(size)
    spool: Any = SpooledTemporaryFile(max_size=1)  # noqa: SIM115 - the decoder closes it
    left = size
    while left > 0 and (block := stream.read(min(left, 1 << 20))):
        spool.write(block)
        left -= len(block)
    spool.seek(0)
    return spool


def listed(root: Path) -> list[tuple[str, Path]]:
    """Names within a folder, and paths, of all files below it, sorted; links are followed, a link back up only once."""
    found: list[tuple[str, Path]] = []
    seen: set[tuple[int, int]] = set()
    for folder, inner, files in os.walk(root, followlinks=True, onerror=_cannot_list):
        info = os.stat(folder)
        if (info.st_dev, info.st_ino) in seen and info.st_ino:  # a link back to a folder above
            inner.clear()
            continue
        seen.add((info.st_dev, info.st_ino))
        at = Path(folder)
        found += [((at / file).relative_to(root).as_posix(), at / file) for file in files]
    return sorted(found)


def _folder(root: Path) -> Iterator[Member]:
    files = sorted(listed(root), key=lambda item: natural(item[0]))
    sheet = _sheet([name for name, _ in files])
    for name, path in files:
        if name == sheet:
            continue
        try:
            info = path.stat()
        except OSError as error:
            raise DataError(f"{root}: {name}: {error.strerror or 'cannot be read'}") from error
        if not stat.S_ISREG(info.st_mode):
            raise DataError(f"{root}: {name} is not a plain file; refused")
        yield Member(name, info.st_size, lambda path=path, size=info.st_size: _open_file(path, size))


def _sheet(names: list[str]) -> str | None:
    """The overview that `ddpm sample` lays beside its samples, which is none of them."""
    manifest = next((name for name in names if name.rsplit("/", 1)[-1] == "manifest.json"), None)
    sheet = None if manifest is None else manifest.removesuffix("manifest.json") + "grid.png"
    return sheet if sheet in names else None


def _cannot_list(error: OSError) -> None:
    raise DataError(f"{error.filename}: {error.strerror or 'cannot be listed'}") from error


def _open_file(path: Path, size: int) -> bytes | BinaryIO:
    try:
        return path.read_bytes() if size <= SMALL else path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or 'cannot be read'}") from error


def _zip(path: Path) -> Iterator[Member]:
    _few_enough(path)
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            names = _checked(path, infos)
            sheet = _sheet(names)
            for name, info in sorted(zip(names, infos, strict=True), key=lambda item: natural(item[0])):
                if not info.is_dir() and name != sheet:
                    yield Member(name, info.file_size, lambda info=info: _open_zipped(archive, info, path))
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: damaged, or not a zip archive") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or 'cannot be read'}") from error


def _open_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> bytes | BinaryIO:
    try:
        with archive.open(info) as stream:
            return keep(stream, info.file_size)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{path}: member {info.filename!r} is damaged") from error
    except (RuntimeError, NotImplementedError) as error:
        raise DataError(f"{path}: member {info.filename!r} is encrypted or packed in an unknown way; refused") from error


def _few_enough(path: Path) -> None:
    """Refuses millions of members from the zip's last bytes, before the list of members is read into memory."""
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(length - 65_557, 0))
        tail = file.read()
        at = tail.rfind(b"PK\x05\x06")
        if at < 0:
            return
        count = int.from_bytes(tail[at + 10 : at + 12], "little")
        listed = int.from_bytes(tail[at + 12 : at + 16], "little")
        wide = tail.rfind(b"PK\x06\x06", 0, at)
        if wide >= 0 and (count == 0xFFFF or listed == 0xFFFFFFFF):
            count = int.from_bytes(tail[wide + 32 : wide + 40], "little")
            listed = int.from_bytes(tail[wide + 40 : wide + 48], "little")
    if count > MOST_MEMBERS or listed > 400 * MOST_MEMBERS:
        raise DataError(f"{path}: {count:,} members, more than {MOST_MEMBERS:,}; refused")


def _checked(path: Path, infos: list[zipfile.ZipInfo]) -> list[str]:
    names: list[str] = []
    seen: set[str] = set()
    if len(infos) > MOST_MEMBERS:
        raise DataError(f"{path}: {len(infos):,} members, more than {MOST_MEMBERS:,}; refused")
    for info in infos:
        name = safe_name(info.orig_filename, str(path))  # `filename` ends at the first NUL and would hide one
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(f"{path}: member {name!r} is a {'symbolic link' if kind == stat.S_IFLNK else 'device or pipe'}; refused")
        if name in seen and not info.is_dir():
            raise DataError(f"{path}: member {name!r} is there twice; refused")
        if info.file_size > BOMB_FROM and info.file_size > MOST_RATIO * max(info.compress_size, 1):
            ratio = info.file_size // max(info.compress_size, 1)
            raise DataError(f"{path}: member {name!r} unpacks to {ratio:,} times its size, over {MOST_RATIO}; refused")
        seen.add(name)
        names.append(name)
    total, packed = sum(info.file_size for info in infos), max(path.stat().st_size, 1)
    if total > BOMB_FROM and total > MOST_RATIO * packed:  # members that share their bytes
        raise DataError(f"{path}: unpacks to {total // packed:,} times its size, over {MOST_RATIO}; refused")
    return names
