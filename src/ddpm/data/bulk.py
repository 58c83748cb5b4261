"""Many samples in few files: a zip of pictures with labels, tar shards as WebDataset reads them. The same samples give the same bytes."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ddpm.data.export import Range, picture_of

Parts = Iterable[NDArray[Any]]  # (n, *shape) in the data's units, one after the other


def save_zip(parts: Parts, limits: Range, labels: NDArray[Any] | None, path: Path) -> Path:
    """PNGs `00000/000000.png`, a thousand a folder, and `dataset.json` with the class number of each where there are classes: as EDM's and
    StyleGAN's tools read it, and `ddpm train --data`.
    """
    with whole(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        names: list[str] = []
        for number, sample in numbered(parts):
            names.append(f"{number // 1000:05d}/{number:06d}.png")
            archive.writestr(zipfile.ZipInfo(names[-1]), png(sample, limits))  # dated 1980: the bytes depend on the samples alone
        if labels is not None:
            told = {"labels": [[name, int(label)] for name, label in zip(names, labels, strict=True)]}
            archive.writestr(zipfile.ZipInfo("dataset.json"), json.dumps(told))
    return path


def save_shards(parts: Parts, limits: Range, labels: NDArray[Any] | None, folder: Path, size: int) -> list[Path]:
    """`samples-000000.tar`, ...: `size` samples each, as KEY.png where that loses nothing, else KEY.npy, and KEY.cls."""
    written: list[Path] = []
    samples = numbered(parts)
    entry = next(samples, None)
    while entry is not None:
        path = folder / f"samples-{len(written):06d}.tar"
        with whole(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            while entry is not None and entry[0] // size == len(written):
                number, sample = entry
                as_png = sample.dtype == np.uint8 and limits == (0, 255) and sample.ndim == 3 and sample.shape[0] in (1, 3)
                pack(archive, f"{number:09d}.{'png' if as_png else 'npy'}", png(sample, limits) if as_png else npy(sample))
                if labels is not None:
                    pack(archive, f"{number:09d}.cls", str(int(labels[number])).encode())
                entry = next(samples, None)
        written.append(path)
    return written


def numbered(parts: Parts) -> Iterator[tuple[int, NDArray[Any]]]:
    """Every sample with its number."""
    number = 0
    for part in parts:
        for sample in part:
            yield number, np.asarray(sample)
            number += 1


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """The file, written beside its name and renamed when all is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    with aside.open("wb") as file:
        yield file
    aside.replace(path)


def pack(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """One member, without a date or an owner."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def png(sample: NDArray[Any], limits: Range) -> bytes:
    """A picture (C, H, W) as PNG."""
    buffer = io.BytesIO()
    picture_of(sample, limits).save(buffer, format="PNG")
    return buffer.getvalue()


def npy(sample: NDArray[Any]) -> bytes:
    """A sample as .npy, channels first."""
    buffer = io.BytesIO()
    np.save(buffer, sample, allow_pickle=False)
    return buffer.getvalue()
