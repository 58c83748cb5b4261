"""`ddpm inpaint` as a person types it: what it writes, what it keeps, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ddpm
from ddpm.cli import main
from ddpm.guidance import Mask, MomentMatching
from ddpm.networks.blocks import reference
from small_runs import SMALL_UNET, pictures, quietly, settings, table

METHODS = ["moment", "repaint", "dps", "pigdm", "project"]
HOLE = np.zeros((8, 8), dtype=np.uint8)
HOLE[4:, 1:7] = 255
PICTURE = np.random.default_rng(1).integers(0, 256, (8, 8)).astype(np.uint8)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of four steps (grey pictures, colour pictures, a table), a picture and a mask."""
    home = tmp_path_factory.mktemp("inpaint")
    quietly(settings(home / "grey", network=SMALL_UNET), data=pictures(1, 8, 8))
    quietly(settings(home / "colour", network=SMALL_UNET), data=pictures(3, 8, 8))
    quietly(settings(home / "table"), data=table())
    Image.fromarray(PICTURE).save(home / "picture.png")
    Image.fromarray(HOLE).save(home / "hole.png")
    return home


def fill(home: Path, out: Path, *words: str, run: str = "grey") -> int:
    """Run the command with few steps."""
    return main(["inpaint", str(home / run), "--steps", "4", "--out", str(out), *words])


@pytest.mark.parametrize("method", METHODS)
def test_what_is_known_comes_back_exactly_and_the_rest_differs(
    method: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--image", str(home / "picture.png"), "--mask", str(home / "hole.png"), "--n", "3", "--method", method]
    assert fill(home, tmp_path / "out", *words) == 0
    filled = np.load(tmp_path / "out" / "filled.npz")["arr_0"]
    assert filled.shape == (3, 8, 8, 1) and filled.dtype == np.uint8
    assert bool((filled[..., 0][:, HOLE == 0] == PICTURE[HOLE == 0]).all())
    assert len({row.tobytes() for row in filled}) == 3
    with Image.open(tmp_path / "out" / "000001.png") as one:
        assert np.array_equal(np.asarray(one), filled[1, ..., 0])
    with Image.open(tmp_path / "out" / "grid.png") as sheet:  # what was given with a grey hole, then the three
        assert sheet.width > 3.9 * sheet.height
    said = capsys.readouterr().out
    assert f"3 fillings of 38% of {home / 'picture.png'} by {method}" in said and "grid.png" in said


def test_filling_i_is_the_same_in_any_batch(home: Path, tmp_path: Path) -> None:
    words = ["--image", str(home / "picture.png"), "--mask", str(home / "hole.png"), "--n", "3", "--method", "moment"]
    assert fill(home, tmp_path / "a", *words) == 0 and fill(home, tmp_path / "b", *words, "--batch", "2") == 0
    one, other = (np.load(tmp_path / name / "filled.npz")["arr_0"].astype(int) for name in "ab")
    assert abs(one - other).max() <= 1


def test_arrays_and_rows_of_data_serve_too(home: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.stack([PICTURE[None], PICTURE[None]]))
    np.save(tmp_path / "hole.npy", HOLE > 0)
    assert fill(home, tmp_path / "out", "--image", f"{tmp_path / 'rows.npy'}:1", "--mask", str(tmp_path / "hole.npy"), "--n", "2") == 0
    assert bool((np.load(tmp_path / "out" / "filled.npz")["arr_0"][0, ..., 0][HOLE == 0] == PICTURE[HOLE == 0]).all())
    row = np.array([[260.0, 251.5, 300.25]], dtype=np.float32)
    np.save(tmp_path / "row.npy", row)
    np.save(tmp_path / "columns.npy", np.array([0, 1, 0]))
    words = ["--image", str(tmp_path / "row.npy"), "--mask", str(tmp_path / "columns.npy"), "--n", "2"]
    assert fill(home, tmp_path / "table", *words, run="table") == 0
    got = np.load(tmp_path / "table" / "filled.npz")["arr_0"]
    assert bool((got[:, [0, 2]] == row[:, [0, 2]]).all()) and got[0, 1] != got[1, 1]


def test_bad_input_is_refused_with_what_to_do(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, hole = str(home / "picture.png"), str(home / "hole.png")
    Image.fromarray(np.zeros((8, 10), dtype=np.uint8) + 255).save(tmp_path / "wide.png")
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "colour.png")
    for name, level in (("empty", 0), ("full", 255)):
        Image.fromarray(np.full((8, 8), level, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    np.save(tmp_path / "greys.npy", np.linspace(0, 1, 64).reshape(8, 8))
    np.save(tmp_path / "high.npy", np.full((1, 1, 8, 8), 300))
    refusals = [
        (["--image", str(tmp_path / "wide.png"), "--mask", hole], 3, "the picture is 10x8, this model's samples 8x8"),
        (["--image", str(tmp_path / "colour.png"), "--mask", hole], 3, "the picture is in colour, this model's samples are grey"),
        (["--image", str(tmp_path / "none.png"), "--mask", hole], 3, "none.png"),
        (["--image", str(tmp_path / "broken.png"), "--mask", hole], 3, "broken.png: "),
        (["--image", str(tmp_path / "high.npy"), "--mask", hole], 3, "values from 300 to 300"),
        (["--image", picture, "--mask", str(tmp_path / "wide.png")], 3, "the mask has shape 10x8, this model's samples 8x8"),
        (["--image", picture, "--mask", str(tmp_path / "empty.png")], 3, "nothing is to be filled"),
        (["--image", picture, "--mask", str(tmp_path / "full.png")], 3, "everything is to be filled: use ddpm sample"),
        (["--image", picture, "--mask", str(tmp_path / "none.png")], 3, "No such file"),
        (["--image", picture, "--mask", str(tmp_path / "broken.png")], 3, "broken.png: "),
        (["--image", picture, "--mask", str(tmp_path / "greys.npy")], 3, "holds 0 (keep) and 1 or 255 (fill)"),
        (["--image", picture, "--mask", str(tmp_path / "mask.txt")], 3, "a mask is a picture"),
        (["--image", picture], 2, "mask"),
        (["--image", picture, "--mask", hole, "--method", "magic"], 2, "moment, repaint, dps, pigdm"),
        (["--image", picture, "--mask", hole, "--method", "moment", "--jump", "3"], 2, "jump: says nothing to --method moment"),
        (["--image", picture, "--mask", hole, "--class", "7"], 2, "this model knows no classes"),
        (["--image", picture, "--mask", hole, "--n", "0"], 2, ">= 1"),
    ]
    for words, code, told in refusals:
        assert fill(home, tmp_path / "out", *words) == code, words
        said = capsys.readouterr().err
        assert told in said and said.startswith("ddpm inpaint: error"), said
    assert not (tmp_path / "out").exists()
    assert fill(home, tmp_path / "out", "--image", picture, "--mask", hole, run="colour") == 3
    assert "the picture is grey, this model's samples are in colour" in capsys.readouterr().err
    assert fill(home, tmp_path / "out", "--image", picture, "--mask", hole, run="table") == 3
    assert "shape (3,)" in capsys.readouterr().err


def test_the_networks_fast_ways_have_the_gradient_of_the_plain_ones(home: Path) -> None:
    """Guidance differentiates the network as it is: nothing has to be switched off."""
    denoiser, random = ddpm.load(home / "grey"), torch.Generator().manual_seed(0)
    for parameter in denoiser.parameters():
        parameter.requires_grad_(False)  # the fast ways write in place where nothing seems to want a gradient
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))  # away from the zeros a network starts with
    x = torch.randn(64, 1, 8, 8, generator=random)
    model = MomentMatching(denoiser, Mask(torch.from_numpy(HOLE == 0)), torch.zeros(1, 8, 8))
    with torch.no_grad():
        at = denoiser.process.at(0.5, x)
        fast = model(x, at).x0
        with reference(denoiser.network):
            plain = model(x, at).x0
            alone = denoiser(x, at).x0
    torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-3)
    assert float((fast - alone)[..., :4, :].abs().max()) > 0.1
