"""Arrays of any shape from files and from Python: layouts, conditions, levels, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ddpm.data import Dataset, DataSettings, arrays, from_arrays, open_data
from ddpm.data.checks import check_image
from ddpm.errors import ConfigError, DataError

RNG = np.random.default_rng(0)


def read(path: Path, **settings: Any) -> Dataset:
    return open_data(DataSettings(data=str(path), **settings))


def npy(path: Path, array: np.ndarray, **settings: Any) -> Dataset:
    np.save(path / "a.npy", array, allow_pickle=True)
    return read(path / "a.npy", **settings)


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((20,), "float32", (1,)),
        ((20, 5), "float32", (5,)),
        ((20, 6, 7), "float64", (1, 6, 7)),
        ((20, 3, 6, 7), "float32", (3, 6, 7)),
        ((20, 2, 3, 4, 5), "float16", (2, 3, 4, 5)),
        ((20, 6, 7, 3), "uint8", (3, 6, 7)),
        ((20, 3, 7, 3), "uint8", (3, 7, 3)),
        ((20, 6, 7, 3), "float32", (6, 7, 3)),
        ((20, 6, 7, 5), "uint8", (6, 7, 5)),
    ],
)
def test_layouts(shape: tuple[int, ...], dtype: str, expected: tuple[int, ...], tmp_path: Path) -> None:
    array = (RNG.random(shape) * 100).astype(dtype)
    dataset = npy(tmp_path, array)
    assert dataset.card.shape == expected and dataset.card.dtype == dtype
    moved = np.moveaxis(array, -1, 1) if (len(shape), dtype, expected[0]) == (4, "uint8", 3) and shape[1] == 6 else array
    assert np.array_equal(np.asarray(dataset.samples).ravel(), moved.ravel())


def test_the_layout_can_be_said(tmp_path: Path) -> None:
    array = RNG.random((10, 4, 9)).astype("float32")
    assert npy(tmp_path, array, layout="first").card.shape == (4, 9)
    assert npy(tmp_path, array, layout="last").card.shape == (9, 4)
    assert any("--layout first" in notice for notice in npy(tmp_path, array).card.notices)


def test_every_kind_of_file_gives_the_same(tmp_path: Path) -> None:
    x, y = RNG.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8), RNG.integers(0, 4, 30)
    vector, image = RNG.random((30, 2)), RNG.random((30, 2, 6, 5)).astype("float32")
    np.savez(tmp_path / "a.npz", x=x, y=y, vector=vector, image=image)
    np.savez_compressed(tmp_path / "b.npz", samples=x, labels=y, vector=vector, image=image)
    save_file({"x": x, "class": y, "vector": vector, "image": image, "extra": y}, tmp_path / "c.safetensors")
    np.savez(tmp_path / "d.npz", arr_0=x, arr_1=y)
    cards = [read(tmp_path / name).card for name in ("a.npz", "b.npz", "c.safetensors", "d.npz")]
    assert len({card.fingerprint for card in cards[:3]}) == 1
    assert cards[3].shape == (3, 6, 5) and cards[3].kind == "image" and cards[3].classes == ("0", "1", "2", "3")
    assert cards[0].vector == ("v0", "v1") and cards[0].image_channels == 2
    assert "c.safetensors: key 'extra' is not used" in cards[2].notices
    raw, cond = read(tmp_path / "a.npz").batch(np.array([4, 2]))
    assert np.array_equal(raw, x[[4, 2]].transpose(0, 3, 1, 2)) and np.array_equal(cond["class"], y[[4, 2]])
    assert cond["vector"].dtype == np.float32 and cond["class"].dtype == np.int64 and np.array_equal(cond["image"], image[[4, 2]])


def test_large_files_are_mapped_and_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = RNG.normal(280, 5, (500, 2, 8, 8)).astype("float32")
    np.save(tmp_path / "a.npy", x)
    save_file({"x": x, "y": np.arange(500) % 3}, tmp_path / "a.safetensors")
    expected = read(tmp_path / "a.npy").card
    monkeypatch.setattr(arrays, "_MAP_FROM", 1000)
    monkeypatch.setattr("ddpm.data.doctor._CHUNK_BYTES", 10_000)
    mapped = read(tmp_path / "a.npy")
    assert isinstance(mapped.samples, np.memmap) and mapped.card.fingerprint == expected.fingerprint
    assert np.allclose(mapped.card.mean, expected.mean, rtol=1e-12) and np.allclose(mapped.card.std, expected.std, rtol=1e-10)
    tensors = read(tmp_path / "a.safetensors")
    assert isinstance(tensors.samples, np.memmap) and np.array_equal(tensors.samples, x) and tensors.card.class_counts == (167, 167, 166)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("trap-was-run"),)


def test_objects_damage_and_disagreement_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x = np.zeros((10, 4))
    for name, write in {
        "o.npy": lambda p: np.save(p, np.array([Trap()], dtype=object), allow_pickle=True),
        "o.npz": lambda p: np.savez(p, x=np.array([Trap()], dtype=object)),
        "p.npy": lambda p: p.write_bytes(pickle.dumps(Trap())),
        "empty.npy": lambda p: p.write_bytes(b""),
        "empty.npz": lambda p: p.write_bytes(b""),
        "empty.safetensors": lambda p: p.write_bytes(b""),
    }.items():
        write(tmp_path / name)
        with pytest.raises(DataError, match=rf"{name}: not a readable .* file of numbers"):
            read(tmp_path / name)
    assert not Path("trap-was-run").exists()
    np.save("a.npy", RNG.random((10, 4)))
    np.savez("a.npz", x=x)
    save_file({"x": x}, "a.safetensors")
    for name in ("a.npy", "a.npz", "a.safetensors"):
        whole = Path(name).read_bytes()
        Path(name).write_bytes(whole[: len(whole) * 2 // 3])
        with pytest.raises(DataError, match=name):
            read(Path(name))
    for content, said in (
        ({"z": x}, "no samples; expected a key x, samples, arr_0, found z"),
        ({"x": x, "samples": x}, "x and samples, all of which mean samples"),
        ({"x": x, "y": np.zeros(9, int)}, "10 samples but the condition 'class' has shape .9,."),
        ({"x": x, "y": np.full(10, 0.5)}, "condition 'class' is of type float64; expected whole numbers"),
        ({"x": x, "y": np.arange(10) - 1}, "row 0 has class -1; class ids start at 0"),
        ({"x": x, "vector": np.full((10, 2), np.inf)}, "condition 'vector': NaN or infinity in row 0"),
        ({"x": x.astype(complex)}, "type complex128; allowed are integers and real floats"),
        ({"x": np.zeros((0, 4))}, r"shape \(0, 4\); expected \(N, ...\) with no empty axis"),
    ):
        np.savez("b.npz", **content)  # pyright: ignore[reportArgumentType]
        with pytest.raises(DataError, match=said):
            read(Path("b.npz"))


def test_rows_with_nan_are_named(tmp_path: Path) -> None:
    x = RNG.random((5000, 600)).astype("float32")
    x[[4321, 17, 4999], 3] = np.nan, np.inf, -np.inf
    with pytest.raises(DataError, match="NaN or infinity in row 17 "):
        npy(tmp_path, x)
    x[17] = 0
    with pytest.raises(DataError, match="NaN or infinity in row 4321, 4999 "):
        npy(tmp_path, x)


def test_levels_of_integers() -> None:
    def bins(array: np.ndarray, **more: Any) -> tuple[float, float] | None:
        return from_arrays(array, **more).card.bins

    levels = np.arange(20).reshape(10, 2)
    assert bins(levels.astype("uint8")) == (0, 255) and bins(levels.astype("uint16")) == (0, 65535)
    assert bins(levels - 7) == (-7, 12) and bins(levels * 10**6) is None and bins(levels.astype("float32")) is None
    assert bins(levels.astype("uint8"), bins=(0, 31)) == (0, 31) and bins(levels > 5) == (0, 255)
    with pytest.raises(DataError, match=r"samples lie in 0..19, outside the bins \(0, 16\)"):
        bins(levels, bins=(0, 16))
    with pytest.raises(DataError, match="only integers have bins"):
        bins(levels / 2, bins=(0, 16))


def test_a_persons_own_arrays() -> None:
    x = RNG.random((40, 3, 16)).astype(">f4")  # channels first by default, and another byte order
    rows = np.array([3, 1, 39])
    dataset = from_arrays(x, {"class": np.arange(40) % 2}, name="waves", classes=["low", "high"], holdout=rows)
    assert dataset.card.shape == (3, 16) and dataset.card.classes == ("low", "high") and dataset.card.normalise == "standard"
    assert list(dataset.held_rows) == [1, 3, 39] and len(dataset.train_rows) == 37
    raw, _ = dataset.batch(np.array([5, 6]), np.random.default_rng(0))
    assert raw.dtype.isnative and np.array_equal(raw, x[5:7])
    raw[:] = 0  # a copy: the data stay as they are
    assert np.array_equal(dataset.samples[5:7], x[5:7])
    for bad in (np.array([1, 1]), np.array([40]), np.array([-1]), np.array([0.5])):
        with pytest.raises(DataError, match="held-out rows must be different whole numbers in 0..39"):
            from_arrays(x, holdout=bad)
    with pytest.raises(DataError, match=r"row 3 has class 3, there may be 2 \(0-1\)"):
        from_arrays(x[:4], {"class": np.arange(4)}, classes=["low", "high"])
    with pytest.raises(DataError, match="unknown condition 'label'"):
        from_arrays(x, {"label": np.arange(40)})
    with pytest.raises(ConfigError, match="flip: set, but samples of arrays have shape"):
        from_arrays(x, flip=True)


def test_flips_turn_the_image_condition_too() -> None:
    x = RNG.random((200, 1, 4, 6))
    dataset = from_arrays(x, {"image": x}, flip=True)
    raw, cond = dataset.batch(np.arange(200), np.random.default_rng(0))
    assert np.allclose(raw, cond["image"]) and not np.allclose(raw, x)


@pytest.mark.parametrize(("image", "said"), [
    (np.zeros((200, 1, 8, 8), np.float32), r"the condition 'image' is 8 x 8, the samples are 4 x 6"),
    (np.full((200, 1, 4, 6), 255, np.uint8), r"is 255 in root mean square; bring it to about -1 to 1 \(pictures of bytes: x / 127.5 - 1"),
    (np.full((200, 1, 4, 6), -280.0), "is 280 in root mean square"),
    (np.repeat([0, 255], 100)[:, None, None, None] * np.ones((1, 1, 4, 6), np.uint8), "is 18"),  # wherever the bright ones are
])  # fmt: skip
def test_an_image_condition_has_the_samples_axes_and_their_range(image: Any, said: str) -> None:
    data = from_arrays(RNG.random((200, 1, 4, 6)), {"image": image})
    with pytest.raises(DataError, match=said):
        check_image(data)


def test_image_conditions_of_few_large_numbers_and_of_as_many_channels_as_one_likes_are_trained_on() -> None:
    heavy = RNG.standard_t(2, (200, 3, 4, 6))
    heavy[3, 0, 1, 1] = 90.0
    check_image(from_arrays(RNG.random((200, 1, 4, 6)), {"image": heavy}))
    check_image(from_arrays(RNG.random((200, 1, 4, 6))))
    with pytest.raises(DataError, match="has 3 axes; expected 4"):
        from_arrays(RNG.random((20, 1, 4, 6)), {"image": np.zeros((20, 4, 6), np.float32)})


def test_settings_for_pictures_are_refused_not_ignored(tmp_path: Path) -> None:
    wrong: list[dict[str, Any]] = [{"size": (8,)}, {"size": (8,), "crop": "centre"}, {"channels": "rgb"}, {"labels": "labels.csv"}]
    for settings in wrong:
        with pytest.raises(ConfigError, match="does not apply to digits"):
            open_data(DataSettings(**settings))
    assert "class" not in open_data(DataSettings(labels="none")).cond
