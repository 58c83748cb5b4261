"""What a student is distilled from: a copy in its own folder, whatever becomes of the teacher's."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ddpm
from ddpm.data import Dataset, from_arrays
from ddpm.denoiser import LatentCodec
from ddpm.distillation import Consistency, Distillation, DistillConfig, Guidance, Matching, Progressive, distill, kept_teacher
from ddpm.errors import CheckpointError, ConfigError, DataError
from ddpm.networks import AutoencoderConfig, MLPConfig, UNetConfig
from ddpm.training import Finished, Trainer, origin, train
from ddpm.training.autoencoder import load_autoencoder, train_autoencoder
from ddpm.training.averaging.weights import save_chosen
from ddpm.training.checkpoints import checkpoint
from ddpm.training.config import AutoencodeConfig, CascadeSettings
from ddpm.training.latents import in_latents
from ddpm.training.state import load_with_card, open_run
from small_runs import digests, held, pictures, quietly, settings, table

UNET = UNetConfig(channels=8, mults=(1,), blocks=1, attention=(), dropout=0.0)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A run of a few steps."""
    quietly(settings(tmp_path / "t", steps=2, checkpoint_every=2, cond_dropout=0.3), data=points())
    return tmp_path / "t"


def points(seed: int = 0) -> Dataset:
    """Of two classes."""
    return table(64, classes=2, seed=seed)


def asked(out: Path, method: Distillation | None = None, **changes: Any) -> DistillConfig:
    """A distillation of a few updates."""
    method = method or Consistency()
    rounds = 2 if isinstance(method, Progressive) else None
    steps = None if isinstance(method, Guidance) else 2
    base = DistillConfig(method=method, steps=steps, rounds=rounds, updates=4, batch=8, out=str(out), preview=0, threads=1)
    return replace(base, **{"checkpoint_every": 2, **changes})


def quiet(teacher: Path, config: DistillConfig, data: Dataset | None = None) -> Finished:
    """`distill` without output, of points."""
    return distill(teacher, config, data=points() if data is None else data, quiet=True)


def stopped(teacher: Path, config: DistillConfig, monkeypatch: pytest.MonkeyPatch, data: Dataset | None = None) -> None:
    """The same, killed at step 3 of the student's own run."""
    step = Trainer.step

    def killed(self: Trainer, say: Any) -> Any:
        if self.state.step == 3 and "rounds" not in str(self.run):
            raise SystemExit("killed")
        return step(self, say)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", killed)
        with pytest.raises(SystemExit):
            quiet(teacher, config, data)


@pytest.mark.parametrize("method", [Consistency(), Matching(), Progressive()], ids=lambda method: type(method).__name__)
def test_training_the_teacher_further_changes_nothing(
    method: Distillation, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor choosing another average of it, nor that its step has been pruned, nor that both folders were moved."""
    quiet(teacher, asked(tmp_path / "straight", method))
    stopped(teacher, asked(tmp_path / "s", method), monkeypatch)
    saved = open_run(teacher)
    save_chosen(saved, 0.2, {name: 1.1 * value for name, value in ddpm.load(teacher).named_parameters()}, {}, print)
    quietly(settings(teacher, steps=8, checkpoint_every=2, cond_dropout=0.3), data=points())
    assert not saved.path.exists()
    shutil.move(teacher, tmp_path / "elsewhere")
    shutil.move(tmp_path / "s", tmp_path / "moved")
    capsys.readouterr()
    distill(tmp_path / "elsewhere", asked(tmp_path / "moved", method), data=points())
    assert "keeps the teacher it was begun with" in capsys.readouterr().err
    assert digests(tmp_path / "moved") == digests(tmp_path / "straight")


def test_a_student_goes_on_without_its_teacher(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its folder is gone; and the copy can be named in its place."""
    quiet(teacher, asked(tmp_path / "straight"))
    for out, named in (("s", teacher), ("again", tmp_path / "again" / "teacher")):
        stopped(teacher, asked(tmp_path / out), monkeypatch)
        shutil.move(teacher, tmp_path / "away")
        quiet(named, asked(tmp_path / out))
        shutil.move(tmp_path / "away", teacher)
        assert digests(tmp_path / out) == digests(tmp_path / "straight")


def test_the_copy_is_the_teacher_and_is_written_once(teacher: Path, tmp_path: Path) -> None:
    quiet(teacher, asked(tmp_path / "s"))
    copy = kept_teacher(teacher, asked(tmp_path / "s"))
    assert copy == tmp_path / "s" / "teacher"
    for name, tensor in ddpm.load(teacher).state_dict().items():
        assert torch.equal(tensor, ddpm.load(copy).state_dict()[name])
    assert open_run(copy).tensor_names == ("model",)  # no optimizer, no raw weights: what is asked, once
    written = (copy / "latest").stat().st_mtime_ns
    quiet(teacher, asked(tmp_path / "s", updates=6))
    assert (copy / "latest").stat().st_mtime_ns == written


def test_another_teacher_is_refused(teacher: Path, tmp_path: Path) -> None:
    """Also one of the same settings and data, which is another run. A copy that is gone cannot be replaced by what the folder has now."""
    quiet(teacher, asked(tmp_path / "s"))
    quietly(settings(tmp_path / "other", steps=2, cond_dropout=0.3, seed=1), data=points())
    with pytest.raises(ConfigError, match="begun with another run"):
        quiet(tmp_path / "other", asked(tmp_path / "s", updates=6))
    shutil.rmtree(tmp_path / "s" / "teacher")
    with pytest.raises(CheckpointError, match="no teacher/"):
        quiet(teacher, asked(tmp_path / "s", updates=6))


def test_what_is_no_student_is_left_alone(teacher: Path, tmp_path: Path) -> None:
    """The teacher, a run of another kind, and a folder in which the teacher itself lies where the copy would."""
    with pytest.raises(ConfigError, match="is the teacher itself"):
        quiet(teacher, asked(teacher))
    shutil.copytree(teacher, tmp_path / "other")
    with pytest.raises(CheckpointError, match="no teacher/"):
        quiet(teacher, asked(tmp_path / "other"))
    shutil.copytree(teacher, tmp_path / "runs" / "teacher")
    before = sorted(path.name for path in (tmp_path / "runs").rglob("*"))
    with pytest.raises(ConfigError, match="would be replaced"):
        quiet(tmp_path / "runs" / "teacher", asked(tmp_path / "runs"))
    assert sorted(path.name for path in (tmp_path / "runs").rglob("*")) == before and not (teacher / "teacher").exists()


def test_a_start_that_was_cut_short_takes_the_teacher_as_it_is_then(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has been learned of the copy before the first checkpoint."""
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", lambda *_: (_ for _ in ()).throw(SystemExit("killed")))
        with pytest.raises(SystemExit):
            quiet(teacher, asked(tmp_path / "s"))
    assert held(tmp_path / "s" / "teacher").step == 2
    quietly(settings(teacher, steps=4, cond_dropout=0.3), data=points())
    quiet(teacher, asked(tmp_path / "s"))
    quiet(teacher, asked(tmp_path / "straight"))
    assert [path.name for path in (tmp_path / "s" / "teacher").glob("step-*")] == ["step-0000004"]
    assert digests(tmp_path / "s") == digests(tmp_path / "straight")


def latent(home: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Pictures, and a run `t` in the latents of the autoencoder `ae`."""
    monkeypatch.setenv("DDPM_CACHE", str(home / "cache"))
    data = pictures(1, 8, 8)
    train_autoencoder(encoder(home), data=data, quiet=True)
    quietly(settings(home / "t", network=UNET, steps=2, autoencoder=str(home / "ae")), data=data)
    return data


def encoder(home: Path, **changes: Any) -> AutoencodeConfig:
    """A small one, of a few steps."""
    network = AutoencoderConfig(channels=8, mults=(1, 2), latent=2)
    return replace(AutoencodeConfig(out=str(home / "ae"), steps=2, batch=8, threads=1, precision="fp32", network=network), **changes)


@pytest.mark.parametrize("gone", [False, True], ids=["retrained", "gone"])
def test_the_student_decodes_by_its_teachers_autoencoder(gone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the folder named in the settings holds by now."""
    data = latent(tmp_path, monkeypatch)
    shutil.rmtree(tmp_path / "ae")
    if not gone:
        train_autoencoder(encoder(tmp_path, seed=7), data=data, quiet=True)
    student = quiet(tmp_path / "t", asked(tmp_path / "s"), data).denoiser
    teacher = ddpm.load(tmp_path / "t")
    assert isinstance(student.codec, LatentCodec) and isinstance(teacher.codec, LatentCodec) and student.autoencoder is not None
    assert teacher.autoencoder is not None and student.codec.latent == teacher.codec.latent
    for name, tensor in teacher.autoencoder.state_dict().items():
        assert torch.equal(student.autoencoder.state_dict()[name], tensor), name
    assert ddpm.sample(student, 2).shape == (2, 1, 8, 8)
    quiet(tmp_path / "t", asked(tmp_path / "s", updates=6), data)  # and goes on


def test_latents_of_another_autoencoder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = latent(tmp_path, monkeypatch)
    encoded = in_latents(data, load_autoencoder(tmp_path / "ae"))
    train_autoencoder(encoder(tmp_path, seed=7, out=str(tmp_path / "other")), data=data, quiet=True)
    assert in_latents(encoded, load_autoencoder(tmp_path / "ae")) is encoded
    with pytest.raises(ConfigError, match="encoded by another"):
        in_latents(encoded, load_autoencoder(tmp_path / "other"))


def test_the_student_stands_on_its_teachers_base(tmp_path: Path) -> None:
    """Whatever the folder of the base holds by now, or whether it is there."""
    large = pictures(1, 8, 8)
    small = from_arrays(np.asarray(large.samples)[:, :, ::2, ::2], name="small")
    for name, data, cascade in (("base", small, CascadeSettings()), ("t", large, CascadeSettings(base=str(tmp_path / "base")))):
        train(settings(tmp_path / name, network=UNET, steps=2, cascade=cascade), data=data, quiet=True)
    teacher = ddpm.load(tmp_path / "t")
    shutil.rmtree(tmp_path / "base")
    student = quiet(tmp_path / "t", asked(tmp_path / "s"), large).denoiser
    assert student.base is not None and teacher.base is not None and student.base_denoiser is not None
    assert student.base.about == teacher.base.about and student.base.noise == teacher.base.noise
    for name, tensor in teacher.state_dict().items():
        assert not name.startswith("base_denoiser") or torch.equal(student.state_dict()[name], tensor)
    quiet(tmp_path / "t", asked(tmp_path / "s", updates=6), large)


def test_the_student_lives_in_its_teachers_space(tmp_path: Path) -> None:
    """Which is not what the data ask for, where those of the teacher were changed on the way."""
    before, now = points(), from_arrays(3.0 * np.asarray(points(1).samples), dict(points(1).cond), name="table")
    quietly(settings(tmp_path / "t", steps=2), data=before)
    quietly(settings(tmp_path / "t", steps=4, accept_data_change=True), data=now)
    quiet(tmp_path / "t", asked(tmp_path / "s"), now)
    assert ddpm.load(tmp_path / "s").codec == ddpm.load(tmp_path / "t").codec
    assert load_with_card(tmp_path / "s")[1]["codec"] == load_with_card(tmp_path / "t")[1]["codec"]


def test_data_that_are_handed_in_are_the_teachers(teacher: Path, tmp_path: Path) -> None:
    """Unless another set is wanted; nothing is written before that is known, by progressive neither."""
    for method in (Consistency(), Progressive()):
        with pytest.raises(DataError, match="accept-data-change"):
            quiet(teacher, asked(tmp_path / "s", method), points(5))
        assert not (tmp_path / "s").exists()
    quiet(teacher, asked(tmp_path / "s", accept_data_change=True), points(5))
    assert ddpm.load(tmp_path / "s").codec == ddpm.load(teacher).codec


def test_settings_of_the_teacher_and_of_the_student(tmp_path: Path) -> None:
    """How a pass is made is the teacher's, how it is made harder the student's, unless that must answer without a condition."""
    data = pictures(1, 8, 8)
    network = replace(UNET, dropout=0.3)
    quietly(settings(tmp_path / "t", network=network, steps=1, accumulate=2, gradient_checkpointing=True), data=data)
    for out, dropout in (("s", 0.0), ("other", 0.2)):
        changes: dict[str, Any] = {"dropout": dropout} if dropout else {}
        quiet(tmp_path / "t", asked(tmp_path / out, **changes), data)
        config = held(tmp_path / out).document("state")["config"]
        assert config["accumulate"] == 2 and config["gradient_checkpointing"] and config["network"]["dropout"] == dropout
    quietly(settings(tmp_path / "c", steps=1, cond_dropout=0.3), data=points())
    methods: list[tuple[Distillation, float | None, float]] = [
        (Consistency(), None, 0.3),
        (Guidance(), None, 0.3),
        (Consistency(), 0.0, 0.0),
    ]
    for method, share, wanted in methods:
        out = tmp_path / f"{type(method).__name__}-{share}"
        quiet(tmp_path / "c", asked(out, method, cond_dropout=share))
        assert load_with_card(out)[1]["cond_dropout"] == wanted


def test_guidance_is_not_applied_twice(teacher: Path, tmp_path: Path) -> None:
    """A student of a guidance student is told its scale; another one on top of that is refused."""
    quiet(teacher, asked(tmp_path / "g", Guidance()))
    with pytest.raises(ConfigError, match="told its scale"):
        quiet(tmp_path / "g", asked(tmp_path / "p", Progressive(guidance=2.0)))
    assert not (tmp_path / "p").exists()


def test_a_teacher_that_drops_does_so_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A matching student of it, killed and resumed, is the same to the last bit: its second network drops nothing either."""
    quietly(settings(tmp_path / "t", network=MLPConfig(width=16, depth=1, dropout=0.5), steps=2), data=points())
    quiet(tmp_path / "t", asked(tmp_path / "straight", Matching(), updates=6))
    stopped(tmp_path / "t", asked(tmp_path / "s", Matching(), updates=6), monkeypatch)
    quiet(tmp_path / "t", asked(tmp_path / "s", Matching(), updates=6))
    assert digests(tmp_path / "s") == digests(tmp_path / "straight")


def test_a_copy_without_its_mark_is_a_run(teacher: Path, tmp_path: Path) -> None:
    """What says that a run is a copy is in its state.json."""
    quiet(teacher, asked(tmp_path / "s"))
    assert origin.ENTRY in open_run(tmp_path / "s" / "teacher").document("state")
    assert origin.ENTRY not in open_run(teacher).document("state")
    assert json.loads((tmp_path / "s" / "teacher" / "data_card.json").read_text()) == json.loads((teacher / "data_card.json").read_text())
    assert checkpoint.latest_name(tmp_path / "s" / "teacher") == "step-0000002"
