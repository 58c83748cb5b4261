"""Runs that enlarge what a smaller run draws, and are sampled with it as one model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ddpm
from ddpm.cli import main
from ddpm.data import from_arrays
from ddpm.data.dataset import Dataset
from ddpm.data.fit import shrunk
from ddpm.denoiser import Eps, enlarged
from ddpm.distillation import Consistency, DistillConfig, distill
from ddpm.errors import ConfigError
from ddpm.guidance import ClassifierFree
from ddpm.networks import UNetConfig
from ddpm.training import TrainConfig, train
from ddpm.training.config import CascadeSettings
from small_runs import digests, settings

NETWORK = UNetConfig(channels=8, mults=(1,), blocks=1, attention=(), dropout=0.0)


def data(size: int, *, flip: bool = False) -> Dataset:
    """Pictures of two classes, a dark and a light one, at a size."""
    rng, classes = np.random.default_rng(0), np.arange(120) % 2
    raw = np.clip(60 + 120 * classes[:, None, None, None] + rng.normal(0, 20, (120, 1, 8, 8)), 0, 255).astype(np.uint8)
    return from_arrays(raw if size == 8 else shrunk(raw, (size, size)), {"class": classes}, classes=("dark", "light"), name="x", flip=flip)


def asked(out: Path, base: Path | None = None, **changes: object) -> TrainConfig:
    """A run of a few steps, on a base where one is named."""
    given = {"network": NETWORK, "batch": 8, "cascade": CascadeSettings(base=str(base) if base else None), **changes}
    return settings(out, **given)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data, a run at 4x4 and one at 8x8 on top of it."""
    home = tmp_path_factory.mktemp("cascade")
    for size in (4, 8):
        held = data(size)
        np.savez(home / f"x{size}.npz", x=held.samples[:], y=np.asarray(held.cond["class"]))
        train(asked(home / f"r{size}", home / "r4" if size == 8 else None), data=held, quiet=True)
    return home


def test_a_batch_carries_what_is_enlarged(home: Path, tmp_path: Path) -> None:
    """The mirrored sample's, with noise of the deviation that is told, up to base_noise; in a measurement without noise."""
    config = asked(tmp_path / "run", home / "r4", cascade=CascadeSettings(base=str(home / "r4"), base_noise=0.3, base_drawn=0.2))
    from ddpm.training.build import build_denoiser, measured
    from ddpm.training.cascade import load_base, with_low

    plain = data(8, flip=True)
    base = load_base(config.cascade)
    denoiser = build_denoiser(measured(config, plain.card), plain.card, base=base)
    dataset, rows = with_low(plain, denoiser), np.arange(40)
    raw, cond = dataset.batch(rows, np.random.default_rng(1))
    low = denoiser.codec.encode(enlarged(torch.from_numpy(shrunk(raw, (4, 4))), (1, 8, 8)))
    noise, told = torch.from_numpy(cond["low"]) - low, torch.from_numpy(cond["low_noise"])
    assert 0.0 <= told.min() and 0.2 < told.max() <= 0.3 and not np.array_equal(raw, plain.batch(rows)[0])
    assert 0.9 < (noise.flatten(1).std(1) / told)[told > 0.02].mean() < 1.1
    raw, cond = dataset.batch(rows)
    assert np.array_equal(cond["low"], denoiser.codec.encode(enlarged(torch.from_numpy(shrunk(raw, (4, 4))), (1, 8, 8))).numpy())
    assert not cond["low_noise"].any()


def test_one_model(home: Path) -> None:
    """The run holds its base: neither trained nor counted, drawn first, and of the class that is asked for."""
    model, small = ddpm.load(home / "r8"), ddpm.load(home / "r4")
    assert model.base is not None and model.base.shape == (1, 4, 4) and model.data_shape == (1, 8, 8)
    for name, tensor in small.state_dict().items():
        assert torch.equal(model.base.denoiser.state_dict()[name], tensor)
    trained = {name for name, _ in model.named_parameters()}
    assert trained == {f"network.{name}" for name, _ in model.network.named_parameters()}
    cond = {"class": torch.tensor([0, 1, 1])}
    drawn = ddpm.sample(model, 3, steps=4, cond=cond)
    assert drawn.dtype == torch.uint8 and drawn.shape == (3, 1, 8, 8)
    seen: list[object] = []
    model.base.denoiser.register_forward_pre_hook(lambda module, args: seen.append(args[2]["class"].tolist()))
    assert torch.equal(ddpm.sample(model, 3, steps=4, cond=cond), drawn) and seen == [[0, 1, 1]] * 4
    with pytest.raises(ConfigError, match="low"):
        model(torch.zeros(1, 1, 8, 8), model.process.at(0.5))


def test_guidance_guides_both_stages(home: Path) -> None:
    guided = ClassifierFree(ddpm.load(home / "r8"), 2.0)
    assert guided.base is not None and isinstance(guided.base.denoiser, ClassifierFree) and guided.base.denoiser.scale == 2.0
    assert ddpm.sample(guided, 2, steps=2, cond={"class": torch.tensor([0, 1])}).shape == (2, 1, 8, 8)


def test_it_resumes_to_the_same_bits_wherever_its_base_went(home: Path, tmp_path: Path) -> None:
    """Half a run, then the other half, equal the whole."""
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train(asked(whole, home / "r4"), data=data(8), quiet=True)
    train(asked(halves, home / "r4", steps=2), data=data(8), quiet=True)
    train(asked(halves, home / "r4"), data=data(8), quiet=True)
    same, other = digests(whole), digests(halves)
    assert {name: digest for name, digest in same.items() if "steps" not in name} == {
        name: other[name] for name in same if "steps" not in name
    }


def test_a_run_keeps_the_base_it_began_with(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the folder named now holds, which is said; resumed without one it is refused."""
    run, other = tmp_path / "run", tmp_path / "other"
    train(asked(run, home / "r4", steps=2), data=data(8), quiet=True)
    train(asked(other, seed=1, parameterization=Eps()), data=data(4), quiet=True)
    capsys.readouterr()
    train(asked(run, other, steps=4), data=data(8))
    assert "the run keeps the base it has" in capsys.readouterr().err
    kept, small = ddpm.load(run).base, ddpm.load(home / "r4")
    assert kept is not None and kept.denoiser.parameterization == small.parameterization
    assert all(torch.equal(kept.denoiser.state_dict()[name], tensor) for name, tensor in small.state_dict().items())
    cond = {"class": torch.tensor([0, 1])}
    assert torch.equal(ddpm.sample(kept.denoiser, 2, steps=3, cond=cond), ddpm.sample(small, 2, steps=3, cond=cond))
    train(asked(run, home / "r4", steps=5), data=data(8))
    assert "keeps the base" not in capsys.readouterr().err
    with pytest.raises(ConfigError, match="begun with --base"):
        train(asked(run, steps=6), data=data(8), quiet=True)


def test_three_stages_and_a_student(home: Path, tmp_path: Path) -> None:
    """A stage on a stage, and a stage distilled to one step, draw samples of the last shape."""
    rng = np.random.default_rng(2)
    large = from_arrays(
        rng.integers(0, 256, (60, 1, 16, 16)).astype(np.uint8), {"class": np.arange(60) % 2}, classes=("dark", "light"), name="x16"
    )
    train(asked(tmp_path / "r16", home / "r8"), data=large, quiet=True)
    model = ddpm.load(tmp_path / "r16")
    assert model.base is not None and model.base.denoiser.base is not None
    assert ddpm.sample(model, 2, steps=2, cond={"class": torch.tensor([0, 1])}).shape == (2, 1, 16, 16)
    student = distill(
        home / "r8", DistillConfig(method=Consistency(), updates=2, out=str(tmp_path / "student"), preview=0), data=data(8), quiet=True
    )
    assert ddpm.sample(student.denoiser, 2, cond={"class": torch.tensor([0, 1])}).shape == (2, 1, 8, 8)


def test_commands(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """sample and evaluate as with any model; likelihood, inpaint and interpolate say why not."""
    run, large = str(home / "r8"), str(home / "x8.npz")
    assert main(["sample", run, "--n", "3", "--steps", "2", "--out", str(tmp_path / "s")]) == 0
    assert (
        main(
            [
                "evaluate",
                run,
                "--data",
                large,
                "--n",
                "40",
                "--steps",
                "2",
                "--sweep",
                "0",
                "--extractor",
                "raw",
                "--out",
                str(tmp_path / "e"),
            ]
        )
        == 0
    )
    capsys.readouterr()
    picture = str(home / "x8.npz:0")
    for words in (["likelihood", run, "--data", large], ["interpolate", run, picture, picture], ["sample", run, "--from", picture]):
        assert main(words) == 2 and "smaller model" in capsys.readouterr().err


def test_what_cannot_be_a_base(home: Path, tmp_path: Path) -> None:
    """Another number of channels, a size that is no fraction, other units, a folder that is no run: each says so before the first step."""
    base = home / "r4"
    rng = np.random.default_rng(0)
    for shape, dtype, said in (
        ((3, 8, 8), np.uint8, "channels"),
        ((1, 6, 6), np.uint8, "whole multiples"),
        ((1, 8, 8), np.float32, "float32"),
    ):
        other = from_arrays(rng.integers(0, 256, (40, *shape)).astype(dtype), name="other")
        with pytest.raises(ConfigError, match=said):
            train(asked(tmp_path / "no", base), data=other, quiet=True)
    with pytest.raises(ConfigError, match="base_noise"):
        train(asked(tmp_path / "no", cascade=CascadeSettings(base=str(base), base_noise=0.1, base_drawn=0.2)), data=data(8), quiet=True)
    named = replace(data(8), card=replace(data(8).card, classes=("light", "dark")))
    with pytest.raises(ConfigError, match="classes are dark, light; those of x are light, dark"):
        train(asked(tmp_path / "no", base), data=named, quiet=True)
    with pytest.raises(ConfigError, match="there is none"):
        CascadeSettings(base_noise=0.2)
    with pytest.raises(ConfigError, match="autoencoder"):
        asked(tmp_path / "no", base, autoencoder="somewhere")
    assert (
        main(["train", "--data", str(home / "x8.npz"), "--base", str(tmp_path / "nothing"), "--out", str(tmp_path / "no"), "--batch", "8"])
        == 4
    )
