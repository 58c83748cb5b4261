"""Typing mistakes and values out of range: every one found, all in one message, before torch is imported."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from ddpm.cli import main
from small_runs import environment, quietly, settings, table

TYPOS = [  # what was typed, what is meant
    ("stpes", "steps"),
    ("bacth", "batch"),
    ("sed", "seed"),
    ("checkpoint-evry", "checkpoint-every"),
    ("keeep", "keep"),
    ("log-evry", "log-every"),
    ("prevew", "preview"),
    ("accumlate", "accumulate"),
    ("schedul", "schedule"),
    ("paramterization", "parameterization"),
    ("netwrk", "network"),
    ("conditionl", "conditional"),
    ("cond-droput", "cond-dropout"),
    ("precison", "precision"),
    ("thread", "threads"),
    ("devise", "device"),
    ("los", "loss"),
    ("clok", "clock"),
    ("evalute-every", "evaluate-every"),
    ("dta", "data"),
]


@pytest.mark.parametrize(("typed", "meant"), TYPOS)
def test_a_typing_mistake_in_a_flag_a_file_and_a_saved_request(
    typed: str, meant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--out", str(tmp_path / "run"), f"--{typed}", "1"]) == 2
    assert f"unknown flag '--{typed}'; did you mean '--{meant}'?" in capsys.readouterr().err
    file = tmp_path / "my.toml"
    file.write_text(f'{typed.replace("-", "_")} = 1\nsteps = "1"\n', encoding="utf-8")
    assert main(["train", "--out", str(tmp_path / "run"), "--config", str(file)]) == 2
    said = capsys.readouterr().err
    assert f"{file}: unknown key '{typed.replace('-', '_')}'; did you mean '{meant.replace('-', '_')}'?" in said
    assert f'{file}: steps is "1" (a string: write it without quotes)' in said and said.startswith("ddpm train: error: 2 problems")
    assert not (tmp_path / "run").exists()


def test_a_typing_mistake_in_the_request_a_run_wrote_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quietly(settings(tmp_path / "run"), data=table())
    text = (tmp_path / "run" / "config.toml").read_text(encoding="utf-8")
    for line, wrong, told in (
        ("grad_clip =", "grad_clap =", "unknown key 'optimizer.grad_clap'; did you mean 'optimizer.grad_clip'?"),
        ("holdout =", "hold_owt =", "unknown key 'data.hold_owt'; did you mean 'data.holdout'?"),
        ('name = "Cosine"', 'name = "Cosin"', 'schedule is "Cosin"; did you mean Cosine?'),
        ("width =", "widht =", "unknown key 'network.widht'; did you mean 'network.width'?"),
    ):
        assert text.count(line) == 1, line
        (tmp_path / "saved.toml").write_text(text.replace(line, wrong), encoding="utf-8")
        assert main(["train", "--config", str(tmp_path / "saved.toml")]) == 2
        said = capsys.readouterr().err
        assert told in said, said
    (tmp_path / "saved.toml").write_text(text.replace("[", "[[", 1), encoding="utf-8")
    assert main(["train", "--config", str(tmp_path / "saved.toml")]) == 2 and "saved.toml: " in capsys.readouterr().err
    assert main(["train", "--config", str(tmp_path / "saved.tml")]) == 2 and "saved.toml?" in capsys.readouterr().err


BAD = [  # flag, value, what the message says is allowed
    ("--steps", "0", ">= 1"),
    ("--steps", "-1", ">= 1"),
    ("--steps", "nan", "not finite"),
    ("--steps", "1.5", "a whole number"),
    ("--steps", "ten", "a whole number"),
    ("--steps", "1e12", "<= 1000000000"),
    ("--batch", "0", ">= 1"),
    ("--batch", "1e9", "<= 1000000"),
    ("--accumulate", "0", ">= 1"),
    ("--seed", "-1", ">= 0"),
    ("--seed", "99999999999999999999", "<="),
    ("--checkpoint-every", "0", ">= 1"),
    ("--keep", "0", ">= 1"),
    ("--log-every", "-5", ">= 1"),
    ("--evaluate-every", "0", ">= 1"),
    ("--preview", "1e9", "<= 4096"),
    ("--lr", "0", "> 0"),
    ("--lr", "-1e-4", "> 0"),
    ("--lr", "inf", "not finite"),
    ("--lr", '"1e-4"', "a number"),
    ("--warmup", "-1", ">= 0"),
    ("--decay", "expo", "none, cosine, linear or inverse-sqrt"),
    ("--beta1", "1", "< 1"),
    ("--grad-clip", "0", "> 0"),
    ("--weight-decay", "1", "< 1"),
    ("--ema", "0.5", "< 0.28"),
    ("--ema", "0", "> 0"),
    ("--cond-dropout", "1.1", "<= 1"),
    ("--device", "tpu", "auto, cpu, cuda or mps"),
    ("--precision", "fp8", "auto, fp32, bf16 or fp16"),
    ("--threads", "0", ">= 1"),
    ("--schedule", "cosin", "did you mean Cosine"),
    ("--parameterization", "epsilon", "Eps"),
    ("--loss", "mse", "Denoising"),
    ("--network", "resnet", "UNetConfig"),
    ("--holdout", "1", "[0, 1)"),
    ("--size", "0", "from 1 to"),
    ("--max-pixels", "0", "from 1 to"),
    ("--background", "blurple", "white, black"),
    ("--classes", "-3", "from 1 to"),
]


@pytest.mark.parametrize(("flag", "value", "allowed"), BAD)
def test_a_bad_value_is_refused_with_what_is_allowed(
    flag: str, value: str, allowed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--out", str(tmp_path / "run"), "--recipe", "none", flag, value]) == 2
    said = capsys.readouterr().err
    assert said.startswith("ddpm train: error: ") and flag.lstrip("-").replace("-", "_") in said.replace("-", "_") and allowed in said, said
    assert not (tmp_path / "run").exists() and "Traceback" not in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (
            ["--schedule", "linear", "--schedule.beta-start", "0.02", "--schedule.beta-end", "0.02"],
            ["beta-end", "must be larger than beta_start"],
        ),
        (["--schedule", "straight", "--parameterization", "eps"], ["parameterization", "alpha(1) = 0", "or a schedule that"]),
        (["--schedule", "vpsde", "--loss", "hybrid"], ["Hybrid", "give the schedule a T"]),
        (["--parameterization", "posterior-mean", "--loss", "hybrid"], ["learned variance with PosteriorMean"]),
        (["--schedule", "table"], ["betas: empty"]),
        (["--schedule.beta-end", "0.3"], ["schedule.beta", "Cosine does not have it, Linear"]),
        (["--network", "unet-config", "--network.channels", "7"], ["channels", "even number"]),
        (["--network", "unet-config", "--network.heads", "7"], ["heads", "divide"]),
        (["--data", "nowhere", "--network.channels", "16"], ["network.name", "by --network; allowed: UNetConfig"]),
        (["--crop", "centre"], ["crop", "without a size"]),
        (["--recipe", "cifar"], ["--recipe is cifar", "cifar10-ho", "digits"]),
        (["--config", "nowhere.toml"], ["nowhere.toml: no such file"]),
    ],
)
def test_settings_that_do_not_go_together(words: list[str], texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--out", str(tmp_path / "run"), *words]) == 2
    said = capsys.readouterr().err
    assert all(text in said for text in texts), said
    assert not (tmp_path / "run").exists() and "Traceback" not in said


def test_all_problems_at_once_and_without_torch(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text('keep = 0\n[optimizer]\nlr = "1e-4"\n[network]\nname = "MLPConfig"\nwidth = 7\n', encoding="utf-8")
    code = "import sys; from ddpm.cli import main; code = main(sys.argv[1:]); sys.exit(code + 100 * ('torch' in sys.modules))"
    words = [
        "train",
        "--config",
        str(tmp_path / "my.toml"),
        "--stpes",
        "1",
        "--batch",
        "0",
        "--seed",
        "-1",
        "--schedule",
        "cosin",
        "--holdout",
        "2",
    ]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, env=environment())
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and lines[0].endswith("problems") and int(lines[0].split()[-2]) == len(lines) - 1 >= 8, done.stderr
    for text in ("keep is 0", 'lr is "1e-4"', "width", "--stpes", "--batch is 0", "--seed is -1", "--schedule is cosin", "--holdout"):
        assert sum(text in line for line in lines) == 1, (text, done.stderr)
    sample = ["sample", "nowhere", "--n", "0", "--clip", "hard"]
    done = subprocess.run([sys.executable, "-c", code, *sample], capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 2 and "2 problems" in done.stderr


def settled(*words: str) -> Any:
    """The settings of `ddpm train WORDS`."""
    from ddpm.cli.app import make_parser
    from ddpm.cli.train import settings as settle

    args, extra = make_parser(["train"]).parse_known_args(["train", *words])
    return settle(args, extra)


def test_recipes_say_what_they_settle() -> None:
    """Their commands are understood; LSUN's name what is mirrored and what is held out."""
    folder = resources.files("ddpm.training.recipes")
    texts = {file.name: file.read_text("utf-8") for file in folder.iterdir() if file.name.endswith(".toml")}
    found = [settled(*words.split()) for text in texts.values() for words in re.findall(r"ddpm train (.+)", text)]
    mirrored = {Path(config.data.data).name.split("_")[0]: config.data.flip for config in found}
    assert mirrored == {"church": True, "bedroom": False}
    (percent,) = re.findall(r"(\d+) % is held out", texts["lsun-ho.toml"])
    assert all(config.data.holdout == float(percent) / 100 for config in found)


def test_flags_win_over_files_and_files_over_recipes(tmp_path: Path) -> None:
    from ddpm.training.recipes import recipe

    (tmp_path / "a.toml").write_text("batch = 32\nsteps = 7\n[optimizer]\nlr = 0.1\n", encoding="utf-8")
    (tmp_path / "b.json").write_text('{"steps": 8}', encoding="utf-8")
    files = ["--config", str(tmp_path / "a.toml"), "--config", str(tmp_path / "b.json")]
    digits = recipe("digits")
    config = settled(*files, "--lr", "0.2")
    assert (config.batch, config.steps, config.optimizer.lr) == (32, 8, 0.2)
    assert (config.ema, config.optimizer.decay) == (digits["ema"], digits["optimizer"]["decay"])
    assert settled("--recipe", "none").network is None and settled("--recipe", "none").ema == 0.05
    assert settled("--data", "photos").network is None
    assert settled("--data", "photos", "--recipe", "digits").batch == digits["batch"]
