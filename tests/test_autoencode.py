"""Training an autoencoder: it learns, resumes to the last bit, says what it lost, and refuses what cannot be."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.cli import main
from ddpm.data import DataSettings, from_arrays
from ddpm.data.dataset import Dataset
from ddpm.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from ddpm.networks import AutoencoderConfig
from ddpm.training import autoencoder as module
from ddpm.training.autoencoder import load_autoencoder, train_autoencoder
from ddpm.training.checkpoints import checkpoint
from ddpm.training.config import AutoencodeConfig, OptimizerSettings
from ddpm.training.machine import Machine
from small_runs import pictures

SMALL = AutoencoderConfig(channels=8, mults=(1, 2), latent=2)


def asked(out: Path, steps: int = 6, **changes: object) -> AutoencodeConfig:
    """A small one, on one thread."""
    config = AutoencodeConfig(
        out=str(out), steps=steps, batch=8, network=SMALL, checkpoint_every=3, log_every=2, threads=1, precision="fp32",
        optimizer=OptimizerSettings(lr=2e-3, decay="cosine", warmup=2),
    )  # fmt: skip
    return replace(config, **changes)  # type: ignore[arg-type]


def smooth(count: int = 40) -> Dataset:
    """Pictures of two numbers each: a slope in x and one in y."""
    place, slopes = np.linspace(-1, 1, 8), np.random.default_rng(0).uniform(-1, 1, (count, 2))
    x = slopes[:, 0, None, None] * place[:, None] + slopes[:, 1, None, None] * place[None]
    return from_arrays(np.round(127.5 + 60 * x[:, None]).astype(np.uint8))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All of the newest checkpoint."""
    saved = checkpoint.newest(folder)
    assert saved is not None
    return {f"{group}/{name}": tensor for group in saved.tensor_names for name, tensor in saved.tensors(group).items()}


@pytest.mark.parametrize("weight", [0.01, 1.0])
def test_the_loss_has_the_weight_asked_for(weight: float, tmp_path: Path) -> None:
    fit = module._Fit(asked(tmp_path / "a", kl=weight), smooth(), Machine(torch.device("cpu"), "fp32", "a test"))
    assert fit.loss.weight == weight


def test_the_critic_begins_at_its_share_of_the_steps(tmp_path: Path) -> None:
    fit = module._Fit(
        asked(tmp_path / "a", steps=10, perceptual=0.5, adversarial=0.5, critic_from=0.3),
        smooth(),
        Machine(torch.device("cpu"), "fp32", "a test"),
    )
    assert fit.critic is not None
    began = [weights.clone() for weights in fit.critic.parameters()]
    moved: list[bool] = []
    for _ in range(4):
        fit.advance()
        moved.append(any(not torch.equal(a, b) for a, b in zip(began, fit.critic.parameters(), strict=True)))
    assert moved == [False, False, False, True]


@pytest.mark.parametrize(("codes", "critic"), [(0, 0.0), (5, 0.0), (0, 0.5)], ids=["continuous", "codebook", "critic"])
def test_a_stopped_and_resumed_training_has_the_same_bits(
    codes: int, critic: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Averages, optimizer and all; Ctrl-C saves where it stands."""
    changes = {"network": replace(SMALL, codes=codes), "perceptual": critic, "adversarial": critic, "critic_from": 0.2 if critic else 0.3}
    whole = train_autoencoder(asked(tmp_path / "whole", **changes), data=smooth(), quiet=True)
    plain = module._Fit.advance

    def interrupting(fit: module._Fit) -> torch.Tensor:
        if fit.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(fit)

    monkeypatch.setattr(module._Fit, "advance", interrupting)
    half = train_autoencoder(asked(tmp_path / "half", **changes), data=smooth(), quiet=True)
    assert half.code == 130 and whole.code == 0
    monkeypatch.undo()
    train_autoencoder(asked(tmp_path / "half", log_every=1, **changes), data=smooth(), quiet=True)
    first, second = tensors(tmp_path / "whole"), tensors(tmp_path / "half")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    loaded = load_autoencoder(tmp_path / "half")
    assert all(torch.equal(a, b) for a, b in zip(loaded.autoencoder.parameters(), whole.autoencoder.parameters(), strict=True))
    assert loaded.codec == whole.codec
    assert any(name.startswith("critic/") for name in first) == bool(critic)


@pytest.mark.parametrize("codes", [0, 32])
def test_what_has_two_numbers_is_learned(codes: int, tmp_path: Path) -> None:
    """By command: the reconstructions are much nearer than the mean picture, and the report says what is so."""
    data = smooth(800)
    np.save(tmp_path / "x.npy", data.samples[:])
    words = ["autoencode", "--data", str(tmp_path / "x.npy"), "--out", str(tmp_path / "run"), "--steps", "200", "--batch", "16"]
    words += ["--network.channels", "8", "--network.mults", "1,2", "--network.latent", "2", "--network.codes", str(codes)]
    assert main([*words, "--threads", "1", "--lr", "0.01", "--frechet", "raw"]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    spread = np.asarray(data.samples[:]).astype(float).std(0).mean()
    assert report["psnr"] > 20 * np.log10(255 / spread) + 6  # half the error of the mean picture, at most
    through = load_autoencoder(tmp_path / "run")
    own = from_arrays(data.samples[:])
    raw = own.batch(own.held_rows)[0]
    with torch.no_grad():
        reconstructions = through.codec.decode(
            through.autoencoder.decode(through.autoencoder.posterior(through.codec.encode(raw)).mean)
        ).numpy()
    error = np.square(reconstructions.astype(float) - raw).mean((1, 2, 3))
    assert abs(report["psnr"] - (10 * np.log10(255**2 / error)).mean()) < 0.05
    assert report["rows"] == "held out" and report["latent_shape"] == [2, 4, 4] and report["smaller"] == 2.0
    assert report["frechet"] < 0.3 * data.card.std[0] ** 2 * 64 and len(report["latents"]["std"]) == 2
    assert ("codes_used" in report) == bool(codes) and (tmp_path / "run" / "reconstructions.png").is_file()


def test_a_codebook_begins_with_latents_of_the_data(tmp_path: Path) -> None:
    """Every entry is one of the first batch's; and codes are chosen in full precision whatever the rest runs in."""
    config = asked(tmp_path / "a", network=replace(SMALL, codes=5))
    fit = module._Fit(config, smooth(), Machine(torch.device("cpu"), "fp32", "a test"))
    fit.begin()
    book = fit.model.codebook
    assert book is not None
    with torch.no_grad():
        z = fit.model.posterior(fit.batch(0)[0]).mean.movedim(1, -1).flatten(0, -2)
    assert torch.cdist(book.detach(), z).min(1).values.max() < 1e-6
    far = 50.0 + 0.3 * torch.randn(64, book.shape[1], 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        book.copy_(far[:5, :, 0, 0])
    with torch.autocast("cpu", torch.bfloat16):
        chosen = fit.model.codes(far)
    assert torch.equal(chosen, torch.cdist(far.movedim(1, -1).reshape(-1, book.shape[1]), book.detach()).argmin(1).view(64, 4, 4))


def test_what_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another size, other settings, other data, another kind of folder."""
    data = smooth()
    train_autoencoder(asked(tmp_path / "a", steps=2), data=data, quiet=True)
    for config, given, error, words in (
        (asked(tmp_path / "b", network=replace(SMALL, mults=(1, 1, 1, 1, 1))), data, ConfigError, "divisible by 16"),
        (asked(tmp_path / "a", kl=0.5), data, ConfigError, "kl: 0.01 -> 0.5"),
        (asked(tmp_path / "a", data=DataSettings(holdout=0.3)), smooth(), ConfigError, "data.holdout: 0.1 -> 0.3"),
        (asked(tmp_path / "a"), smooth(41), DataError, "not the data"),
        (asked(tmp_path / "b"), pictures(3, 8, 8, count=5), (ConfigError, DataError), "batch"),
    ):
        with pytest.raises(error, match=words):
            train_autoencoder(config, data=given, quiet=True)
    assert not (tmp_path / "b").exists()
    for folder, words in ((tmp_path / "none", "there is no autoencoder"), (tmp_path, "there is no autoencoder")):
        with pytest.raises(CheckpointError, match=words):
            load_autoencoder(folder)
    monkeypatch.setattr(module._Fit, "advance", lambda fit: (setattr(fit, "step", fit.step + 1), torch.tensor(torch.nan))[1])
    with pytest.raises(NonFiniteError, match="not finite between steps 1 and 2"):
        train_autoencoder(asked(tmp_path / "c"), data=data, quiet=True)


def test_help_says_where_data_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    """An autoencoder has no run whose data it takes; a classifier has."""
    for command, of_run in (("autoencode", False), ("classifier", True)):
        assert main([command, "--help"]) == 0
        assert ("that of the run" in " ".join(capsys.readouterr().out.split())) == of_run, command
