"""`ddpm train` and `ddpm sample` as a person types them: what they write, what they refuse, and with which exit code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.cli import main
from ddpm.networks.config import UNetConfig
from ddpm.process import Cosine
from ddpm.training.checkpoints.lock import RunLock
from small_runs import environment, held, metrics, pictures, quietly, settings, table

UNET = ["--network", "unet-config", "--network.channels", "8", "--network.mults", "1,2", "--network.blocks", "1", "--network.attention", ""]
QUICK = ["--recipe", "none", "--steps", "20", "--batch", "4", "--threads", "1", "--preview", "4", "--checkpoint-every", "10", *UNET]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 steps on the digits."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["train", "--out", str(out), *QUICK]) == 0
    return out


def sampled(folder: Path, *words: str) -> np.lib.npyio.NpzFile:
    """The one array file that `ddpm sample` writes."""
    assert main(["sample", str(folder), "--format", "npz", "--steps", "3", *words]) == 0
    out = Path(words[words.index("--out") + 1])
    (path,) = out.glob("*.npz")
    return np.load(path, allow_pickle=False)


def test_what_a_run_leaves_and_says(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {path.name for path in digits.iterdir() if not path.name.startswith(".")}
    expected = {
        "README.md",
        "config.toml",
        "data_card.json",
        "data_keys.npy",
        "step-0000010",
        "step-0000020",
        "latest",
        "metrics.jsonl",
        "samples",
    }
    assert names - {"loss.png", "tensorboard"} == expected
    assert (digits / "latest").read_text() == "step-0000020\n" and held(digits).step == 20
    assert json.loads((digits / "data_card.json").read_text())["bins"] == [0, 16] and metrics(digits)[-1]["step"] == 20
    card = (digits / "README.md").read_text(encoding="utf-8")
    for word in (
        "trained for 20 steps of 4 samples",
        "![samples](samples/step-0000020.png)",
        "1797 samples (1, 8, 8), 180 held out",
        "UNetConfig",
    ):
        assert word in card
    with Image.open(digits / "samples" / "step-0000020.png") as grid:
        assert grid.size[0] == grid.size[1] >= 320  # ten of each class
    assert main(["train", "--out", str(digits), *QUICK]) == 0
    shown = capsys.readouterr()
    assert f"next: ddpm sample {digits} --n 64 --seed 1" in shown.out and "step-0000020.png" in shown.out
    assert "Resumed from step 20 (verified)" in shown.err and "20 steps already; a larger --steps continues it" in shown.err


def test_the_request_written_down_gives_the_same_run(digits: Path, tmp_path: Path) -> None:
    assert main(["train", "--config", str(digits / "config.toml"), "--out", str(tmp_path / "again")]) == 0
    for group in ("model", "ema-0.050"):
        mine, theirs = held(digits).tensors(group), held(tmp_path / "again").tensors(group)
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_npz_is_in_the_units_of_the_data_and_dealt_evenly(digits: Path, tmp_path: Path) -> None:
    arrays = sampled(digits, "--n", "7", "--classes", "3,7", "--out", str(tmp_path))
    assert arrays["arr_0"].shape == (7, 8, 8, 1) and arrays["arr_0"].dtype == np.uint8
    assert arrays["arr_0"].max() <= 16 and arrays["arr_0"].max() > 4 and arrays["arr_1"].tolist() == [3, 3, 3, 3, 7, 7, 7]
    every = sampled(digits, "--n", "25", "--out", str(tmp_path / "all"))["arr_1"]
    assert sorted(np.bincount(every, minlength=10)) == [2] * 5 + [3] * 5


def test_sample_i_is_the_same_in_any_batch_and_differs_by_seed_weights_step_guidance_and_sampler(digits: Path, tmp_path: Path) -> None:
    def drawn(name: str, *words: str) -> np.ndarray:
        return sampled(digits, "--n", "4", "--classes", "5", "--out", str(tmp_path / name), *words)["arr_0"].astype(int)

    plain = drawn("plain")
    assert abs(plain - drawn("batches", "--batch", "3")).max() <= 1 and np.array_equal(plain, drawn("again"))
    others = {"seed": ["--seed", "1"], "raw": ["--weights", "raw"], "step": ["--step", "10"], "guided": ["--guidance", "40"]}
    others |= {
        "ancestral": ["--sampler", "ancestral"],
        "eta": ["--sampler.eta", "1"],
        "grid": ["--grid", "leading"],
        "analytic": ["--sampler", "ancestral"],
    }
    others["analytic"] += ["--sampler.variance", "analytic"]
    found = {name: drawn(name, *words) for name, words in others.items()}
    assert not [name for name, values in found.items() if np.array_equal(values, plain)]
    assert not np.array_equal(found["ancestral"], found["analytic"])


def test_pictures_and_films(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", str(digits), "--n", "6", "--classes", "1,2", "--steps", "4", "--film", "--out", str(tmp_path)]
    assert main(words) == 0
    names = sorted(str(path.relative_to(tmp_path)).replace("\\", "/") for path in tmp_path.rglob("*") if path.is_file())
    assert names == [
        *(f"1/{i:06d}.png" for i in range(3)),
        *(f"2/{i:06d}.png" for i in range(3, 6)),
        "film.gif",
        "film.webp",
        "grid.png",
        "manifest.json",
        "strip.png",
    ]
    with Image.open(tmp_path / "1" / "000000.png") as picture:
        assert picture.size == (8, 8) and picture.mode == "L"
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 5  # type: ignore[attr-defined]
    said = capsys.readouterr().out
    assert "6 samples by DDIM, 4 steps, seed 0, clip static, ema weights" in said and "strip.png" in said


def test_a_step_folder_can_be_drawn_from_and_stays_whole(digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "run")
    for _ in range(2):
        assert main(["sample", str(tmp_path / "run" / "step-0000010"), "--n", "2", "--steps", "2", "--seed", "4"]) == 0
    assert (tmp_path / "run" / "samples" / "seed-4" / "grid.png").is_file() and held(tmp_path / "run", 10).step == 10


def test_tables_need_no_flag_either(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quietly(settings(tmp_path / "table"), data=table())
    assert main(["sample", str(tmp_path / "table"), "--n", "3", "--steps", "2"]) == 0
    (path,) = (tmp_path / "table" / "samples" / "seed-0").glob("*.npz")
    assert np.load(path)["arr_0"].shape == (3, 3)
    capsys.readouterr()
    refusals = {
        "--format png": "use --format npz",
        "--film": "shows pictures",
        "--classes 1": "without classes",
        "--guidance 2": "no condition",
    }
    for words, text in refusals.items():
        assert main(["sample", str(tmp_path / "table"), *words.split()]) == 2 and text in capsys.readouterr().err


def test_a_short_chain_is_walked_whole_when_no_number_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quietly(settings(tmp_path / "run", schedule=Cosine(T=9)), data=table())
    assert main(["sample", str(tmp_path / "run"), "--n", "3"]) == 0 and "DDIM, 9 steps" in capsys.readouterr().out
    assert main(["sample", str(tmp_path / "run"), "--n", "3", "--steps", "10"]) == 2


def test_a_model_that_needs_an_image_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ddpm.data import from_arrays

    rng = np.random.default_rng(0)
    data = from_arrays(rng.normal(size=(20, 1, 4, 4)).astype(np.float32), {"image": rng.normal(size=(20, 2, 4, 4)).astype(np.float32)})
    network = UNetConfig(channels=8, mults=(1,), blocks=1, attention=())
    quietly(settings(tmp_path / "run", network=network), data=data)
    assert main(["sample", str(tmp_path / "run")]) == 3
    assert "needs a condition image of 2 channels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["--classes", "3,11"], ["--classes", "got 11", "this model knows 0, 1, 2"]),
        (["--sampler", "dimm"], ["--sampler is dimm", "did you mean DDIM", "Ancestral, DDIM"]),
        (["--n", "0"], ["--n is 0", "allowed: a whole number >= 1"]),
        (["--guidance", "nan"], ["--guidance is nan", "not finite"]),
        (["--steps", "1001"], ["steps: got 1001", "1 to 1000"]),
        (["--vector", "1,2"], ["--vector", "got 2 numbers", "this model takes 0"]),
        (["--grid", "full", "--steps", "50"], ["steps: got 50 on the full grid", "1000"]),
        (["--device", "cuda"], ["device: got cuda"]) if not torch.cuda.is_available() else (["--device", "tpu"], ["--device is tpu"]),
        (["--sampler", "ancestral", "--sampler.variance", "learned"], ["variance 'learned'", "choose small, large or analytic"]),
        (["--n", "-1", "--clip", "hard", "--seed", "-1"], ["3 problems", "--n", "--clip", "--seed"]),
        (["--stpes", "3"], ["unknown flag '--stpes'; did you mean '--steps'?"]),
    ],
)
def test_what_sample_refuses(words: list[str], texts: list[str], digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(digits), "--out", str(tmp_path / "none"), *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("ddpm sample: error: ") and all(text in said for text in texts), said
    assert not (tmp_path / "none").exists() and "Traceback" not in said


def test_what_a_network_of_ones_own_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Own(torch.nn.Linear):
        def forward(self, x: torch.Tensor, c_noise: torch.Tensor, cond: object) -> torch.Tensor:  # type: ignore[override]
            return super().forward(x)

    quietly(settings(tmp_path), network=Own(3, 3), data=table())
    assert main(["sample", str(tmp_path)]) == 4 and "your own network Own" in capsys.readouterr().err


def test_exit_codes_of_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data", str(tmp_path / "none.npy"), "--out", str(tmp_path / "a")]) == 3
    (tmp_path / "photos").mkdir()
    assert main(["train", "--data", str(tmp_path / "photos"), "--out", str(tmp_path / "a")]) == 3
    np.save(tmp_path / "six.npy", np.zeros((6, 3), dtype=np.float32))
    assert main(["train", "--data", str(tmp_path / "six.npy"), "--batch", "7", "--out", str(tmp_path / "a")]) == 3
    assert not (tmp_path / "a").exists()
    capsys.readouterr()
    with RunLock(tmp_path / "busy"):
        code = "import sys; from ddpm.cli import main; sys.exit(main(sys.argv[1:]))"
        words = [sys.executable, "-c", code, "train", "--out", str(tmp_path / "busy"), *QUICK]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 7 and "is in use by pid" in done.stderr and not list((tmp_path / "busy").glob("step-*"))
    (tmp_path / "file").write_text("")
    assert main(["train", "--out", str(tmp_path / "file" / "run"), *QUICK]) == 5
    assert "cannot make the run folder" in capsys.readouterr().err


def test_sizes_that_do_not_divide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "odd.npy", pictures(1, 6, 10, count=8).samples[:])
    words = ["train", "--data", str(tmp_path / "odd.npy"), "--out", str(tmp_path / "run"), *QUICK, "--network.mults", "1,2,2"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "divisible by 4" in said and "6 (nearest: 4 or 8)" in said and "10 (nearest: 8 or 12)" in said
    assert not list(tmp_path.glob("run/step-*"))
