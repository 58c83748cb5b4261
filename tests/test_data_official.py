"""CIFAR-10 and LSUN in the forms their authors publish: written here as they write them, and read back."""

from __future__ import annotations

import codecs
import io
import mmap
import os
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ddpm.data import open_data
from ddpm.data.demand import OnDemand
from ddpm.data.names import natural
from ddpm.data.settings import DataSettings
from ddpm.errors import ConfigError, DataError

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def batch(seed: int, count: int = 12) -> tuple[NDArray[np.uint8], list[int]]:
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (count, 3, 32, 32)).astype(np.uint8), draw.integers(0, 10, count).tolist()


def cifar_files(kind: str) -> dict[str, bytes]:
    """The members of the archive, three training batches (out of order) and the test batch."""
    files: dict[str, bytes] = {}
    for number, name in enumerate(["data_batch_2", "data_batch_1", "data_batch_5", "test_batch"]):
        pictures, labels = batch(number)
        if kind == "binary":
            records = np.concatenate([np.array(labels, dtype=np.uint8)[:, None], pictures.reshape(-1, 3072)], axis=1)
            files[f"cifar-10-batches-bin/{name}.bin"] = records.tobytes()
        else:  # as Python 2 wrote them: text is bytes
            content = {b"batch_label": name.encode(), b"labels": labels, b"data": pictures.reshape(-1, 3072), b"filenames": [b"a.png"] * 12}
            files[f"cifar-10-batches-py/{name}"] = pickle.dumps(content, 2)
    if kind == "binary":
        files["cifar-10-batches-bin/batches.meta.txt"] = ("\n".join(CLASSES) + "\n\n").encode()
    else:
        files["cifar-10-batches-py/batches.meta"] = pickle.dumps({b"label_names": [name.encode() for name in CLASSES], b"num_vis": 3072}, 2)
    files[f"{next(iter(files)).split('/')[0]}/readme.html"] = b"<a>"
    return files


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / Path(name).name).write_bytes(content)
    return path


@pytest.mark.parametrize("kind", ["binary", "python"])
@pytest.mark.parametrize("packed", [True, False])
def test_both_forms_of_cifar_say_the_same(kind: str, packed: bool, tmp_path: Path) -> None:
    files = cifar_files(kind)
    place = write_tar(tmp_path / f"cifar-10-{kind}.tar.gz", files) if packed else write_folder(tmp_path / "batches", files)
    found = open_data(DataSettings(data=str(place)))
    wanted = [batch(number) for number in (1, 0, 2, 3)]
    assert found.card.classes == tuple(CLASSES) and found.card.bins == (0.0, 255.0)
    assert found.held_rows.tolist() == list(range(36, 48)) and len(found.train_rows) == 36
    raw, cond = found.batch(np.arange(48))
    assert np.array_equal(raw, np.concatenate([pictures for pictures, _ in wanted]))
    assert cond["class"].tolist() == [label for _, labels in wanted for label in labels]


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch marker",)


class Made:
    """Pickled as the call of something with arguments."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def python_batch(labels: list[int], protocol: int = 2) -> bytes:
    """As many pictures, pickled."""
    return pickle.dumps({b"data": np.zeros((len(labels), 3072), np.uint8), b"labels": labels, b"filenames": [b""]}, protocol)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_batches_pickled_anew_are_read(protocol: int, tmp_path: Path) -> None:
    """By any protocol, one without pictures among them; and a folder that only has the name of a batch is none."""
    place = write_folder(tmp_path / "batches", {"data_batch_1": python_batch([], protocol), "data_batch_2": python_batch([3, 1], protocol)})
    (place / "test_batch").mkdir()
    found = open_data(DataSettings(data=str(place), holdout=0.0))
    assert found.card.count == 2 and found.cond["class"].tolist() == [3, 1] and found.card.classes == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("data_batch_1", pickle.dumps({b"data": Evil(), b"labels": []}, 2), "contains code"),
        ("data_batch_1", pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, 2), "without as many labels"),
        ("data_batch_1", pickle.dumps({b"data": np.zeros((2, 30), np.uint8), b"labels": [1, 2]}, 2), "no pictures"),
        ("data_batch_1", pickle.dumps([1, 2], 2), "is no batch"),
        ("data_batch_1", b"\x80\x02}q\x00", "damaged"),
        ("data_batch_1", python_batch([3, 10**30]), "label number 1 is no class; allowed are 0 to 255"),
        ("data_batch_1", python_batch([-1, 3]), "label number 0 is no class"),
        ("data_batch_1", python_batch([3, 77]), "10 classes"),
        ("data_batch_1", python_batch([]), "its batches hold no pictures"),
        ("data_batch_1", pickle.dumps({b"data": Made(codecs.encode, "a", "utf-8"), b"labels": []}, 2), "damaged"),
        ("data_batch_1", pickle.dumps({b"data": Made(bytes, 9), b"labels": []}, 2), "damaged"),
        ("data_batch_1.bin", b"\x00" * 3000, "damaged or cut short"),
        ("data_batch_1.bin", b"\xff" * 3073, "10 classes"),
    ],
)
def test_bad_batches_are_refused(name: str, content: bytes, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"batches.meta.txt": "\n".join(CLASSES).encode(), name: content}
    place = write_folder(tmp_path / "batches", files)
    with pytest.raises(DataError, match=words):
        open_data(DataSettings(data=str(place)))
    assert not Path("marker").exists()


def test_settings_that_cannot_be_obeyed_are_refused(tmp_path: Path) -> None:
    place = write_folder(tmp_path / "batches", cifar_files("binary"))
    with pytest.raises(ConfigError, match="size: does not apply"):
        open_data(DataSettings(data=str(place), size=(16,), crop="centre"))


def write_lmdb(root: Path, pictures: NDArray[np.uint8]) -> Path:
    """As LSUN's own: keys of hexadecimal digits, lossless WebP values."""
    lmdb = pytest.importorskip("lmdb", reason="needs pip install 'ddpm[lsun]'")
    with lmdb.open(str(root), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for number, picture in enumerate(pictures):
            buffer = io.BytesIO()
            Image.fromarray(picture.transpose(1, 2, 0)).save(buffer, format="WEBP", lossless=True)
            transaction.put(f"{number * 7919 % 97:040x}".encode(), buffer.getvalue())
    return root


@pytest.mark.parametrize("share", [0.5, 1e-9])
def test_lsun_is_read_from_memory_and_from_its_file_alike(share: float, tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (9, 3, 20, 24)).astype(np.uint8)
    place = write_lmdb(tmp_path / "bedroom_train_lmdb", pictures)
    order = sorted(range(9), key=lambda number: natural(f"{number * 7919 % 97:040x}.webp"))
    settings = DataSettings(data=str(place), size=(16,), crop="centre", holdout=0.0, memory_share=share)
    for _ in range(2):  # the second time from the index
        found = open_data(settings)
        assert isinstance(found.samples, OnDemand) == (share < 0.1)
        assert found.card.shape == (3, 16, 16) and found.card.count == 9
        raw = found.batch(np.arange(9))[0].astype(int)
        assert np.abs(raw - _resized(pictures[order])).max() == 0


def _resized(pictures: NDArray[np.uint8]) -> NDArray[Any]:
    """The centre square at 16x16, by Pillow, as folders of pictures are brought to size."""
    from ddpm.data.fit import fit

    return np.stack([fit(picture.transpose(1, 2, 0), (16, 16), "centre", "auto", 1 << 26) for picture in pictures]).astype(int)


def test_a_folder_that_is_no_lmdb_is_told(tmp_path: Path) -> None:
    pytest.importorskip("lmdb")
    (tmp_path / "data.mdb").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read as LMDB"):
        open_data(DataSettings(data=str(tmp_path)))


def test_an_lmdb_that_is_cut_or_damaged_is_told(tmp_path: Path) -> None:
    """When it is opened, and when a picture is read later; never by the end of the process."""
    pictures = np.random.default_rng(0).integers(0, 256, (9, 3, 20, 24)).astype(np.uint8)
    place = write_lmdb(tmp_path / "bedroom_train_lmdb", pictures)
    settings = DataSettings(data=str(place), size=(16,), crop="centre", memory_share=1e-9)
    open_data(settings)
    found, file = open_data(settings), place / "data.mdb"  # from the index: the pictures are not looked at
    whole, times = file.read_bytes(), file.stat()
    file.write_bytes(whole[: 2 * mmap.PAGESIZE] + b"\xff" * (len(whole) - 2 * mmap.PAGESIZE))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DataError, match=r"data\.mdb: is damaged .*; fetch it again"):
        found.batch(np.arange(9))
    with pytest.raises(DataError, match=r"data\.mdb: is damaged .*; fetch it again"):
        open_data(replace(settings, size=(8,)))
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"data\.mdb: [0-9,]+ bytes of [0-9,]+; it is cut short, fetch it again"):
        open_data(settings)
