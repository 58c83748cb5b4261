"""Training in the latents of an autoencoder: cached once, normalised by what was measured, and samples that are data again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ddpm
from ddpm.cli import main
from ddpm.data import from_arrays
from ddpm.data.dataset import Dataset
from ddpm.denoiser import Codec, LatentCodec
from ddpm.denoiser.serving import serving
from ddpm.denoiser.tiles import tiled
from ddpm.errors import CheckpointError, ConfigError
from ddpm.likelihood import continuous, latent_bound
from ddpm.networks import AutoencoderConfig, UNetConfig
from ddpm.networks.autoencoder import ConvolutionalAutoencoder
from ddpm.random import generator, normals
from ddpm.training import latents, train
from ddpm.training.autoencoder import Through, load_autoencoder, train_autoencoder
from ddpm.training.checkpoints import checkpoint
from ddpm.training.config import AutoencodeConfig, TrainConfig
from ddpm.training.distributed.world import World
from ddpm.training.latents import Latents, encode, in_latents
from small_runs import digests, settings, table

NETWORK = UNetConfig(channels=8, mults=(1,), blocks=1, attention=(), dropout=0.0)


@pytest.fixture(scope="module", params=[0, 6], ids=["continuous", "codebook"])
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, in two classes, and an autoencoder of them that has hardly learned anything."""
    home = tmp_path_factory.mktemp("latents")
    rng = np.random.default_rng(0)
    np.savez(home / "x.npz", x=rng.integers(0, 256, (120, 3, 8, 8)).astype(np.uint8), y=np.arange(120) % 2)
    config = AutoencodeConfig(
        out=str(home / "ae"), steps=4, batch=8, threads=1, precision="fp32",
        network=AutoencoderConfig(channels=8, mults=(1, 2), latent=2, codes=request.param),
    )  # fmt: skip
    train_autoencoder(replace(config, data=replace(config.data, data=str(home / "x.npz"))), quiet=True)
    return home


@pytest.fixture(autouse=True)
def _cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own."""
    monkeypatch.setenv("DDPM_CACHE", str(home / "cache"))


def opened(home: Path) -> Through:
    """The autoencoder of the folder."""
    return load_autoencoder(home / "ae")


def data(home: Path, flip: bool = False) -> Dataset:
    """Its pictures."""
    held = np.load(home / "x.npz")
    return from_arrays(held["x"], {"class": held["y"]}, name="x", flip=flip)


def asked(home: Path, out: str, **changes: object) -> TrainConfig:
    """A run of a few steps in latents."""
    config = settings(home / out, network=NETWORK, batch=8, autoencoder=str(home / "ae"), **changes)
    return replace(config, data=replace(config.data, data=str(home / "x.npz")))


def test_what_is_cached_is_what_is_encoded(home: Path, tmp_path: Path) -> None:
    """To the last bit, of samples and of their mirror images, in batches as they were encoded in, and to rounding in others; and it is
    encoded once.
    """
    through, plain = opened(home), data(home, flip=True)
    said: list[str] = []
    latent = in_latents(plain, through, said.append, cache=tmp_path)
    store = latent.samples
    assert isinstance(store, Latents) and len(store.kinds) == 2 and store.shape == (120, 2, 4, 4)
    for rows in (np.arange(32), np.arange(96, 120)):
        raw, _ = plain.batch(rows)
        for (mean, std), seen in zip(store.kinds, (raw, raw[..., ::-1].copy()), strict=True):
            fresh = encode(through, seen)
            assert np.array_equal(mean[rows], fresh[0]) and np.array_equal(std[rows], fresh[1])
        mean, std = encode(through, raw)
        noise = normals(0, rows.tolist(), store.shape[1:], "evaluate").numpy()
        assert np.array_equal(latent.batch(rows)[0], mean + std * noise)  # what measurements see: always the same draw of a row
    alone = [encode(through, plain.batch(np.array([row]))[0]) for row in range(5)]
    for kind, kept in enumerate(store.kinds[0]):
        np.testing.assert_allclose(np.concatenate([one[kind] for one in alone]), kept[:5], rtol=1e-4, atol=1e-5)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    again = in_latents(data(home, flip=True), through, cache=tmp_path)
    assert again.card == latent.card and stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert in_latents(latent, through) is latent
    assert in_latents(data(home), through, cache=tmp_path).card.fingerprint != latent.card.fingerprint
    other = Through(through.autoencoder, replace(through.codec, shift=tuple(value + 1.0 for value in through.codec.shift)))
    assert in_latents(plain, other, cache=tmp_path).card.fingerprint != latent.card.fingerprint


def test_encoding_goes_on_where_it_was_stopped(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In files of a few rows, of which those that are whole are not made again; the same latents as in one file, in any order of rows."""
    whole = in_latents(data(home, flip=True), opened(home), cache=tmp_path / "whole")
    monkeypatch.setattr(latents, "SHARD", 50)
    calls: list[int] = []

    def failing(through: Through, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        calls.append(len(raw))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return encode(through, raw)

    monkeypatch.setattr(latents, "encode", failing)
    with pytest.raises(KeyboardInterrupt):
        in_latents(data(home, flip=True), opened(home), cache=tmp_path / "parts")
    (folder,) = (tmp_path / "parts" / "latents").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["000000-mirrored.npy", "000000.npy"]
    parts = in_latents(data(home, flip=True), opened(home), cache=tmp_path / "parts")
    assert sum(calls[6:]) == 2 * 70 and parts.card == whole.card
    for rows in (np.array([119, 3, 50, 49, 3]), np.arange(120)):
        assert np.array_equal(parts.batch(rows)[0], whole.batch(rows)[0])
        assert np.array_equal(parts.batch(rows, generator(0, "augment"))[0], whole.batch(rows, generator(0, "augment"))[0])


def test_many_processes_encode_a_share_each(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each its own shards, then those that the others have put elsewhere."""
    monkeypatch.setattr(latents, "SHARD", 30)

    class Half(World):
        """Rank 1 of 2, whose companion never comes by."""

        def everywhere(self, action: Callable[[], Any]) -> Any:
            done = action()
            seen.append(sorted(path.name for path in tmp_path.rglob("0*.npy")))
            return done

        def gather(self, value: Any) -> list[Any]:
            return [value]

    seen: list[list[str]] = []
    half = Half()
    half.rank, half.size = 1, 2
    latent = in_latents(data(home), opened(home), cache=tmp_path, world=half)
    assert seen == [["000001.npy"], ["000001.npy", "000003.npy"], [f"{number:06d}.npy" for number in range(4)]]
    assert latent.card == in_latents(data(home), opened(home), cache=tmp_path).card


def test_a_batch_is_drawn_from_the_posterior(home: Path, tmp_path: Path) -> None:
    """z = mean + std eps, mirrored in half of the cases; of the same generator the same."""
    latent = in_latents(data(home, flip=True), opened(home), cache=tmp_path)
    store, rows = latent.samples, np.repeat(np.arange(20), 200)
    assert isinstance(store, Latents)
    drawn = latent.batch(rows, generator(0, "augment"))[0]
    assert np.array_equal(drawn, latent.batch(rows, generator(0, "augment"))[0])
    means, stds = (np.stack([kind[part][:20] for kind in store.kinds]) for part in (0, 1))
    centre = means.mean(0)
    variance = (stds**2).mean(0) + means.var(0)
    found = drawn.reshape(20, 200, 2, 4, 4)
    assert np.abs(found.mean(1) - centre).max() < 5.5 * np.sqrt(variance.max() / 200)
    ratio = found.var(1).mean() / variance.mean()
    assert 0.95 < ratio < 1.05


def test_what_is_diffused_has_mean_0_and_deviation_1(home: Path, tmp_path: Path) -> None:
    """By the statistics of the training rows' draws, mirrored or not, measured, per channel; the classes and the split are the data's."""
    plain = data(home, flip=True)
    latent = in_latents(plain, opened(home), cache=tmp_path)
    store = latent.samples
    assert isinstance(store, Latents)
    mean, std = (np.concatenate([kind[part][latent.train_rows].astype(np.float64) for kind in store.kinds]) for part in (0, 1))
    assert np.allclose(latent.card.mean, mean.mean((0, 2, 3)), rtol=1e-9)
    assert np.allclose(latent.card.std, np.sqrt((mean**2 + std**2).mean((0, 2, 3)) - mean.mean((0, 2, 3)) ** 2), rtol=1e-9)
    assert np.array_equal(latent.train_rows, plain.train_rows) and latent.card.classes == plain.card.classes
    x = (mean - np.array(latent.card.mean)[:, None, None]) / np.array(latent.card.std)[:, None, None]
    assert abs(x.mean()) < 1e-9


def test_a_run_samples_data_and_needs_the_autoencoder_no_more(home: Path) -> None:
    """Samples are bytes of the data's shape, decoded as the autoencoder decodes; the run carries it; a resumed run has the same bits."""
    whole = train(asked(home, "whole"), quiet=True)
    train(asked(home, "half", steps=2), quiet=True)
    train(asked(home, "half"), quiet=True)
    assert digests(home / "whole") == digests(home / "half")
    moved = home / "moved"
    shutil.copytree(home / "whole", moved)
    (home / "ae").rename(home / "away")
    try:
        denoiser = ddpm.load(moved)
    finally:
        (home / "away").rename(home / "ae")
    assert isinstance(denoiser.codec, LatentCodec) and denoiser.shape == (2, 4, 4) and denoiser.data_shape == (3, 8, 8)
    assert not any("autoencoder" in name for name, _ in denoiser.named_parameters())
    saved = checkpoint.newest(home / "ae")
    assert saved is not None and denoiser.autoencoder is not None
    assert denoiser.autoencoder.scale == opened(home).autoencoder.scale == float(saved.tensors("loss")["log_scale"].double().exp())
    drawn = ddpm.sample(denoiser, 3, steps=4, cond={"class": torch.tensor([0, 1, 0])})
    assert drawn.dtype == torch.uint8 and drawn.shape == (3, 3, 8, 8)
    x = ddpm.sample(denoiser, 3, steps=4, cond={"class": torch.tensor([0, 1, 0])}, decode=False)
    through = opened(home)
    z = x * torch.tensor(denoiser.codec.scale)[:, None, None] + torch.tensor(denoiser.codec.shift)[:, None, None]
    with torch.no_grad():
        by_hand = through.codec.decode(through.autoencoder.decode(z.float()))
    assert (by_hand.int() - drawn.int()).abs().max() <= 1  # a sample at a time is another order of sums
    assert denoiser.autoencoder is not None
    with serving(denoiser, torch.device("cpu"), torch.bfloat16):  # the network's weights are cast, the decoder's not
        assert not any("forward" in vars(part) for part in denoiser.autoencoder.modules())
        assert torch.equal(denoiser.codec.decode(x), drawn)
    raw = torch.from_numpy(data(home).samples[:4])
    latents = torch.from_numpy(encode(through, raw.numpy())[0])
    torch.testing.assert_close(denoiser.codec.encode(raw), denoiser.codec.encode(latents), rtol=1e-4, atol=1e-4)
    assert whole.code == 0 and denoiser.codec.bounds(x) is None and denoiser.codec.bin_width(x) is None


@pytest.mark.parametrize("home", [0], indirect=True, ids=["continuous"])
def test_the_commands_know_what_latents_are(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that can work on them do, the others say why not."""
    run = str(home / "commands")
    train(asked(home, "commands", preview=2, snapshots=1), quiet=True)
    assert (home / "commands" / "samples" / "step-0000004.png").is_file()
    for words in (
        ["sample", run, "--n", "4", "--steps", "3"],
        ["sample", run, "--n", "4", "--steps", "3", "--tile", "8"],
        ["evaluate", run, "--n", "60", "--steps", "2", "--extractor", "raw", "--sweep", "0"],
        ["interpolate", run, f"{home / 'x.npz'}:0", f"{home / 'x.npz'}:1", "--steps", "3"],
        ["ema", run],
        ["distill", run, "--method", "consistency", "--updates", "2", "--threads", "1", "--score", "0"],
        ["classifier", run, "--steps", "2", "--batch", "8"],
    ):
        assert main(words) == 0, (words, capsys.readouterr().err)
    report = json.loads((home / "commands" / "report" / "report.json").read_text())
    assert report["losses"]["mean"] > 0 and report["bits_per_dim"]["unit"] == "bits/dim"
    student = ddpm.load(home / "commands-consistency")
    assert ddpm.sample(student, 2).shape == (2, 3, 8, 8)
    picture = str(home / "p.png")
    from PIL import Image

    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture)
    assert main(["sample", run, "--from", picture, "--n", "2", "--steps", "3"]) == 0
    capsys.readouterr()
    assert main(["inpaint", run, "--image", picture, "--mask", picture]) == 2
    assert "diffuses in latents" in capsys.readouterr().err


def test_data_have_a_likelihood_through_continuous_latents_alone(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every route, with its terms; a codebook gives none, nor a run of before the decoder's scale was kept, until it goes on."""
    run = home / "scored"
    train(asked(home, "scored", steps=2), quiet=True)
    capsys.readouterr()
    words = ["likelihood", str(run), "--n", "3", "--terms", "4", "--levels", "4", "--tolerance", "0.05", "--entry", "0.1"]
    if opened(home).autoencoder.codebook is not None:
        assert main(words) == 2 and "codebook" in capsys.readouterr().err
        return
    assert main([*words, "--batch", "2", "--out", str(tmp_path / "scores.npz")]) == 0
    shown = capsys.readouterr().out
    assert "3 samples of" in shown and "(3, 8, 8), held out, given their classes; levels 0 to 255" in shown and "Laplace scale" in shown
    kept = np.load(tmp_path / "scores.npz")
    for route in ("bound", "continuous", "flow"):
        assert f"\n{route} latents" in shown and np.isfinite(kept[f"{route}_error"]).all()
        terms = kept["decoder_nats"] + kept[f"{route}_latents_nats"] - kept["entropy_nats"]
        np.testing.assert_allclose(kept[f"{route}_nats"], terms, rtol=1e-6)
        assert 5 < kept[f"{route}_nats"].mean() / (192 * np.log(2)) < 12  # of 8 bits, by models that know nothing
    assert main([*words, "--curve"]) == 2 and "leave --curve out" in capsys.readouterr().err
    denoiser = ddpm.load(run)
    assert denoiser.autoencoder is not None
    raw = torch.from_numpy(data(home).samples[kept["row"]])
    found = latent_bound(
        denoiser, raw, {"class": torch.from_numpy(kept["row"] % 2)}, density=partial(continuous, draws=4, entry=0.1)
    ).scores
    np.testing.assert_allclose(found.nats, kept["continuous_nats"], rtol=1e-4)  # the batch does not matter

    old = opened(home)
    old.autoencoder.scale = None  # as a run of before it was kept has it
    monkeypatch.setattr("ddpm.training.run.load_through", lambda *_: old)
    train(asked(home, "old", steps=1), quiet=True)
    monkeypatch.undo()
    words[1] = str(home / "old")
    assert main(words) == 2 and "does not hold the scale" in capsys.readouterr().err
    train(asked(home, "old", steps=2), quiet=True)
    assert main([*words, "--route", "continuous"]) == 0


def test_a_run_keeps_the_autoencoder_it_began_with(home: Path, tmp_path: Path) -> None:
    """Resumed with another one, or with none, it is refused by name, also where changed data are accepted."""
    train(asked(home, "kept"), quiet=True)
    other = shutil.copytree(home / "ae", tmp_path / "moved")
    train(replace(asked(home, "kept", steps=5), autoencoder=str(other)), quiet=True)
    own = opened(home).autoencoder
    assert isinstance(own, ConvolutionalAutoencoder)
    config = AutoencodeConfig(out=str(tmp_path / "other"), steps=2, batch=8, threads=1, precision="fp32", network=own.config, seed=1)
    train_autoencoder(config, data=data(home), quiet=True)
    for given, words in ((str(tmp_path / "other"), "is not the one"), (None, "begun with --autoencoder")):
        with pytest.raises(ConfigError, match=words):
            train(replace(asked(home, "kept", steps=6, accept_data_change=True), autoencoder=given), quiet=True)


def test_large_latents_are_decoded_in_tiles(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where that is asked for: what comes out is the tiles', near the whole; a model without latents has nothing to decode."""
    through, unit = opened(home), Codec(shift=(0.0,) * 2, scale=(1.0,) * 2)
    whole = LatentCodec.through(through.autoencoder, through.codec, unit)
    z = torch.randn(2, 2, 8, 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        by_hand = through.codec.decode(tiled(through.autoencoder.decode, z, 8))
    found = replace(whole, tile=8).decode(z)
    assert found.shape == (2, 3, 16, 40) and (found.int() - by_hand.int()).abs().max() <= 1
    assert torch.equal(replace(whole, tile=20).decode(z), whole.decode(z)) and not torch.equal(found, whole.decode(z))
    assert (found.float() - whole.decode(z).float()).abs().mean() < 16
    train(settings(tmp_path / "plain"), data=table(), quiet=True)
    assert main(["sample", str(tmp_path / "plain"), "--n", "2", "--steps", "2", "--tile", "8"]) == 2
    assert "tile: got 8, but this model draws samples as they are" in capsys.readouterr().err


def test_what_cannot_be_encoded_is_refused(home: Path, tmp_path: Path) -> None:
    """Other shapes, image conditions, no autoencoder there, a run in its place."""
    through = opened(home)
    x = np.zeros((20, 3, 8, 8), np.uint8)
    field = from_arrays(x + np.arange(20, dtype=np.uint8)[:, None, None, None], {"image": np.zeros((20, 1, 8, 8), np.float32)})
    for given, words in (
        (from_arrays(x[:, :1] + np.arange(20, dtype=np.uint8)[:, None, None, None]), "takes samples of"),
        (field, "image condition"),
        (from_arrays(x + np.arange(20, dtype=np.uint8)[:, None, None, None], bins=(0, 31)), "levels 0 to 255"),
        (from_arrays((x + np.arange(20)[:, None, None, None]).astype(np.float32)), "float32"),
    ):
        with pytest.raises(ConfigError, match=words):
            in_latents(given, through, cache=tmp_path)
    for words in (["sample"], ["distill"], ["classifier"], ["evaluate"], ["tune"]):
        assert main([*words, str(home / "ae")]) == 4
    with pytest.raises(CheckpointError, match="is an autoencoder, no model"):
        train(settings(home / "ae", network=NETWORK), data=data(home), quiet=True)
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(CheckpointError, match="there is no autoencoder"):
            train(replace(asked(home, "refused"), autoencoder=str(folder)), quiet=True)
    assert not (home / "refused").exists()
