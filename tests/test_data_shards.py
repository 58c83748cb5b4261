"""Data in shards: the same samples as from a folder, each once an epoch, read nearly one shard after another."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpm.data import Dataset
from ddpm.data.demand import OnDemand
from ddpm.errors import ConfigError, DataError
from ddpm.random import generator
from ddpm.training.feed import rows_of
from shard_files import png, read, samples, write_folder, write_shard, write_shards
from small_runs import table

MIXED = samples(60, sides=(9, 12, 8), modes=("RGB", "L", "P"))
KINDS: dict[str, dict[str, Any]] = {
    "centre": {"size": (8,), "crop": "centre"},
    "random": {"size": (8,), "crop": "random", "flip": True},
    "grey": {"size": (6, 8), "crop": "centre", "channels": "grey"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_shards_are_the_same_data_as_a_folder_bit_for_bit(kind: str, tmp_path: Path) -> None:
    shards = read(write_shards(tmp_path / "s", MIXED, 7), **KINDS[kind])
    folder = read(write_folder(tmp_path / "f", MIXED), **KINDS[kind])
    assert isinstance(shards.samples, OnDemand) and not isinstance(folder.samples, OnDemand)
    assert np.array_equal(shards.samples[:], folder.samples[:]) and shards.samples.dtype == folder.samples.dtype
    assert np.array_equal(shards.cond["class"], folder.cond["class"]) and np.array_equal(shards.held_rows, folder.held_rows)
    assert replace(shards.card, name="", fingerprint="") == replace(folder.card, name="", fingerprint="")
    for seed in range(3):
        rows = np.random.default_rng(seed).integers(0, 60, 25)
        (a, a_cond), (b, b_cond) = (data.batch(rows, np.random.default_rng(seed)) for data in (shards, folder))
        assert np.array_equal(a, b) and np.array_equal(a_cond["class"], b_cond["class"])


def test_shards_are_named_by_a_range_a_star_their_folder_or_alone(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path / "s", samples(24), 5)
    expected = read(pattern).card
    for name in (tmp_path / "s", tmp_path / "s" / "set-*.tar", tmp_path / "s" / "set-{0..4}{0..9}.tar"):
        if "}{" in str(name):  # two ranges: 00 to 49 of 4-digit names do not exist
            with pytest.raises(DataError, match=r"50 of 50 shards are missing: set-00.tar, .*check the pattern, and quote it"):
                read(name)
        else:
            assert read(name).card.fingerprint == expected.fingerprint, name
    lone = read(tmp_path / "s" / "set-0001.tar")
    assert lone.card.count == 5 and list(lone.cond["class"]) == [2, 0, 1, 2, 0]
    with pytest.raises(DataError, match=r"1 of 6 shards are missing: set-0005.tar"):
        read(pattern.replace("0004}", "0005}"))
    with pytest.raises(DataError, match="no such shards"):
        read(tmp_path / "s" / "other-*.tar")
    with pytest.raises(DataError, match="range of shards is empty"):
        read(tmp_path / "set-{3..1}.tar")
    write_shard(tmp_path / "z" / "a-0.tar", samples(3), "w:gz")
    with pytest.raises(DataError, match=r"a-0.tar: compressed, so its samples cannot be read one by one; unpack the shards"):
        read(tmp_path / "z" / "a-*.tar")


def labelled(values: dict[str, object], names: str = "abcdefghij") -> dict[str, bytes]:
    files = {f"{name}.png": png(i) for i, name in enumerate(names)}
    for name, value in values.items():
        files[name] = value.encode() if isinstance(value, str) else json.dumps(value).encode()
    return files


def test_classes_come_from_cls_json_folders_or_a_labels_file(tmp_path: Path) -> None:
    entries = {f"{name}.json": {"label": ["cat", "ant"][i % 2], "text": "x"} for i, name in enumerate("abcdefghij")}
    data = read(write_shard(tmp_path / "j" / "1.tar", labelled(dict(entries))).parent)
    assert data.card.classes == ("ant", "cat") and list(data.cond["class"]) == [1, 0] * 5
    both = labelled({**{f"{name}.json": {"cls": 1} for name in "abcdefghij"}, **{f"{name}.cls": "0" for name in "abc"}})
    assert list(read(write_shard(tmp_path / "b" / "1.tar", both).parent).cond["class"]) == [0] * 3 + [1] * 7
    inside = {f"{kind}/{i}.png": png(i) for kind in ("dog", "cat") for i in range(5)} | {"dog/1.txt": b"a caption"}
    card = read(write_shard(tmp_path / "f" / "1.tar", inside).parent)
    assert card.card.classes == ("cat", "dog") and card.card.captions == 1 and card.card.examples == ("a caption",)
    write_shard(tmp_path / "l" / "1.tar", samples(6))
    (tmp_path / "given.csv").write_text("file_name,label\n" + "".join(f"{i:06d}.png,{i % 2}\n" for i in range(6)))
    assert list(read(tmp_path / "l", labels=str(tmp_path / "given.csv")).cond["class"]) == [0, 1] * 3
    assert read(tmp_path / "j", labels="none").card.classes == () and "class" not in read(tmp_path / "j", labels="none").cond


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({f"{name}.cls": "1" for name in "abcdefgh"}, r"2 labels cannot be used.*\n  1.tar/i.png: no .cls, and no label in a .json"),
        ({**{f"{name}.cls": "1" for name in "abcdefghij"}, "b.cls": "-1"}, r"1.tar/b.cls: class -1; allowed are 0 to"),
        ({**{f"{name}.cls": "1" for name in "abcdefghij"}, "b.cls": "cat"}, r"has a number for its class, 1.tar/b.png a name"),
        ({**{f"{name}.cls": "1" for name in "abcdefghij"}, "b.cls": " "}, r"1.tar/b.cls: empty"),
        ({"b.json": "{"}, r"1.tar/b.json: not JSON"),
        ({"b.json": {"label": [1]}}, r"1.tar/b.json: its label is neither a whole number nor a name"),
    ],
)
def test_wrong_labels_are_listed(labels: dict[str, object], reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        read(write_shard(tmp_path / "s" / "1.tar", labelled(labels)).parent)
    assert caught.value.exit_code == 3


def test_shards_called_train_and_validation_are_splits(tmp_path: Path) -> None:
    for part, count in (("train", 12), ("val", 4), ("test", 3)):
        write_shard(tmp_path / f"{part}-000.tar", {f"{i}.png": png(hash(part) % 99 + i) for i in range(count)})
    data = read(tmp_path)
    assert data.card.count == 16 and list(data.held_rows) == [12, 13, 14, 15] and "3 pictures in test/ are left out" in data.card.notices


def test_members_that_are_not_allowed_are_refused_by_shard_and_name(tmp_path: Path) -> None:
    write_shards(tmp_path, samples(10), 5)
    write_shard(tmp_path / "set-0002.tar", {"../evil.png": png(1)})
    with pytest.raises(DataError, match=r"set-0002.tar: member '../evil.png' points out of the archive"):
        read(tmp_path)
    with tarfile.open(tmp_path / "set-0002.tar", "w") as archive:
        link = tarfile.TarInfo("evil.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match=r"set-0002.tar: member 'evil.png' is a symbolic link; refused"):
        read(tmp_path)
    write_shard(tmp_path / "set-0002.tar", {"a.png": png(1), "a.cls": b"0", "a.seg.png": png(2)})
    with pytest.raises(DataError, match=r"one key, two pictures: set-0002.tar/a.png and set-0002.tar/a.seg.png; keep one"):
        read(tmp_path)
    (tmp_path / "set-0002.tar").write_bytes(write_shard(tmp_path / "x", samples(9)).read_bytes()[:2000])
    with pytest.raises(DataError, match=r"set-0002.tar: damaged"):
        read(tmp_path)


def test_bad_pictures_are_listed_or_skipped_with_their_labels(tmp_path: Path) -> None:
    files = samples(200)
    files["000042.png"] = files["000042.png"][:60]
    pattern = write_shards(tmp_path / "s", files, 30)
    with pytest.raises(DataError, match=r"1 unreadable images of 200.*\n  set-0001.tar/000042.png: damaged or cut short"):
        read(pattern)
    data = read(pattern, on_bad_image="skip")
    assert data.card.count == 199 and data.card.unreadable == ("set-0001.tar/000042.png: damaged or cut short",)
    assert list(data.cond["class"]) == [i % 3 for i in range(200) if i != 42]
    assert np.array_equal(data.samples[42], read(write_folder(tmp_path / "f", {"1.png": files["000043.png"]}, classes=0)).samples[0])


def test_labels_without_a_picture_are_counted(tmp_path: Path) -> None:
    assert read(write_shards(tmp_path / "t", samples(15), 15)).card.notices == ()
    labelled = samples(15) | {f"{i:06d}.cls": b"1" for i in range(30)}
    data = read(write_shard(tmp_path / "s-0.tar", labelled))
    assert data.card.count == 15 and data.card.notices == ("15 labels belong to no sample: are pictures missing?",)


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def test_arrays_in_shards_are_the_same_data_as_one_array(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(0.0, 3.0, (30, 2, 16)).astype(np.float32)
    for shard in range(3):
        files = {f"{i:03d}.npy": npy(values[i]) for i in range(10 * shard, 10 * shard + 10)}
        write_shard(tmp_path / "s" / f"{shard}.tar", files | {name.replace("npy", "cls"): b"%d" % (shard % 2) for name in files})
    np.save(tmp_path / "all.npy", values)
    shards, whole = read(tmp_path / "s", layout="first"), read(tmp_path / "all.npy", layout="first")
    assert np.array_equal(shards.samples[:], whole.samples[:]) and list(shards.cond["class"]) == [0] * 10 + [1] * 10 + [0] * 10
    assert shards.card.shape == (2, 16) and shards.card.kind == "array" and shards.card.bins is None
    assert shards.card.normalise == whole.card.normalise == "standard" and shards.card.low == pytest.approx(values.min((0, 2)), abs=2)
    write_shard(tmp_path / "s" / "3.tar", {"900.npy": npy(values[0, :, :8]), "900.cls": b"0"})
    with pytest.raises(
        DataError, match=r"arrays of 2 shapes or types .float32 \(2, 16\) as 0.tar/000.npy; float32 \(2, 8\) as 3.tar/900.npy"
    ):
        read(tmp_path / "s", layout="first")
    write_shard(tmp_path / "s" / "3.tar", {"900.npy": npy(np.array([{}], dtype=object)), "900.cls": b"0"})
    with pytest.raises(DataError, match=r"1 unreadable arrays of 31.*\n  3.tar/900.npy: not a readable .npy array of numbers"):
        read(tmp_path / "s", layout="first")
    with pytest.raises(ConfigError, match="size: does not apply"):
        read(tmp_path / "s", size=(4,))


# --- order --------------------------------------------------------------------------------------------------------------------------------


def visits(data: Dataset, epoch: int) -> np.ndarray:
    size = len(data.train_rows)
    return rows_of(data, 5, epoch * size, size)


@pytest.mark.parametrize("window", [1, 3, 50])
def test_each_sample_once_an_epoch_and_never_more_than_a_window_of_shards(window: int, tmp_path: Path) -> None:
    data = read(write_shards(tmp_path, samples(120), 8), shard_window=window)
    assert isinstance(data.samples, OnDemand)
    epochs = [visits(data, epoch) for epoch in range(3)]
    assert all(np.array_equal(np.sort(rows), data.train_rows) for rows in epochs) and not np.array_equal(epochs[0], epochs[1])
    of_each = data.samples.shards
    for rows in epochs:
        shards = of_each[rows]
        first, last = ({int(s): int(np.flatnonzero(shards == s)[k]) for s in np.unique(shards)} for k in (0, -1))
        open_at = [sum(first[s] <= i <= last[s] for s in first) for i in range(len(shards))]
        assert max(open_at) <= window  # every shard is opened once and done with before the next window begins
        if window == 1:
            assert (np.diff(shards) != 0).sum() == 14
    starts = [tuple(dict.fromkeys((of_each[rows]).tolist())) for rows in epochs]
    assert len(set(starts)) == 3  # the shards come in another order
    assert any(np.any(np.diff(rows[of_each[rows] == 3]) < 0) for rows in epochs)  # and their samples too


def test_the_order_is_a_function_of_seed_and_epoch_and_of_other_data_as_before(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, samples(60), 7)
    a, b = read(pattern), read(pattern)
    assert a is not b and np.array_equal(a.order(3, 2), b.order(3, 2)) and not np.array_equal(a.order(3, 2), a.order(4, 2))
    whole = np.concatenate([visits(a, epoch) for epoch in range(2)])
    for first, count in ((0, 3), (50, 9), (30, 70)):
        assert np.array_equal(rows_of(b, 5, first, count), whole[first : first + count])
    plain = table(50, holdout=0.2)
    for epoch in range(3):
        assert np.array_equal(plain.order(7, epoch), generator(7, "order", epoch).permutation(len(plain.train_rows)))
