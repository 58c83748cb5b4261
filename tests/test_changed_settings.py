"""Coming back to a run with other settings, or with checkpoints that are bad: what makes another model is refused, the rest is said."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddpm.cli import main
from ddpm.data import DataSettings
from ddpm.data.dataset import Dataset
from ddpm.errors import ConfigError
from ddpm.networks.config import MLPConfig
from ddpm.objective import Denoising, LogitNormal
from ddpm.process import Linear, Straight
from ddpm.training import run
from ddpm.training import state as training_state
from small_runs import SMALL_UNET, digests, pictures, quietly, settings, table


@pytest.fixture(scope="module")
def data() -> Dataset:
    return table()


class Linear3(nn.Module):
    """A person's own network."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor, c_noise: Tensor, cond: object) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"network": MLPConfig(width=32, depth=1)}, "network.width: 16 -> 32"),
        ({"network": SMALL_UNET}, "network.name: MLPConfig -> UNetConfig"),
        ({"schedule": Linear()}, "schedule.name: Cosine -> Linear"),
        ({"schedule": Straight()}, "schedule.name: Cosine -> Straight"),
        ({"ema": 0.1}, "ema: 0.05 -> 0.1"),
        ({"loss": Denoising(times=LogitNormal())}, "loss.times.name: UniformTimes -> LogitNormal"),
        ({"data": DataSettings(normalise="range")}, "data.normalise: auto -> range"),
    ],
)
def test_another_model_is_refused_with_a_table(
    change: dict[str, object], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pictures(1, 4, 4) if isinstance(change.get("network"), type(SMALL_UNET)) else table()
    quietly(settings(tmp_path), data=table())
    before = digests(tmp_path)
    with pytest.raises(ConfigError) as caught:
        quietly(replace(settings(tmp_path, steps=6), **change), data=data)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2 and line in str(caught.value).splitlines()
    assert "holds another model (saved -> now)" in str(caught.value) and digests(tmp_path) == before


def test_another_size_is_a_setting_not_just_other_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in range(12):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(tmp_path / "photos" / f"{name}.png")
    words = ["train", "--data", str(tmp_path / "photos"), "--out", str(tmp_path / "run"), "--steps", "2", "--batch", "2", "--preview", "0"]
    words += ["--network", "unet-config", "--network.channels", "8", "--network.mults", "1", "--network.attention", "", "--threads", "1"]
    assert main([*words, "--size", "8"]) == 0
    capsys.readouterr()
    assert main([*words, "--size", "4"]) == 2
    assert "data.size: [8] -> [4]" in capsys.readouterr().err


def test_what_does_not_change_the_model_is_a_notice(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quietly(settings(tmp_path), data=data)
    monkeypatch.setattr(training_state.torch, "__version__", "9.9.9")
    config = settings(tmp_path, steps=6, seed=5, batch=5, threads=2, cond_dropout=0.2)
    config = replace(config, optimizer=replace(config.optimizer, lr=1e-3), network=replace(config.network, dropout=0.1))  # type: ignore[type-var]
    run.train(config, data=data)
    said = capsys.readouterr().err
    for line in (
        "seed: 0 -> 5",
        "batch: 4 -> 5",
        "cond_dropout: 0.1 -> 0.2",
        "optimizer.lr: 0.0002 -> 0.001",
        "network.dropout: 0.0 -> 0.1",
    ):
        assert f"changed since the last checkpoint: {line}\n" in said
    assert "used 1 CPU threads, now 2" in said and "now 9.9.9" in said and "Resumed from step 4" in said
    torch.set_num_threads(1)


def test_a_run_of_ones_own_network_is_no_run_of_ours(tmp_path: Path, data: Dataset) -> None:
    quietly(settings(tmp_path), network=Linear3(), data=data)
    with pytest.raises(ConfigError, match="holds another model"):
        quietly(settings(tmp_path, steps=6), data=data)


# --- bad checkpoints ----------------------------------------------------------------------------------------------------


def words_for(out: Path, steps: int) -> list[str]:
    model = ["--network", "mlp-config", "--network.width", "8", "--network.depth", "1", "--preview", "0", "--threads", "1"]
    places = ["--data", str(out.parent / "table.npy"), "--out", str(out)]
    return ["train", *places, "--steps", str(steps), "--batch", "4", "--checkpoint-every", "2", *model]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    np.save(tmp_path / "table.npy", np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32))
    assert main(words_for(tmp_path / "run", 4)) == 0
    return tmp_path / "run"


def spoil(folder: Path) -> None:
    """Flip one bit in the middle of the weights."""
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_bad_checkpoint_is_passed_over_and_all_bad_is_an_error(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    spoil(out / "step-0000004")
    assert main(words_for(out, 6)) == 0
    said = capsys.readouterr().err
    assert "step 4: model.safetensors fails SHA-256; using step 2" in said and "Resumed from step 2 (verified)" in said
    for folder in out.glob("step-*"):
        spoil(folder)
    assert main(words_for(out, 8)) == 4
    said = capsys.readouterr().err
    assert "no checkpoint of" in said and "step-0000004: model.safetensors" in said and "step-0000006: model.safetensors" in said
    assert main(["sample", str(out)]) == 4


def test_a_missing_step_lists_the_others(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(out), "--step", "3"]) == 4
    assert "other steps there: 4, 2" in capsys.readouterr().err
    shutil.rmtree(out / "step-0000002")
    shutil.rmtree(out / "step-0000004")
    assert main(["sample", str(out)]) == 4
    assert "holds no checkpoint" in capsys.readouterr().err
    assert main(["sample", str(out / "nowhere")]) == 4
    assert "no such run folder" in capsys.readouterr().err
