"""WebDataset-style shards: tars of `KEY.jpg` with `KEY.cls` or `KEY.json` beside it, read as one data set and never unpacked or held.

Shards are named by a pattern, `train-{000000..000127}.tar` or `train-*.tar`, or by the folder they are in. A single tar is read so where it
holds `.cls` files, or captions, `KEY.txt`. Every sample keeps its place, (shard, offset, size), so rows can be read in any order
and a run resumes anywhere.

Reference: Aizman, Maltby and Breuel 2019, High Performance I/O For Large Scale Deep Learning, arXiv 2001.01858: the naming convention.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import tarfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.data.captions import packed
from ddpm.data.demand import OnDemand, Stamp, stamp
from ddpm.data.found import Found
from ddpm.data.names import SPLITS, is_picture, natural
from ddpm.data.pictures import assemble, scan_pictures, tar_files
from ddpm.data.settings import DataSettings
from ddpm.data.shard_arrays import ArrayDecoder, ArrayScan
from ddpm.data.sources import TAR_SUFFIXES, Member
from ddpm.data.tar import tar_members
from ddpm.errors import DataError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_SHARDS = 1_000_000
_MOST_LABEL_BYTES = 1 << 20
_MOST_CLASSES = 1_000_000
_LOOKED_AT = 64  # first members of a lone tar; the files of a sample stand side by side
_SHOWN = 20
_KEYS = ("label", "cls", "class")


@dataclass(frozen=True)
class Shards:
    """Tar files, by name within a folder, in natural order, as they are now."""

    root: Path
    stamps: list[Stamp]

    @property
    def names(self) -> list[str]:
        """The shards' names."""
        return [name for name, _, _ in self.stamps]

    def members(self) -> Iterator[Member]:
        """All files of all shards, named SHARD/MEMBER; DataError for anything `tar_members` refuses, and for compressed shards."""
        for number, name in enumerate(self.names):
            for member in tar_members(self.root / name):
                if member.offset < 0:
                    raise DataError(
                        f"{self.root / name}: compressed, so its samples cannot be read one by one; unpack the shards "
                        "(gunzip, unxz) and give the .tar files"
                    )
                yield replace(member, name=f"{name}/{member.name}", shard=number)


def find_shards(text: str) -> Shards | None:
    """The shards that `--data` names, or None where it names something else.

    Raises:
        DataError: shards of the pattern are missing, or none is there.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        names = _in_folder(path)
        return Shards(path, [stamp(path, name) for name in names]) if names else None
    if path.is_file():
        return Shards(path.parent, [stamp(path.parent, path.name)]) if _has_classes(path) else None
    if not text.lower().endswith(TAR_SUFFIXES) or not ("*" in text or _RANGE.search(text)):
        return None
    fixed = [part for part in itertools.takewhile(lambda part: "*" not in part and "{" not in part, path.parts)]
    root = Path(*fixed) if fixed else Path()
    inner = "/".join(path.parts[len(fixed) :])
    found: dict[str, None] = {}
    for name in _expanded(inner, text):
        if "*" not in name:
            found[name] = None
        else:
            found |= dict.fromkeys(match.relative_to(root).as_posix() for match in root.glob(name) if match.is_file())
    missing = [name for name in found if not (root / name).is_file()]
    if missing or not found:
        shown = f"{len(missing):,} of {len(found):,} shards are missing: {', '.join(missing[:5])}" if missing else "no such shards"
        raise DataError(f"{text}: {shown}; check the pattern, and quote it from the shell")
    return Shards(root, [stamp(root, name) for name in sorted(found, key=natural)])


def read_shards(shards: Shards, title: str, settings: DataSettings, bad_files: Path | None = None) -> Found:
    """The samples of shards, decoded at each visit, with their classes and captions (`.txt`); rows go shard by shard, in natural order
    of the keys within one.

    Classes are whole numbers or names from `.cls`, or from the entry label, cls or class of `.json`; without any they come from a labels
    file that the settings name, or from folders within the shards. Shards whose names begin with train, validation (valid, val) and test
    are splits, as folders so named are.

    Raises:
        DataError: no samples; unreadable ones, all listed; labels that are missing or wrong; two pictures of one key; members that are
            not allowed; compressed shards.
    """
    beside, paths = _Beside(ArrayScan(ArrayDecoder(settings.layout))), _Paths(shards.names).inner
    scan = scan_pictures(shards.members(), settings, keep_labels=False, again=True, limit=0, take=beside.take)
    if not (scan.names or scan.bad or scan.misfits) and (beside.arrays.names or beside.arrays.bad):
        return _labelled(beside.arrays.found(shards.root, shards.stamps, title, settings, bad_files, paths), beside, settings)
    scan.others += beside.arrays.names
    beside.refuse_two_of_a_key(scan.names, title)
    files = tar_files(shards.root, shards.stamps, scan)
    found = assemble(scan, title, settings, bad_files, files, paths=paths, window=settings.shard_window)
    return _labelled(found, beside, settings)


def _labelled(found: Found, beside: _Beside, settings: DataSettings) -> Found:
    if settings.labels is not None or not (beside.values or beside.texts or beside.problems):
        return found
    assert isinstance(found.samples, OnDemand)
    samples = found.samples
    names = [samples.files.name(int(number)) for number in samples.numbers]
    texts = [beside.texts.get(key_of(name)[0], "") for name in names]
    if any(texts):
        found = replace(found, texts=packed(texts, found.name))
    if not (beside.values or beside.problems):
        return found
    ids, classes = beside.of(names, found.name)
    alone = len(beside.values.keys() - {key_of(name)[0] for name in names}) - len(found.unreadable)
    notices = (*found.notices, f"{alone:,} labels belong to no sample: are pictures missing?") if alone > 0 else found.notices
    return replace(found, cond={**found.cond, "class": ids}, classes=classes, notices=notices)


def key_of(name: str) -> tuple[str, str]:
    """Key and ending of a member: the ending begins at the first dot of the file's name, as WebDataset has it."""
    folder, slash, file = name.rpartition("/")
    stem, _, ending = file.partition(".")
    return f"{folder}{slash}{stem}", ending.lower()


@dataclass
class _Beside:
    """What stands beside the pictures of shards: labels, by key; arrays, which are samples themselves; and what is wrong with labels."""

    arrays: ArrayScan
    values: dict[str, int | str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def take(self, member: Member) -> bool:
        """Whether a member was made use of."""
        key, ending = key_of(member.name)
        if ending == "npy":
            self.arrays.add(member)
            return True
        if ending not in ("cls", "json", "txt"):
            return False
        data = member.open() if member.size <= _MOST_LABEL_BYTES else b""
        if ending == "txt":
            try:
                self.texts[key] = (data if isinstance(data, bytes) else b"").decode("utf-8-sig")
            except UnicodeDecodeError:
                self.problems.append(f"{member.name}: not UTF-8 text")
            return True
        value = _label(data if isinstance(data, bytes) else b"", ending)
        if isinstance(value, _Wrong):
            self.problems.append(f"{member.name}: {value}")
        elif value is not None and (ending == "cls" or key not in self.values):
            self.values[key] = value
        return True

    def refuse_two_of_a_key(self, names: Sequence[str], title: str) -> None:
        """DataError where two pictures share a key: which of them is the sample is not known."""
        seen: dict[str, str] = {}
        for name in names:
            before = seen.setdefault(key_of(name)[0], name)
            if before is not name:
                raise DataError(f"{title}: one key, two pictures: {before} and {name}; keep one of them in the shards")

    def of(self, names: Sequence[str], title: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Class ids (N,) of the samples, and the classes' names."""
        found = [self.values.get(key_of(name)[0]) for name in names]
        problems = self.problems + [
            f"{name}: no .cls, and no label in a .json" for name, value in zip(names, found, strict=True) if value is None
        ]
        kinds = {type(value) for value in found if value is not None}
        if len(kinds) > 1:
            number = next(name for name, value in zip(names, found, strict=True) if isinstance(value, int))
            word = next(name for name, value in zip(names, found, strict=True) if isinstance(value, str))
            problems.append(f"{number} has a number for its class, {word} a name; use one or the other")
        if problems:
            more = [f"  ... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
            shown = [f"  {problem}" for problem in problems[:_SHOWN]]
            raise DataError(
                "\n".join([f"{title}: {len(problems):,} labels cannot be used; mend them, or use --labels none", *shown, *more])
            )
        if kinds == {int}:
            ids = np.array(found, dtype=np.int64)
            return ids, tuple(str(i) for i in range(int(ids.max()) + 1))
        classes = sorted({str(value) for value in found}, key=natural)
        position = {name: i for i, name in enumerate(classes)}
        return np.array([position[str(value)] for value in found], dtype=np.int64), tuple(classes)


class _Wrong(str):
    """Why a label cannot be used."""


def _label(data: bytes, ending: str) -> int | str | _Wrong | None:
    """The class that a .cls or .json file says; None for a .json without one."""
    try:
        text = data.decode("utf-8-sig").strip()
        value: Any = text if ending == "cls" else json.loads(text)
    except (ValueError, RecursionError):
        return _Wrong("not UTF-8 text" if ending == "cls" else "not JSON")
    if ending == "json":
        value = next((value[key] for key in _KEYS if key in value), None) if isinstance(value, dict) else None
        if value is None:
            return None
    if isinstance(value, str):
        value = int(value) if re.fullmatch(r"[+-]?[0-9]{1,18}", value) else value.strip()
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        return _Wrong("empty" if value == "" else "its label is neither a whole number nor a name")
    if isinstance(value, int) and not 0 <= value < _MOST_CLASSES:
        return _Wrong(f"class {value}; allowed are 0 to {_MOST_CLASSES - 1:,}")
    return value


class _Paths:
    """SHARD/MEMBER as a path that says split and class: without the shard, or below the split that its name begins with."""

    def __init__(self, shards: Sequence[str]) -> None:
        words = {name: (re.match(r"[A-Za-z]*", name) or [""])[0].lower() for name in shards}
        are_splits = set(words.values()) <= set(SPLITS) and len(set(words.values())) > 1
        self._prefixes = sorted(f"{name}/" for name in shards)
        self._before = {f"{name}/": f"{word}/" if are_splits else "" for name, word in words.items()}

    def inner(self, names: list[str]) -> list[str]:
        """The paths of names."""
        prefixes = [self._prefixes[bisect_right(self._prefixes, name) - 1] for name in names]
        return [self._before[prefix] + name[len(prefix) :] for name, prefix in zip(names, prefixes, strict=True)]


def _expanded(pattern: str, text: str) -> Iterator[str]:
    """The names that a pattern with {first..last} stands for; numbers keep the leading zeros of the first."""
    pieces = _RANGE.split(pattern)
    ranges = list(zip(pieces[1::3], pieces[2::3], strict=True))
    counts = [int(last) - int(first) + 1 for first, last in ranges]
    if any(count < 1 for count in counts) or np.prod(counts, dtype=float) > _MOST_SHARDS:
        raise DataError(f"{text}: a range of shards is empty or has more than {_MOST_SHARDS:,}; write {{first..last}}")
    numbers = [[f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)] for first, last in ranges]
    for chosen in itertools.product(*numbers):
        yield "".join(itertools.chain.from_iterable(itertools.zip_longest(pieces[::3], chosen, fillvalue="")))


def _in_folder(root: Path) -> list[str]:
    """The tars below a folder that holds no picture; the walk ends at the first one."""
    names: list[str] = []
    for folder, _, files in os.walk(root):
        if any(is_picture(file) for file in files):
            return []
        names += [(Path(folder) / file).relative_to(root).as_posix() for file in files if _is_shard(file)]
    return sorted(names, key=natural)


def _is_shard(file: str) -> bool:
    return file.lower().endswith(TAR_SUFFIXES) and not file.startswith(".")


def _has_classes(path: Path) -> bool:
    """Whether a lone tar, not compressed, holds .cls files, or .txt beside pictures, among its first members."""
    if not path.name.lower().endswith(".tar"):
        return False
    try:
        with tarfile.open(path, "r:") as archive:
            names = [info.name for info in itertools.islice(archive, _LOOKED_AT)]
            shown = {key_of(name)[0] for name in names if is_picture(name)}
            beside = [key_of(name) for name in names]
            return any(ending == "cls" or (ending == "txt" and key in shown) for key, ending in beside)
    except (tarfile.TarError, OSError, EOFError):
        return False  # the reader of archives says what is wrong
