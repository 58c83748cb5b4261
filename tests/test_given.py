"""Samples drawn from a part of what they say: super-resolution, colourisation, and condition images of a person's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ddpm
from ddpm.cli import main
from ddpm.cli.given import beside_of
from ddpm.denoiser import GIVENS, Given, Grey, Small
from ddpm.distillation import Consistency, DistillConfig, distill
from ddpm.errors import ConfigError
from ddpm.evaluation.drawing.ready import Ready
from ddpm.training.given import with_given

SHAPES = {Small: [(1, 8), (3, 8, 4), (2, 4, 8, 4)], Grey: [(3, 4, 6)]}
NET = ddpm.UNetConfig(channels=8, mults=(1, 2), blocks=1, attention=(), groups=4)


@pytest.mark.parametrize(("kind", "shape"), [(kind, shape) for kind in GIVENS for shape in SHAPES[kind]])
def test_what_is_given_averages(kind: type[Given], shape: tuple[int, ...]) -> None:
    given = kind()
    assert given.refusal(shape) is None
    x, y = torch.randn(2, 5, *shape, dtype=torch.float64)
    made = given(x)
    assert made.shape == (5, given.channels(shape), *shape[1:])
    torch.testing.assert_close(given(2.0 * x - 3.0 * y), 2.0 * made - 3.0 * given(y))
    torch.testing.assert_close(given(torch.full_like(x, 0.7)), torch.full_like(made, 0.7))
    whole = made if made.shape == x.shape else made.expand_as(x)
    torch.testing.assert_close(given(whole), made)  # what is given of something that is all given


def test_small_is_the_mean_of_blocks() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert Small(factor=2)(x)[0, 0, 0].tolist() == [2.5, 2.5, 4.5, 4.5]
    small = torch.nn.functional.avg_pool2d(x, 2)
    torch.testing.assert_close(Small(factor=2).widened(small, (1, 4, 4)), Small(factor=2)(x))
    assert Small(factor=4).widened(small, (1, 4, 4)) is None


def test_grey_is_as_pillow_has_it() -> None:
    raw = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    x = torch.from_numpy(raw).permute(2, 0, 1)[None] / 127.5 - 1.0
    grey = torch.from_numpy(np.array(Image.fromarray(raw).convert("L"))) / 127.5 - 1.0
    torch.testing.assert_close(Grey()(x)[0, 0], grey, atol=1.0 / 127.5, rtol=0.0)


@pytest.mark.parametrize(
    ("given", "shape", "said"), [(Small(factor=3), (1, 8, 8), "multiples"), (Small(), (7,), "multiples"), (Grey(), (1, 8, 8), "grey")]
)
def test_samples_that_cannot_be_drawn_so(given: Given, shape: tuple[int, ...], said: str) -> None:
    data = ddpm.from_arrays(np.zeros((20, *shape), np.float32) + np.arange(20).reshape(-1, *[1] * len(shape)))
    with pytest.raises(ConfigError, match=said):
        with_given(data, given)


def test_mirrored_with_the_samples() -> None:
    data = with_given(ddpm.from_arrays(np.random.default_rng(0).normal(size=(20, 3, 4, 4)).astype(np.float32), flip=True), Small(factor=2))
    raw, cond = data.batch(np.arange(20), np.random.default_rng(3))
    x = ddpm.denoiser.Codec.of(data.card).encode(raw)
    torch.testing.assert_close(torch.from_numpy(cond["image"]), Small(factor=2)(x))
    assert data.card.image_channels == 3 and with_given(data, Small(factor=2)) is data


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The digits from digits of half the size."""
    out = tmp_path_factory.mktemp("given") / "run"
    config = ddpm.TrainConfig(
        steps=12, batch=16, network=NET, given=Small(factor=2), out=str(out), preview=4, checkpoint_every=6, track=("none",)
    )
    ddpm.train(config, quiet=True)
    return out


def test_a_model_knows_what_it_is_given(run: Path) -> None:
    model = ddpm.load(str(run))
    assert model.given == Small(factor=2) and "image" in model.conditions
    document = json.loads((sorted(run.glob("step-*"))[-1] / "config.json").read_text())
    assert document["cond"]["image"] == 1 and "Small" in json.dumps(document["given"])


def test_drawn_from_held_out_data_or_pictures(run: Path, tmp_path: Path, capsys) -> None:
    assert main(["sample", str(run), "--n", "8", "--steps", "3", "--format", "npz", "--out", str(tmp_path / "a")]) == 0
    assert (tmp_path / "a" / "grid.png").is_file()
    tiny, whole = tmp_path / "tiny.png", tmp_path / "whole.png"
    digit = ddpm.data.open_data(ddpm.DataSettings()).batch(np.array([5]))[0]
    Image.fromarray((digit[0, 0] * 15).astype(np.uint8)).save(whole)
    pooled = torch.nn.functional.avg_pool2d(torch.from_numpy(digit).float(), 2)[0, 0].numpy()
    Image.fromarray(np.rint(pooled * 255 / 16).astype(np.uint8)).save(tiny)
    drawn = {}
    for name in ("tiny", "whole"):
        where = tmp_path / f"from-{name}"
        flags = [
            "--given",
            str(tmp_path / f"{name}.png"),
            "--n",
            "2",
            "--classes",
            "5",
            "--steps",
            "3",
            "--format",
            "npz",
            "--out",
            str(where),
        ]
        assert main(["sample", str(run), *flags]) == 0
        drawn[name] = np.load(next(where.glob("*.npz")))["arr_0"].astype(float)
    assert np.abs(drawn["tiny"] - drawn["whole"]).max() <= 4.0  # levels of 17: the small picture was rounded
    assert main(["sample", str(run), "--given", str(tmp_path / "none.png"), "--n", "2"]) == 3
    assert "none.png" in capsys.readouterr().err


def test_refused_where_nothing_is_given(tmp_path: Path, capsys) -> None:
    out = tmp_path / "plain"
    config = ddpm.TrainConfig(steps=2, batch=16, network=NET, out=str(out), preview=0, monitor=False, track=("none",))
    ddpm.train(config, quiet=True)
    assert main(["sample", str(out), "--given", "held-out", "--n", "2"]) == 2
    assert "without a condition image" in capsys.readouterr().err
    changed = ddpm.TrainConfig(
        steps=4, batch=16, network=NET, given=Small(factor=2), out=str(out), preview=0, monitor=False, track=("none",)
    )
    with pytest.raises(ConfigError, match="given"):
        ddpm.train(changed, quiet=True)


def test_condition_images_of_ones_own(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(40, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, image=x.repeat(2, 1) * 0.5)
    out = tmp_path / "own"
    flags = [
        "--network",
        "UNetConfig",
        "--network.attention",
        "0",
        "--network.channels",
        "8",
        "--network.mults",
        "1",
        "--network.groups",
        "4",
        "--preview",
        "0",
    ]
    assert main(["train", "--data", str(tmp_path / "d.npz"), "--steps", "2", "--batch", "8", "--out", str(out), *flags]) == 0
    np.save(tmp_path / "c.npy", np.zeros((3, 2, 8, 8), np.float32))
    assert main(["sample", str(out), "--n", "3", "--steps", "2", "--given", str(tmp_path / "c.npy"), "--out", str(tmp_path / "s")]) == 0
    np.save(tmp_path / "bad.npy", np.zeros((3, 1, 8, 8), np.float32))
    assert main(["sample", str(out), "--n", "3", "--given", str(tmp_path / "bad.npy"), "--out", str(tmp_path / "t")]) == 3


def test_held_out_pictures_come_with_their_own_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given of a sample says where it has entries; its mask says the same."""
    draw = np.random.default_rng(0)
    there = draw.random((40, 1, 8, 8)) < 0.7
    image = there.astype(np.float32)
    np.savez(tmp_path / "d.npz", x=draw.normal(size=(40, 1, 8, 8)).astype(np.float32), image=image, mask=there.astype(np.uint8))
    out, data = tmp_path / "run", ddpm.DataSettings(data=str(tmp_path / "d.npz"), holdout=0.4)
    config = ddpm.TrainConfig(steps=1, batch=8, network=NET, data=data, out=str(out), preview=0, monitor=False, track=("none",), threads=1)
    ddpm.train(config, quiet=True)
    asked: list[dict[str, torch.Tensor]] = []

    def drawn(self: Ready, first: int, size: int, seed: int, cond: dict[str, torch.Tensor], *_: object) -> torch.Tensor:
        asked.append(cond)
        return torch.zeros(size, 1, 8, 8)

    monkeypatch.setattr(Ready, "draw", drawn)
    assert main(["sample", str(out), "--n", "10", "--steps", "2", "--format", "npz", "--out", str(tmp_path / "s")]) == 0
    (cond,) = asked
    assert cond["mask"].dtype == torch.bool and len(torch.unique(cond["image"], dim=0)) == 3  # four of each
    assert torch.equal(cond["mask"], cond["image"] != 0)
    np.save(tmp_path / "c.npy", image[:2])
    assert main(["sample", str(out), "--n", "4", "--given", str(tmp_path / "c.npy"), "--out", str(tmp_path / "t")]) == 0
    assert asked[1]["mask"].shape == (4, 1, 8, 8)  # of held-out samples in turn


def test_maps_of_labels_beside_pictures(tmp_path: Path, capsys) -> None:
    draw = np.random.default_rng(0)
    for folder in ("photos", "maps"):
        (tmp_path / folder / "x").mkdir(parents=True)
    for i in range(24):
        labels = draw.integers(0, 3, (8, 8), dtype=np.uint8)
        Image.fromarray(labels).save(tmp_path / "maps" / "x" / f"{i}.png")
        Image.fromarray(np.clip(labels[..., None] * 80 + draw.integers(0, 20, (8, 8, 3)), 0, 255).astype(np.uint8)).save(
            tmp_path / "photos" / "x" / f"{i}.png"
        )
    settings = ddpm.DataSettings(data=str(tmp_path / "photos"), beside=str(tmp_path / "maps"), beside_labels=3, flip=True)
    data = ddpm.data.open_data(settings)
    assert data.card.image_channels == 3
    raw, cond = data.batch(np.arange(24), np.random.default_rng(0))
    np.testing.assert_array_equal(raw[:, 0] // 80, cond["image"].argmax(1))
    out = tmp_path / "run"
    flags = [
        "--network",
        "UNetConfig",
        "--network.channels",
        "8",
        "--network.mults",
        "1",
        "--network.attention",
        "0",
        "--network.groups",
        "4",
    ]
    asked = ["--data", str(tmp_path / "photos"), "--beside", str(tmp_path / "maps"), "--beside-labels", "3"]
    assert main(["train", *asked, "--steps", "2", "--batch", "8", "--preview", "0", "--out", str(out), *flags]) == 0
    given = str(tmp_path / "maps" / "x" / "3.png")
    assert main(["sample", str(out), "--n", "2", "--steps", "2", "--given", given, "--out", str(tmp_path / "s")]) == 0
    (tmp_path / "maps" / "x" / "7.png").unlink()
    assert main(["inspect", str(tmp_path / "photos"), "--beside", str(tmp_path / "maps")]) == 3
    assert "has no picture for x/7.png" in capsys.readouterr().err
    with pytest.raises(ddpm.errors.DataError, match="label 2"):
        Image.fromarray(np.full((8, 8), 2, np.uint8)).save(tmp_path / "maps" / "x" / "7.png")
        ddpm.data.open_data(ddpm.DataSettings(data=str(tmp_path / "photos"), beside=str(tmp_path / "maps"), beside_labels=2))


@pytest.mark.parametrize("labels", [None, 200])
def test_sixteen_bits_beside_are_read_alike_in_training_and_afterwards(tmp_path: Path, labels: int | None) -> None:
    for folder in ("photos", "maps"):
        (tmp_path / folder).mkdir()
    draw = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{i}.png")
        Image.fromarray(draw.integers(0, labels or 65_536, (8, 8), dtype=np.uint16)).save(tmp_path / "maps" / f"{i}.png")
    settings = ddpm.DataSettings(data=str(tmp_path / "photos"), beside=str(tmp_path / "maps"), beside_labels=labels)
    data = ddpm.data.open_data(settings)
    image = data.cond["image"]
    for i in range(len(data)):
        text = str(tmp_path / "maps" / data.names[i])  # pyright: ignore[reportOptionalSubscript]
        read = beside_of(text, data.card.shape, image.shape[1], settings)
        torch.testing.assert_close(read[0], torch.from_numpy(np.asarray(image[i])), atol=1e-7, rtol=0)


def test_maps_with_colours_or_twice_are_refused(tmp_path: Path) -> None:
    for folder in ("photos", "maps"):
        (tmp_path / folder).mkdir()
    for i in range(4):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / "photos" / f"{i}.png")
        palette = Image.new("P", (8, 8), i)
        palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 99, 9] + [0] * 756)
        palette.save(tmp_path / "maps" / f"{i}.png")
    asked = ddpm.DataSettings(data=str(tmp_path / "photos"), beside=str(tmp_path / "maps"), beside_labels=150)
    with pytest.raises(ddpm.errors.DataError, match="one channel, these have 3"):
        ddpm.data.open_data(asked)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "maps" / "2.bmp")
    with pytest.raises(ddpm.errors.DataError, match="2.bmp and 2.png have one name|2.png and 2.bmp have one name"):
        ddpm.data.open_data(asked)


def test_a_student_is_given_what_its_teacher_was(run: Path, tmp_path: Path) -> None:
    config = DistillConfig(method=Consistency(), updates=2, batch=8, checkpoint_every=2, preview=2, out=str(tmp_path / "student"))
    distill(str(run), config, quiet=True)
    assert ddpm.load(str(tmp_path / "student")).given == Small(factor=2)
    assert main(["sample", str(tmp_path / "student"), "--n", "2", "--out", str(tmp_path / "s")]) == 0


def test_another_condition_is_another_call(run: Path, tmp_path: Path, monkeypatch) -> None:
    """A call that was stopped does not go on with samples of another picture under the same name."""
    draw, calls, picture = Ready.draw, 0, tmp_path / "p.png"

    def stopped(self, *given):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return draw(self, *given)

    words = ["sample", str(run), "--n", "4", "--batch", "2", "--steps", "2", "--given", str(picture), "--out", str(tmp_path / "out")]
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture)
    monkeypatch.setattr(Ready, "draw", stopped)
    assert main(words) == 130
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(picture)
    assert main(words) == 2  # that folder holds samples of other conditions
