"""`ddpm interpolate`, `ddpm sample --from` and `ddpm schedule` as a person types them: what they write, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.cli import main
from ddpm.data.single_sample import read_one
from ddpm.denoiser import Codec
from ddpm.errors import DataError
from ddpm.objective import LearnedSchedule
from ddpm.process import Cosine, LogSNRTable, Process, log_snr_ends
from ddpm.training import load
from small_runs import SMALL_UNET, pictures, quietly, settings, table

LEVELS = Codec(shift=(8.0,), scale=(8.0,), dtype="uint8", bins=(0.0, 16.0))
FREE = Codec(shift=(0.0,), scale=(1.0,), dtype="float32")


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps on 8x8 grey pictures."""
    out = tmp_path_factory.mktemp("runs") / "grey"
    quietly(settings(out, network=SMALL_UNET, schedule=Cosine(T=20)), data=pictures(1, 8, 8, bins=(0, 255)))
    return out


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps on a table, with a schedule that learns."""
    out = tmp_path_factory.mktemp("runs") / "learned"
    quietly(settings(out, loss=LearnedSchedule(features=4)), data=table(classes=2))
    return out


@pytest.fixture
def ends(tmp_path: Path) -> tuple[str, str]:
    """A picture of another size and colour, and an array file of three samples."""
    Image.fromarray(np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3)).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", np.arange(3 * 64, dtype=np.uint8).reshape(3, 1, 8, 8))
    return str(tmp_path / "a.png"), f"{tmp_path / 'b.npy'}:2"


def test_interpolation_writes_a_strip_and_an_array(
    grey: Path, ends: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["interpolate", str(grey), *ends, "--n", "3", "--out", str(tmp_path / "out")]) == 0
    assert "3 samples between" in (shown := capsys.readouterr().out) and "20 steps each way" in shown
    between = np.load(tmp_path / "out" / "between.npz")["arr_0"]
    assert between.shape == (3, 8, 8, 1) and between.dtype == np.uint8
    with Image.open(tmp_path / "out" / "strip.png") as strip:
        assert strip.width > 4 * strip.height
    assert main(["interpolate", str(grey), *ends, "--n", "2", "--level", "0.3", "--sampler", "ancestral"]) == 0
    assert "6 steps each way" in capsys.readouterr().out  # a chain of 20 has six steps below t = 0.3
    assert (grey / "samples" / "between" / "between.npz").is_file()


def test_variations_of_a_picture(grey: Path, ends: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Little noise keeps the picture, much noise does not; sample i does not depend on how many there are."""
    drawn = {}
    for name, words in {"little": ["--strength", "0.05"], "much": ["--strength", "1"], "usual": []}.items():
        out = tmp_path / name
        assert main(["sample", str(grey), "--from", ends[1], "--n", "4", "--format", "npz", "--out", str(out), *words]) == 0
        drawn[name] = np.load(next(out.glob("*.npz")))["arr_0"].astype(float)[..., 0]
    assert "variations of" in (shown := capsys.readouterr().out) and "from t = 0.6" in shown
    source = np.arange(128, 192).reshape(8, 8)
    assert np.abs(drawn["little"] - source).mean() < 20 < np.abs(drawn["much"] - source).mean()
    words = ["--n", "2", "--format", "npz", "--batch", "1", "--out", str(tmp_path / "two")]
    assert main(["sample", str(grey), "--from", ends[1], *words]) == 0
    two = np.load(next((tmp_path / "two").glob("*.npz")))["arr_0"].astype(float)[..., 0]
    assert np.abs(two - drawn["usual"][:2]).max() <= 1
    assert main(["sample", str(grey), "--from", ends[0], "--n", "2", "--film", "--out", str(tmp_path / "film")]) == 0
    assert (tmp_path / "film" / "strip.png").is_file()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["interpolate", "RUN", "A", "missing.npy"], 3, "no such file"),
        (["interpolate", "RUN", "A", "B0:7"], 3, "there is no row 7, it holds 3 (0-2)"),
        (["interpolate", "RUN", "A", "A", "--class", "3"], 2, "this model knows no classes"),
        (["interpolate", "RUN", "A", "A", "--sampler", "ancestral"], 2, "adds noise and does not come back"),
        (["interpolate", "RUN", "A", "A", "--level", "0.3", "--steps", "7"], 2, "steps: got 7"),
        (["interpolate", "RUN", "A", "A", "--level", "0"], 2, "--level is 0"),
        (["sample", "RUN", "--strength", "0.5"], 2, "name the picture with --from"),
        (["sample", "RUN", "--from", "A", "--strength", "2"], 2, "--strength is 2"),
        (["sample", "RUN", "--from", "A", "--strength", "0.001"], 2, "begin: got 0.001"),
        (["schedule", "RUN"], 2, "learns no schedule"),
        (["schedule", "missing"], 4, "no such run folder"),
    ],
)
def test_refusals(words: list[str], code: int, message: str, grey: Path, ends: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    places = {"RUN": str(grey), "A": ends[0], "B0:7": ends[1].replace(":2", ":7")}
    assert main([places.get(word, word) for word in words]) == code
    assert message in capsys.readouterr().err


def test_pictures_are_mapped_onto_the_models_levels(ends: tuple[str, str], tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255], [128, 64]], dtype=np.uint8)).save(tmp_path / "c.png")
    assert read_one(str(tmp_path / "c.png"), (1, 2, 2), LEVELS).tolist() == [[[0, 16], [8, 4]]]
    assert read_one("digits:5", (1, 8, 8), LEVELS).dtype == np.uint8 and read_one("digits:5", (1, 8, 8), LEVELS).max() <= 16
    assert read_one(ends[0], (3, 4, 4), LEVELS).shape == (3, 4, 4)
    np.save(tmp_path / "last.npy", np.arange(2 * 5 * 3, dtype=np.float32).reshape(2, 5, 3))
    assert read_one(f"{tmp_path / 'last.npy'}:1", (3, 5), FREE).tolist() == np.arange(15, 30).reshape(5, 3).T.tolist()


@pytest.mark.parametrize(
    ("name", "shape", "codec", "message"),
    [
        ("a.png", (1, 8, 8), FREE, "a picture, but this model's data"),
        ("a.png", (5,), FREE, "not as a picture"),
        ("b.npy", (1, 8, 8), LEVELS, "this model's data run from 0 to 16"),
        ("b.npy", (1, 4, 4), LEVELS, "shape"),
        ("b.npy:3", (1, 8, 8), FREE, "no row 3"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    name: str, shape: tuple[int, ...], codec: Codec, message: str, ends: tuple[str, str], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        read_one(str(tmp_path / name), shape, codec)


def test_a_learned_schedule_is_written_and_trained_with(learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schedule", str(learned), "--knots", "40"]) == 0
    assert "at 40 times" in capsys.readouterr().out
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32))
    words = ["--steps", "2", "--batch", "4", "--threads", "1", "--preview", "0", "--network", "mlp-config", "--network.width", "8"]
    config = ["--config", str(learned / "schedule.toml"), "--out", str(tmp_path / "next")]
    assert main(["train", "--data", str(tmp_path / "x.npz"), *config, *words]) == 0
    schedule = load(tmp_path / "next").process.schedule
    assert isinstance(schedule, LogSNRTable) and len(schedule.log_snr) == 40
    low, high = log_snr_ends(load(learned).process)
    ends = torch.tensor([schedule.first, 1.0], dtype=torch.float64)
    wanted = torch.tensor([high, low], dtype=torch.float64)
    torch.testing.assert_close(Process(schedule).log_snr(ends), wanted, rtol=1e-9, atol=1e-9)
