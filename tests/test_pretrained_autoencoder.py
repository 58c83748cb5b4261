"""An AutoencoderKL of diffusers in place of our own: small random ones, saved as the library saves them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ddpm
from ddpm.cli import main
from ddpm.data import from_arrays
from ddpm.data.dataset import Dataset
from ddpm.denoiser import LatentCodec
from ddpm.distillation import Consistency, DistillConfig, distill
from ddpm.errors import CheckpointError, ConfigError, MissingLibraryError
from ddpm.networks import UNetConfig, pretrained
from ddpm.training import train
from ddpm.training.build import described_autoencoder
from ddpm.training.config import TrainConfig
from ddpm.training.latents import diffused, encode, in_latents, load_through
from small_runs import settings

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning", "UserWarning")]  # theirs
NETWORK = UNetConfig(channels=8, mults=(1,), blocks=1, attention=(), dropout=0.0)
SMALL: dict[str, Any] = {
    "block_out_channels": [8, 16], "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4, "sample_size": 8,
}  # fmt: skip
WEIGHTS = "diffusion_pytorch_model.safetensors"


def written(folder: Path, **changes: object) -> Path:
    """A folder with a config.json alone."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", "_diffusers_version": "0.36.0", **SMALL, **changes}))
    return folder


def bytes_of(*shape: int, count: int = 60) -> np.ndarray:
    """Random 8-bit samples."""
    return np.random.default_rng(0).integers(0, 256, (count, *shape)).astype(np.uint8)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with pictures in two classes, and with `vae`, which the library has saved."""
    diffusers = pytest.importorskip("diffusers", reason="needs pip install 'ddpm[diffusers]'")
    home = tmp_path_factory.mktemp("pretrained")
    np.savez(home / "x.npz", x=bytes_of(3, 8, 8), y=np.arange(60) % 2)
    torch.manual_seed(0)
    diffusers.AutoencoderKL(**SMALL).save_pretrained(home / "vae")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDPM_CACHE", str(home / "cache"))
        yield home


def data(home: Path, **changes: Any) -> Dataset:
    """Its pictures."""
    held = np.load(home / "x.npz")
    return from_arrays(held["x"], {"class": held["y"]}, name="x", **changes)


def asked(home: Path, out: str, **changes: object) -> TrainConfig:
    """A run of a few steps in its latents."""
    config = settings(home / out, network=NETWORK, batch=8, autoencoder=str(home / "vae"), **changes)
    return replace(config, data=replace(config.data, data=str(home / "x.npz")))


def test_without_the_library_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether it is asked for by a folder or by a checkpoint; with the exit code of settings, and before anything is written."""
    monkeypatch.setitem(sys.modules, "diffusers", None)
    np.save(tmp_path / "x.npy", bytes_of(3, 8, 8))
    words = ["--data", str(tmp_path / "x.npy"), "--out", str(tmp_path / "run")]
    assert main(["train", *words, "--autoencoder", str(written(tmp_path / "vae")), "--batch", "8"]) == 2
    assert "needs the library diffusers: pip install 'ddpm[diffusers]'" in capsys.readouterr().err
    assert main(["autoencode", *words, "--measure", str(tmp_path / "vae")]) == 2
    assert "pip install 'ddpm[diffusers]'" in capsys.readouterr().err and not (tmp_path / "run").exists()
    with pytest.raises(MissingLibraryError, match="pip install"):
        described_autoencoder({"network": {"diffusers": SMALL}, "shape": [3, 8, 8], "codec": {}})


def test_other_data_are_refused_with_all_reasons_at_once(tmp_path: Path) -> None:
    """Number of channels, sizes, conditions; another network of the library; before the library is imported."""
    field = from_arrays(bytes_of(1, 7, 8), {"image": np.zeros((60, 1, 7, 8), np.float32)})
    with pytest.raises(ConfigError) as found:
        load_through(written(tmp_path / "vae"), field)
    for words in ("takes pictures of 3 channels; --channels rgb", "divisible by 2; not divisible: 7 (nearest: 6 or 8)", "image condition"):
        assert words in str(found.value)
    assert found.value.count == 3
    for changes, shape, words in (
        ({}, (3, 8), "takes pictures of 3 channels"),
        ({"in_channels": 1}, (1, 8, 8), "takes 1 channels and returns 3"),
        ({"_class_name": "AutoencoderTiny"}, (3, 8, 8), "holds diffusers' AutoencoderTiny"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_through(written(tmp_path / words[-9:], **changes), from_arrays(bytes_of(*shape)))


def test_it_says_what_the_library_s_own_says(home: Path) -> None:
    """Mean and deviation of q, and what latents decode to; pictures come to it in [-1, 1], however they are normalised, in one scale."""
    import diffusers  # pyright: ignore[reportMissingImports]

    through = load_through(home / "vae", data(home, normalise="standard"))
    theirs = diffusers.AutoencoderKL.from_pretrained(home / "vae").eval()
    raw = data(home).samples[:5]
    x = torch.from_numpy(raw).float() / 127.5 - 1.0
    torch.testing.assert_close(through.codec.encode(raw), x)
    with torch.no_grad():
        there = theirs.encode(x).latent_dist
        mean, std = encode(through, raw)
        torch.testing.assert_close(torch.from_numpy(mean), there.mean)
        torch.testing.assert_close(torch.from_numpy(std), there.std)
        torch.testing.assert_close(through.autoencoder.decode(there.mean), theirs.decode(there.mean).sample)
    assert through.autoencoder.latent_shape == mean.shape[1:] == (4, 4, 4) and through.autoencoder.codebook is None
    with pytest.raises(ConfigError, match="divisible by 2"):
        through.autoencoder.posterior(x[..., :-1])
    floats = raw.astype(np.float32) * np.array([0.5, 1.0, 1.5], np.float32)[:, None, None]
    codec = load_through(home / "vae", from_arrays(np.tile(floats, (12, 1, 1, 1)))).codec
    assert len({*codec.shift}) == len({*codec.scale}) == 1


def test_the_settings_are_part_of_the_cache_s_key(home: Path, tmp_path: Path) -> None:
    """Of equal weights; and it is encoded once."""
    changed = shutil.copytree(home / "vae", tmp_path / "vae")
    held = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps({**held, "norm_num_groups": 2}))
    first, again, other = (in_latents(data(home), load_through(at, data(home))) for at in (home / "vae", home / "vae", changed))
    assert first.card == again.card and first.card.fingerprint != other.card.fingerprint
    assert not np.array_equal(first.batch(np.arange(4))[0], other.batch(np.arange(4))[0])


def test_a_run_carries_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in every checkpoint as buffers, settings in config.json, latents of measured mean and deviation; it resumes; without the
    library it says what to do.
    """
    train(asked(home, "run", steps=2), quiet=True)
    finished = train(asked(home, "run"), quiet=True)
    expected = in_latents(data(home), load_through(home / "vae", data(home)))
    (home / "vae").rename(home / "away")
    try:
        denoiser = ddpm.load(home / "run")
        document = json.loads(next((home / "run").glob("step-*/config.json")).read_text())
    finally:
        (home / "away").rename(home / "vae")
    codec = denoiser.codec
    assert isinstance(codec, LatentCodec) and denoiser.shape == (4, 4, 4) and denoiser.data_shape == (3, 8, 8)
    assert document["autoencoder"]["network"] == {"diffusers": pretrained.settings_of(home / "vae")}
    assert codec.latent.shift == expected.card.mean and codec.latent.scale == expected.card.std
    assert not any("autoencoder" in name for name, _ in denoiser.named_parameters())
    saved, kept = load_file(home / "vae" / WEIGHTS), denoiser.state_dict()
    assert all(torch.equal(kept[f"autoencoder.model.{name}"], tensor) for name, tensor in saved.items())
    assert diffused(data(home), denoiser).card == expected.card  # read from the cache by what the checkpoint says
    drawn = ddpm.sample(denoiser, 3, steps=3, cond={"class": torch.tensor([0, 1, 0])})
    assert drawn.dtype == torch.uint8 and drawn.shape == (3, 3, 8, 8)
    assert torch.equal(drawn, ddpm.sample(finished.denoiser, 3, steps=3, cond={"class": torch.tensor([0, 1, 0])}))
    assert main(["sample", str(home / "run"), "--n", "2", "--steps", "2", "--tile", "8"]) == 0
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingLibraryError, match="pip install 'ddpm"):
        ddpm.load(home / "run")
    assert main(["sample", str(home / "run"), "--n", "1"]) == 2


def test_what_it_loses_is_measured(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it loses is measured without training anything; what only training reads is refused."""
    words = ["autoencode", "--data", str(home / "x.npz"), "--out", str(tmp_path / "vae"), "--frechet", "none"]
    assert main([*words, "--measure", str(home / "vae")]) == 0
    report = json.loads((tmp_path / "vae" / "report.json").read_text())
    assert report["latent_shape"] == [4, 4, 4] and report["psnr"] > 0 and len(report["latents"]["std"]) == 4
    assert (tmp_path / "vae" / "reconstructions.png").is_file() and "PSNR" in capsys.readouterr().out
    assert main([*words, "--measure", str(home / "vae"), "--lr", "1", "--steps", "3"]) == 2
    assert "2 problems" in capsys.readouterr().err


def test_weights_that_do_not_fit_are_refused(home: Path, tmp_path: Path) -> None:
    """Missing ones, too few, too many, of another size, none but a pickle."""
    weights = load_file(home / "vae" / WEIGHTS)
    first = min(weights)
    for number, (held, words) in enumerate((
        (None, "no weights in"),
        ({name: tensor for name, tensor in weights.items() if name != first}, f"lacks 1 tensors, the first is {first}"),
        ({**weights, "more": torch.zeros(1)}, "holds, beyond what config.json describes, 1 tensors, the first is more"),
        ({**weights, first: torch.zeros(1)}, "no weights in"),
    )):  # fmt: skip
        folder = written(tmp_path / str(number))
        if held is None:
            torch.save(weights, folder / "diffusion_pytorch_model.bin")
        else:
            save_file(held, folder / WEIGHTS)
        with pytest.raises(CheckpointError, match=words):
            load_through(folder, data(home))
    with pytest.raises(CheckpointError, match="there is no autoencoder"):
        load_through(tmp_path, data(home))


def test_a_run_in_its_latents_can_be_distilled(home: Path) -> None:
    """By the library's autoencoder as it is in the teacher's checkpoint."""
    train(asked(home, "taught", steps=2), quiet=True)
    config = DistillConfig(method=Consistency(), updates=2, batch=8, preview=0, threads=1, out=str(home / "student"))
    student = distill(home / "taught", config, quiet=True).denoiser
    assert isinstance(student.codec, LatentCodec)
    assert ddpm.sample(student, 2, cond={"class": torch.tensor([0, 1])}).shape == (2, 3, 8, 8)
