"""Folders and archives of pictures: decode all of them once, before the first step, and put them in one store."""

from __future__ import annotations

import os
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ddpm.data.captions import packed
from ddpm.data.decode import Unreadable, strict_pillow
from ddpm.data.demand import Files, Stamp, TarFiles, stamp
from ddpm.data.fit import Misfit
from ddpm.data.found import Found
from ddpm.data.labelling import label
from ddpm.data.lsun import files_of
from ddpm.data.names import Names, is_labels, is_picture, natural, places
from ddpm.data.ragged import Pile, allowance
from ddpm.data.settings import DataSettings
from ddpm.data.sources import Member, members
from ddpm.data.store import arrange, decoded
from ddpm.data.tar import is_plain
from ddpm.errors import DataError

Paths = Callable[[list[str]], list[str]]  # names as files, to names as `places` reads split and class from them
_SHOWN = 20
_SKIPPABLE = 0.01
_JOB_FILES, _JOB_BYTES = 64, 4 << 20
_WORTH_A_THREAD = 16 << 10  # bytes a file; below, threads only wait for each other (CIFAR-10: 14 s with, 10 s without)
_LARGEST_LABELS = 256 << 20


@dataclass
class Scan:
    """What one pass over a source gave: names in its own order, their pixels, and what was wrong."""

    pile: Pile
    names: list[str] = field(default_factory=list)
    places: array[int] = field(default_factory=lambda: array("q"))  # shard, offset and size of each picture, good or bad
    kept: array[int] = field(default_factory=lambda: array("q"))  # which of them `names` are
    notes: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[str, str]] = field(default_factory=list)  # name and reason
    misfits: Counter[str] = field(default_factory=Counter)
    labels: dict[str, bytes] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    def found(self) -> NDArray[np.int64]:
        """Shard, offset and size (n, 3) of the pictures `names`."""
        return np.array(self.places, dtype=np.int64).reshape(-1, 3)[np.array(self.kept, dtype=np.int64)]


def read_pictures(path: Path, settings: DataSettings, bad_files: Path | None = None) -> Found:
    """The pictures of a folder or archive with their labels, in natural order of their names; see `decode` for what becomes of each kind.

    Class ids come from the top folders, or from a labels file, which wins. `validation/` is held out where it is present.

    Raises:
        DataError: no pictures; unreadable ones (all named, more than 1 % of them even where they may be skipped); different sizes with
            no size to bring them to; labels that do not fit; members of an archive that are not allowed.
    """
    folder, tar = path.is_dir(), path.name.lower().endswith(".tar") and path.is_file() and is_plain(path)
    stamps = [stamp(path.parent, path.name)] if tar else []
    scan = scan_pictures(members(path), settings, keep_labels=settings.labels is None, again=folder or tar)
    files: Files | None = None
    if scan.pile.forgotten:
        files = files_of(path, Names.of(scan.names)) if folder else tar_files(path.parent, stamps, scan)
    return assemble(scan, path.name or str(path), settings, bad_files, files)


def tar_files(root: Path, stamps: list[Stamp], scan: Scan) -> TarFiles:
    """The pictures of a scan of one or several plain tars, to be read again."""
    shard, offset, size = scan.found().T.copy()
    return TarFiles(root, stamps, shard, offset, size, Names.of(scan.names))


def scan_pictures(
    source: Iterable[Member],
    settings: DataSettings,
    *,
    keep_labels: bool = True,
    again: bool = False,
    limit: int | None = None,
    take: Callable[[Member], bool] | None = None,
) -> Scan:
    """Decodes every picture of a source in one pass, a few threads at a time, and puts the others aside.

    again: the pictures can be read again, so that their pixels need not be kept where they take more than `limit` bytes, by default the
    settings' share of the memory. take: is offered whatever is no picture, and says whether it had a use for it.
    """
    scan = Scan(Pile(allowance(settings.memory_share) if limit is None else limit, forget=True) if again else Pile())
    with strict_pillow():
        for i, (name, result) in enumerate(_decoded(_wanted(source, scan, keep_labels, take), settings)):
            if isinstance(result, Unreadable):
                scan.bad.append((name, str(result)))
            elif isinstance(result, Misfit):
                scan.misfits[str(result).split(" ", 1)[0]] += 1
            else:
                pixels, notes = result
                scan.names.append(name)
                scan.kept.append(i)
                scan.pile.add(pixels)
                scan.notes.update(notes)
    return scan


def assemble(
    scan: Scan,
    title: str,
    settings: DataSettings,
    bad_files: Path | None,
    files: Files | None = None,
    *,
    paths: Paths = list,
    window: int = 0,
) -> Found:
    """Judges a scan, orders it, and brings its pictures to one form.

    files: where pictures lie whose pixels were not kept. paths: the names as `places` shall read them. window: of shards.
    """
    total = len(scan.names) + len(scan.bad) + sum(scan.misfits.values())
    if not total:
        found = _others(scan.others) or "no files"
        raise DataError(f"{title}: no pictures; expected .png, .jpg, .webp, .gif, .bmp, .tif or .ppm files, found {found}")
    skipped = judge(scan.bad, total, title, settings, bad_files)
    if scan.misfits:
        raise DataError(f"{title}: {_sizes(scan.misfits)} of another shape than the size asked for; add --crop centre or --crop random")
    where = places(paths([*scan.names, *(name for name, _ in scan.bad)]))
    order = [i for i in _sorted(scan.names) if not where.left_out[i]]
    samples, said = arrange(scan.pile, order, title, settings, files, window)
    unused = {i for i, out in enumerate(where.left_out) if out} | set(range(len(scan.names), len(where.inner)))
    known = {name for i in unused for name in (where.names[i], where.inner[i])}
    labels = label(scan.labels, where, order, known, settings)
    held = np.flatnonzero([where.held[i] for i in order]).astype(np.int64)
    notices = [f"{count:,} pictures: {note}" for note, count in sorted(scan.notes.items())]
    notices += [*said, *labels.notices]
    if left_out := sum(where.left_out[: len(scan.names)]):
        notices.append(f"{left_out:,} pictures in test/ are left out")
    if scan.others:
        notices.append(f"{len(scan.others):,} other files ignored: {_others(scan.others)}")
    return Found(
        name=title,
        kind="image",
        samples=samples,
        cond=labels.cond,
        classes=labels.classes,
        vector=labels.vector,
        tags=labels.tags,
        bins=(0.0, float(np.iinfo(samples.dtype).max)),
        held=held if len(held) else None,
        unreadable=skipped,
        notices=tuple(notices),
        names=None if scan.pile.forgotten else Names.of([scan.names[i] for i in order]),
        texts=None if labels.texts is None else packed(labels.texts, title),
    )


def _sorted(names: Sequence[str]) -> Sequence[int]:
    """Positions in natural order; nothing is sorted where they are in it, since a million keys take more than half a gigabyte."""
    if all(natural(a) <= natural(b) for a, b in pairwise(names)):
        return range(len(names))
    return sorted(range(len(names)), key=lambda i: natural(names[i]))


Result = tuple[NDArray[Any], tuple[str, ...]] | Unreadable | Misfit


def _wanted(
    source: Iterable[Member], scan: Scan, keep_labels: bool, take: Callable[[Member], bool] | None
) -> Iterator[tuple[str, bytes | BinaryIO, int]]:
    for member in source:
        if is_picture(member.name):
            scan.places.extend((member.shard, member.offset, member.size))
            yield member.name, member.open(), member.size
        elif keep_labels and is_labels(member.name) and member.size <= _LARGEST_LABELS:
            data = member.open()
            if not isinstance(data, bytes):
                with data:
                    data = data.read()
            scan.labels[member.name] = data
        elif take is None or not take(member):
            scan.others.append(member.name)


def _decoded(files: Iterator[tuple[str, bytes | BinaryIO, int]], settings: DataSettings) -> Iterator[tuple[str, Result]]:
    """Results in the order of the files. Pillow lets other threads run while it decodes, which pays for all but the smallest files."""
    threads = min(os.cpu_count() or 1, 8)
    waiting: deque[Future[list[tuple[str, Result]]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for bundle in _bundles(files):
                large = sum(size for _, _, size in bundle) >= _WORTH_A_THREAD * len(bundle)
                if large:
                    waiting.append(pool.submit(_decode_all, bundle, settings))
                while waiting and (len(waiting) > 2 * threads or not large):
                    yield from waiting.popleft().result()
                if not large:
                    yield from _decode_all(bundle, settings)
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for job in waiting:
                job.cancel()


def _bundles(files: Iterator[tuple[str, bytes | BinaryIO, int]]) -> Iterator[list[tuple[str, bytes | BinaryIO, int]]]:
    bundle: list[tuple[str, bytes | BinaryIO, int]] = []
    size = 0
    for file in files:
        bundle.append(file)
        size += file[2]
        if len(bundle) >= _JOB_FILES or size >= _JOB_BYTES:
            yield bundle
            bundle, size = [], 0
    if bundle:
        yield bundle


def _decode_all(bundle: Sequence[tuple[str, bytes | BinaryIO, int]], settings: DataSettings) -> list[tuple[str, Result]]:
    return [(name, _decode_one(data, size, settings)) for name, data, size in bundle]


def _decode_one(data: bytes | BinaryIO, size: int, settings: DataSettings) -> Result:
    try:
        return decoded(data, size, settings)
    except (Unreadable, Misfit) as error:
        return error.with_traceback(None)
    finally:
        if not isinstance(data, bytes):
            data.close()


def judge(
    bad: list[tuple[str, str]], total: int, title: str, settings: DataSettings, bad_files: Path | None, what: str = "images"
) -> tuple[str, ...]:
    """The skipped files, if they may be skipped; raises DataError with all of them if not."""
    lines = [f"{name}: {reason}" for name, reason in sorted(bad, key=lambda item: natural(item[0]))]
    if not lines:
        return ()
    if settings.on_bad_image == "skip" and len(lines) <= _SKIPPABLE * total:
        return tuple(lines)
    listed = ""
    if bad_files is not None:
        try:
            bad_files.write_text("\n".join(lines) + "\n", encoding="utf-8")
            listed = f", list in {bad_files}"
        except OSError as error:
            listed = f" (the list could not be written to {bad_files}: {error.strerror})"
    shown = [f"  {line}" for line in lines[:_SHOWN]] + ([f"  ... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])
    advice = "mend or remove them, or use --on-bad-image skip"
    if settings.on_bad_image == "skip":
        advice = f"more than the {_SKIPPABLE:.0%} that may be skipped; mend or remove them"
    raise DataError("\n".join([f"{title}: {len(lines):,} unreadable {what} of {total:,}{listed}; {advice}", *shown]))


def _sizes(counts: Counter[str]) -> str:
    return f"{sum(counts.values()):,} pictures (" + ", ".join(f"{count:,} of {size}" for size, count in counts.most_common(5)) + ")"


def _others(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
