"""Folders of pictures: order, sizes, crops, channels, and what is refused before the first step."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm.data import Dataset, DataSettings, check_fits, open_data, ragged, require
from ddpm.data.fit import Misfit, fit
from ddpm.errors import ConfigError, DataError


def read(folder: Path, **settings: object) -> Dataset:
    return open_data(DataSettings(data=str(folder), **settings))  # type: ignore[arg-type]


def put(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def random_pixels(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_natural_order_and_channels_first(tmp_path: Path) -> None:
    for i in (10, 2, 1, 100):
        put(tmp_path / f"{i}.png", np.full((2, 3, 3), [i, 0, 1]))
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden.png").write_text("not one either")
    dataset = read(tmp_path)
    assert dataset.card.shape == (3, 2, 3) and dataset.card.kind == "image" and dataset.card.bins == (0, 255)
    assert list(dataset.samples[:, 0, 0, 0]) == [1, 2, 10, 100] and (dataset.samples[:, 2] == 1).all()
    assert any(notice.startswith("2 other files ignored") for notice in dataset.card.notices)


def test_grey_alone_has_one_channel_and_among_colour_three(tmp_path: Path) -> None:
    for i in range(4):
        put(tmp_path / f"{i}.png", random_pixels(4, 4, 1, i))
    assert read(tmp_path).card.shape == (1, 4, 4) and read(tmp_path, channels="rgb").card.shape == (3, 4, 4)
    put(tmp_path / "colour.png", random_pixels(4, 4))
    mixed = read(tmp_path)
    assert mixed.card.shape == (3, 4, 4) and "4 grey pictures given three channels, as the others have" in mixed.card.notices
    assert np.array_equal(mixed.samples[0, 0], mixed.samples[0, 2])
    assert read(tmp_path, channels="grey").card.shape == (1, 4, 4)


def test_mixed_sizes_need_a_size_and_a_crop(tmp_path: Path) -> None:
    for i, (height, width) in enumerate([(8, 12), (8, 12), (8, 12), (20, 10), (6, 6)]):
        put(tmp_path / f"{i}.png", random_pixels(height, width, seed=i))
    with pytest.raises(DataError, match=r"3 sizes \(height x width: 3 of 8x12, 1 of .*give --size and --crop centre or --crop random"):
        read(tmp_path)
    with pytest.raises(DataError, match="4 pictures .3 of 12x8.* of another shape than the size asked for; add --crop centre"):
        read(tmp_path, size=(6,))
    assert read(tmp_path, size=(6,), crop="centre").card.shape == (3, 6, 6)
    assert read(tmp_path, size=(4, 8), crop="centre").card.shape == (3, 4, 8)
    assert read(tmp_path, size=(6,), crop="random").card.shape == (3, 6, 6)
    with pytest.raises(ConfigError, match="crop: got 'centre' without a size"):
        read(tmp_path, crop="centre")


def test_resizing_keeps_the_middle_and_never_squashes() -> None:
    wide = np.zeros((10, 30), dtype=np.uint8)
    wide[:, 10:20] = 200  # the centred square
    assert (fit(wide, (10, 10), "centre", "auto", 10**6) == 200).all()
    assert fit(wide, (5, 15), "none", "auto", 10**6).shape == (1, 5, 15)
    with pytest.raises(Misfit):
        fit(wide, (10, 10), "none", "auto", 10**6)
    assert fit(random_pixels(33, 50), (16, 24), "none", "auto", 10**6).shape == (3, 16, 24)  # 24.2 wide: rounding, not squashing
    board = np.indices((64, 64)).sum(0) % 2 * 255  # antialiased: a fine chessboard is grey
    assert abs(fit(board.astype(np.uint8), (8, 8), "centre", "auto", 10**6).astype(float).mean() - 127.5) < 1
    odd = random_pixels(32, 45)  # what is only cut is cut at whole pixels, and not filtered
    assert np.array_equal(fit(odd, (32, 32), "centre", "auto", 10**6), np.moveaxis(odd[:, 6:38], -1, 0))
    deep = (np.linspace(0, 65535, 64).astype(np.uint16))[None].repeat(64, 0)
    small = fit(deep, (32, 32), "centre", "auto", 10**6)
    assert small.dtype == np.uint16 and np.ptp(small) > 60_000 and len(np.unique(small)) == 32


def test_random_crops_are_parts_of_the_pictures_all_places_and_a_function_of_the_generator(tmp_path: Path) -> None:
    place = np.indices((8, 12))
    for i in range(6):
        put(tmp_path / f"{i}.png", np.stack([place[0], place[1], np.full((8, 12), i)], axis=-1))
    dataset = read(tmp_path, size=(8,), crop="random")
    rows = np.repeat(np.arange(6), 50)
    raw, _ = dataset.batch(rows, np.random.default_rng(7))
    again, _ = dataset.batch(rows, np.random.default_rng(7))
    other, _ = dataset.batch(rows, np.random.default_rng(8))
    assert np.array_equal(raw, again) and not np.array_equal(raw, other)
    assert np.array_equal(raw[:, 2, 0, 0], rows)
    left = raw[:, 1, 0, 0]
    assert set(left) == {0, 1, 2, 3, 4} and np.bincount(left).min() > 30  # 60 expected of each
    assert np.array_equal(raw[:, 1], left[:, None, None] + np.broadcast_to(np.arange(8), (300, 8, 8)))
    still, _ = dataset.batch(rows)
    assert (still[:, 1, 0, 0] == 2).all() and np.array_equal(still, dataset.samples[rows])  # no generator: the centre
    assert np.array_equal(dataset.samples[3], dataset.samples[3:4][0]) and dataset.samples[1:3].shape == (2, 3, 8, 8)
    before = dataset.card.fingerprint
    put(tmp_path / "0.png", np.stack([place[0], place[1] * (place[1] < 11), np.zeros((8, 12))], axis=-1))  # outside the centre
    assert read(tmp_path, size=(8,), crop="random").card.fingerprint != before


def test_flips_mirror_half_and_only_where_asked(tmp_path: Path) -> None:
    for i in range(4):
        put(tmp_path / f"{i}.png", random_pixels(4, 6, seed=i))
    dataset = read(tmp_path, flip=True)
    rows = np.tile(np.arange(4), 100)
    raw, _ = dataset.batch(rows, np.random.default_rng(0))
    plain = np.asarray(dataset.samples)[rows]
    mirrored = (raw == plain[..., ::-1]).all(axis=(1, 2, 3))
    assert ((raw == plain).all(axis=(1, 2, 3)) ^ mirrored).all() and 150 < mirrored.sum() < 250
    assert np.array_equal(dataset.batch(rows)[0], plain)
    assert np.array_equal(read(tmp_path).batch(rows, np.random.default_rng(0))[0], plain)


def test_empty_folders_and_small_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pictures; expected .png, .* found no files"):
        read(tmp_path)
    (tmp_path / "readme.txt").write_text("")
    with pytest.raises(DataError, match="found readme.txt"):
        read(tmp_path)
    with pytest.raises(DataError, match="nowhere: no such file or folder; --data takes digits"):
        read(Path("nowhere"))
    for i in range(5):
        put(tmp_path / f"{i}.png", random_pixels(4, 4, 1, i))
    dataset = read(tmp_path)
    require(dataset, 4)
    with pytest.raises(DataError, match=r"4 training samples \(1 more are held out\), fewer than one batch of 8; use a batch of at most 4"):
        require(dataset, 8)


def test_data_that_do_not_fit_the_model(tmp_path: Path) -> None:
    for i in range(5):
        put(tmp_path / "grey" / f"{i}.png", random_pixels(4, 4, 1, i))
        put(tmp_path / "colour" / "ab"[i % 2] / f"{i}.png", random_pixels(8, 8, 3, i))
    grey, colour = read(tmp_path / "grey").card, read(tmp_path / "colour").card
    check_fits(grey, grey)
    with pytest.raises(DataError) as caught:
        check_fits(grey, colour)
    for said in (
        "channels: model expects 3, data have 1 (use --channels rgb)",
        "size: model expects 8x8, data have 4x4 (use --size)",
        "classes: model expects 2, data have no labels",
    ):
        assert said in str(caught.value)
    digits = open_data(DataSettings()).card
    with pytest.raises(DataError, match=r"levels: model expects 0..255, data have 0..16"):
        check_fits(digits, grey)
    put(tmp_path / "colour" / "c" / "1.png", random_pixels(8, 8))
    with pytest.raises(DataError, match=r"classes: model has 2 \(0-1\), data have 3 \(0-2\)"):
        check_fits(read(tmp_path / "colour").card, colour)


def test_sets_larger_than_the_memory_go_to_a_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(20):
        put(tmp_path / f"{i}.png", random_pixels(8, 8 if i % 2 else 12, seed=i))
    packed = Path(shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path))
    kinds = ({"size": (8,), "crop": "centre"}, {"size": (8,), "crop": "random"})
    expected = [read(packed, **kind) for kind in kinds]
    monkeypatch.setattr(ragged, "memory", lambda: 2000)
    for kind, small in zip(kinds, expected, strict=True):
        large = read(packed, **kind)
        assert large.card.fingerprint == small.card.fingerprint and any("temporary file" in notice for notice in large.card.notices)
        rows = np.arange(20)
        assert np.array_equal(large.batch(rows, np.random.default_rng(0))[0], small.batch(rows, np.random.default_rng(0))[0])


def test_a_link_back_up_is_followed_once(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1.png", random_pixels(4, 4))
    put(tmp_path / "b" / "2.png", random_pixels(4, 4, seed=1))
    try:
        (tmp_path / "a" / "up").symlink_to(tmp_path)
    except OSError:
        pytest.skip("this system does not allow links")
    assert read(tmp_path).card.count == 2
