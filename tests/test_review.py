"""What a sceptical user tried, and what must happen: each of these was once wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ddpm
from ddpm.cli import main
from ddpm.denoiser import Codec, gaussian
from ddpm.errors import ConfigError
from ddpm.objective.bound import decoder_nll
from ddpm.process import EDM, VE, Linear, Listed, Process, Schedule
from small_runs import environment, held

TINY = ["--recipe", "none", "--steps", "3", "--batch", "4", "--threads", "1", "--preview", "0"]
UNET = ["--network", "unet-config", "--network.channels", "8", "--network.mults", "1,2", "--network.blocks", "1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, trained without ever hiding the class."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["train", *TINY, *UNET, "--cond-dropout", "0", "--out", str(out)]) == 0
    return out


def test_float64_arrays_train_and_come_back(tmp_path: Path) -> None:
    """NumPy's default dtype."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(280.0, 5.0, size=(40, 6)))
    assert main(["train", *TINY, "--data", str(tmp_path / "x.npy"), "--out", str(tmp_path / "run")]) == 0
    samples = ddpm.sample(ddpm.load(tmp_path / "run"), 4, steps=3)
    assert samples.dtype == torch.float64 and 200 < samples.mean() < 360


@pytest.mark.parametrize("schedule", [Linear(), EDM(), VE()], ids=lambda s: type(s).__name__)
def test_ancestral_needs_no_choice_of_variance(schedule: Schedule) -> None:
    """The default never leaves more noise than the schedule has: std 0.5 stays below 0.6 in 50 steps on every kind of schedule."""
    exact = gaussian(Process(schedule), torch.zeros(8, dtype=torch.float64), torch.tensor(0.25, dtype=torch.float64))
    drawn = ddpm.sample(exact, 400, steps=50, sampler=ddpm.Ancestral(), dtype=torch.float64)
    assert 0.4 < drawn.std().item() < 0.53


def test_init_says_that_the_weights_meant_something_else(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--schedule", "linear", "--parameterization", "eps", "--init", str(run), "--out", str(tmp_path / "b")]
    assert main(["train", *TINY, *UNET, *flags]) == 0
    said = capsys.readouterr().err
    assert "another schedule" in said and "another parameterization" in said and "another codec" not in said


def test_samples_of_two_calls_do_not_mix(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    once = ["sample", str(run), "--n", "2", "--steps", "2"]
    assert main([*once, "--out", str(tmp_path / "s")]) == 0
    assert main([*once, "--out", str(tmp_path / "s")]) == 2
    assert "holds samples already" in capsys.readouterr().err
    assert main(once) == main(once) == 0
    assert sorted(path.name for path in (run / "samples").glob("seed*")) == ["seed-0", "seed-0-2"]


def test_guidance_needs_a_model_that_knows_the_null(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(run), "--guidance", "2", "--n", "2"]) == 2
    assert "cond-dropout 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"n": 0}, "n: got 0"),
        ({"batch": 0}, "batch: got 0"),
        ({"cond": {"class": torch.tensor([3, 99])}}, "3 to 99"),
        ({"cond": {"class": torch.tensor([-1, 2])}}, "-1 to 2"),
        ({"cond": {"class": torch.tensor([1])}}, "got 1 rows"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_wrong_arguments_are_named(run: Path, wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ddpm.sample(ddpm.load(run), **{"n": 2, "steps": 2, **wrong})  # type: ignore[arg-type]


def test_wrong_types_are_named_where_nothing_checks_annotations(run: Path) -> None:
    """In a process of its own: here beartype would be first."""
    code = f"""
import ddpm
denoiser = ddpm.load({str(run)!r})
for wrong in ({{"clip": "sttic"}}, {{"cond": {{"class": [1, 2]}}}}):
    try:
        ddpm.sample(denoiser, 2, steps=2, **wrong)
    except ddpm.errors.ConfigError as error:
        print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment()).stdout.splitlines()
    assert "clip: got 'sttic', allowed: auto" in said[0] and "got list, must be a tensor of n = 2 rows" in said[1]


def test_the_process_may_run_in_float64(run: Path) -> None:
    drawn = ddpm.sample(ddpm.load(run), 2, steps=2, dtype=torch.float64, decode=False)
    assert drawn.dtype == torch.float64 and bool(drawn.isfinite().all())


def test_listed_instants_fall_on_the_chain() -> None:
    times = Listed(at=(1.0, 0.50049, 0.00105)).times(Process(Linear()), 3)
    assert times.tolist() == [1.0, 0.5, 0.001]


@pytest.mark.parametrize("level", [0.0, 16.0])
def test_decoder_in_the_far_tail(level: float) -> None:
    """-log of the open end bin's mass when the mean is 60 standard deviations beyond its edge, against the normal's own tail."""
    codec = Codec(shift=(8.0,), scale=(8.0,), dtype="uint8", bins=(0.0, 16.0))
    exact = gaussian(Process(Linear()), torch.zeros(1, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    exact.codec = codec
    side = 1.0 if level == 0.0 else -1.0
    x0, std = torch.tensor([[level / 8.0 - 1.0]], dtype=torch.float64), torch.tensor([[0.01]], dtype=torch.float64)
    edge = x0 + side / 16.0
    nll = decoder_nll(x0, edge + side * 60.0 * std, std, exact)
    assert nll.item() == pytest.approx(-torch.special.log_ndtr(torch.tensor(-60.0, dtype=torch.float64)).item(), rel=1e-9)


def test_integers_without_bins_are_rounded() -> None:
    assert Codec(shift=(0.0,), scale=(10.0,), dtype="int64").decode(torch.tensor([[0.29], [-0.29]])).tolist() == [[3], [-3]]


def test_a_step_folder_and_another_step_disagree(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(held(run).path), "--step", "1"]) == 2
    assert "is step 3" in capsys.readouterr().err


def test_a_persons_folder_is_not_taken_for_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text("precious")
    assert main(["train", *TINY, "--out", str(tmp_path)]) == 2
    assert "not a run folder and holds README.md" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"] and (tmp_path / "README.md").read_text() == "precious"
    assert main(["train", *TINY, "--out", ""]) == 2


def test_the_record_of_a_finished_run_stays_true(tmp_path: Path) -> None:
    first = ["train", *TINY, *UNET, "--out", str(tmp_path / "run")]
    assert main(first) == 0
    before = {name: (tmp_path / "run" / name).read_text() for name in ("README.md", "config.toml")}
    assert main([*first, "--seed", "7"]) == 0
    assert before == {name: (tmp_path / "run" / name).read_text() for name in before}


def test_the_digits_recipe_needs_no_network_named(tmp_path: Path) -> None:
    flags = ["--steps", "1", "--threads", "1", "--preview", "0", "--network.channels", "8", "--out", str(tmp_path / "run")]
    assert main(["train", *flags]) == 0
    assert "channels = 8" in (tmp_path / "run" / "config.toml").read_text()


def test_samples_that_cannot_be_written_exit_as_the_disk_does(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["sample", str(run), "--n", "2", "--steps", "2", "--out", str(tmp_path / "file")]) == 5
    assert "name another folder" in capsys.readouterr().err


def test_problems_are_counted_without_their_headline(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, *UNET, "--cond-dropout", "0", "--schedule", "linear", "--out", str(run)]) == 2
    assert "problems" not in capsys.readouterr().err
