"""Distillation of runs: the student is a run like any other, knows how it is walked, and survives what other runs survive."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ddpm
from ddpm import sampling
from ddpm.cli import main
from ddpm.cli.distill import beside, calls, ways
from ddpm.data import Dataset
from ddpm.denoiser import X0, Index, PosteriorMean
from ddpm.distillation import (
    METHODS,
    Consistency,
    Consistent,
    ContinuousConsistency,
    Distillation,
    DistillConfig,
    Guidance,
    Matching,
    Progressive,
    distill,
    student_folder,
)
from ddpm.errors import ConfigError, DataError
from ddpm.evaluation.extractors import Raw
from ddpm.guidance import Told
from ddpm.metrics import Estimate
from ddpm.objective import Hybrid
from ddpm.process import Cosine, Straight
from ddpm.sampling import DDIM, Ancestral
from ddpm.sampling import Consistency as ConsistencySampler
from ddpm.training import Finished, Trainer
from ddpm.training.checkpoints.checkpoint import Checkpoint, newest
from ddpm.training.config import OptimizerSettings
from ddpm.training.state import load_with_card
from ddpm.training.tricks import Tricks
from small_runs import SMALL_UNET, digests, metrics, pictures, quietly, settings, table

KINDS: list[Distillation] = [
    Progressive(), Guidance(), Consistency(), Consistency(source="data"), ContinuousConsistency(), ContinuousConsistency(source="data"),
    Matching(steps=2), Consistency(steps=2), ContinuousConsistency(source="data", steps=2, finite=0.5),
]  # fmt: skip
every = pytest.mark.parametrize(
    "method", KINDS, ids=lambda method: f"{type(method).__name__}-{getattr(method, 'source', '')}-{getattr(method, 'steps', '')}"
)


@pytest.fixture(scope="module")
def data() -> Dataset:
    """Points of two classes."""
    return table(64, classes=2)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, data: Dataset) -> Path:
    """A run of a few steps."""
    out = tmp_path_factory.mktemp("teachers") / "table"
    quietly(settings(out, steps=8, cond_dropout=0.3), data=data)
    return out


def asked(method: Distillation, out: Path, **changes: Any) -> DistillConfig:
    """A distillation of a few updates, of progressive to two steps."""
    steps, rounds = (2, 2) if isinstance(method, Progressive) else (None, None)
    base = DistillConfig(
        method=method, steps=steps, rounds=rounds, updates=6, batch=8, out=str(out), preview=0, threads=1, checkpoint_every=3
    )
    return replace(base, **changes)


def quiet(teacher: Path, config: DistillConfig, data: Dataset) -> Finished:
    """`distill` without output."""
    return distill(teacher, config, data=data, quiet=True)


def test_every_method_is_tried_here() -> None:
    assert {type(method) for method in KINDS} == set(METHODS)


@every
def test_a_student_is_a_run_that_knows_its_walk(method: Distillation, teacher: Path, data: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "student"
    finished = quiet(teacher, asked(method, out), data)
    assert finished.code == 0 and finished.run == out
    student, document = load_with_card(out)
    assert student.student is not None and document["student"]["meaning"] == student.meaning
    several = isinstance(method, Consistent) and method.steps > 1
    assert {"Progressive": "step", "Guidance": "mean"}.get(type(method).__name__, "step" if several else "map") == student.meaning
    assert len(student.times) == (2 if several or isinstance(method, Progressive | Matching) else 0)
    cond = {"class": torch.tensor([0, 1, 1])}
    drawn = ddpm.sample(student, 3, cond=cond)
    assert drawn.isfinite().all() and drawn.shape == (3, 3)
    held = [line for line in metrics(out) if "held_out_loss" in line]
    assert held and ("gaussian_loss" in held[-1]) == (student.meaning == "mean")
    before = ddpm.load(teacher)
    assert any(not torch.equal(a, b) for a, b in zip(student.parameters(), before.parameters(), strict=False)), "it has learned something"


@every
def test_killed_and_resumed_it_is_the_same_to_the_last_bit(
    method: Distillation, teacher: Path, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(teacher, asked(method, tmp_path / "straight"), data)
    step = Trainer.step

    def killed(self: Trainer, say: Any) -> Any:
        if self.state.step == 4 and "rounds" not in str(self.run):
            raise SystemExit("killed")
        return step(self, say)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", killed)
        with pytest.raises(SystemExit):
            quiet(teacher, asked(method, tmp_path / "killed"), data)
    quiet(teacher, asked(method, tmp_path / "killed"), data)
    found, expected = digests(tmp_path / "killed"), digests(tmp_path / "straight")
    assert found == expected
    assert ("loss/fake.network.head.weight" in found) == isinstance(method, Matching)


def test_continuous_time_slows_the_clock_down(teacher: Path, data: Dataset, tmp_path: Path) -> None:
    quiet(teacher, asked(ContinuousConsistency(clock=5.0), tmp_path / "student", updates=1), data)
    assert ddpm.load(tmp_path / "student").clock == Index(scale=5.0) and ddpm.load(teacher).clock == Index()


@pytest.mark.parametrize("method", [Consistency(), ContinuousConsistency(), Matching()])
def test_the_steps_asked_for_are_the_methods_own(method: Distillation, teacher: Path, data: Dataset, tmp_path: Path) -> None:
    """`--steps 2` is `--method.steps 2`."""
    student = quiet(teacher, asked(method, tmp_path / "s", updates=1, steps=2), data).denoiser
    assert len(student.times) == 2 and student.meaning == ("map" if isinstance(method, Matching) else "step")


def test_progressive_runs_a_round_after_another_and_not_twice(teacher: Path, data: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "student"
    quiet(teacher, asked(Progressive(), out), data)
    rounds = sorted(path.name for path in (out / "rounds").iterdir())
    assert rounds == ["0004-steps", "asked.json"]
    first = ddpm.load(out / "rounds" / "0004-steps")
    assert ddpm.load(out).times == first.times[::2]
    written = (out / "rounds" / "0004-steps" / "latest").stat().st_mtime_ns
    quiet(teacher, asked(Progressive(), out), data)
    assert (out / "rounds" / "0004-steps" / "latest").stat().st_mtime_ns == written
    for other in ({"rounds": 3}, {"updates": 9}):
        with pytest.raises(ConfigError, match="next one's teacher"):
            quiet(teacher, asked(Progressive(), out, **other), data)


def test_a_single_round_is_made_longer_by_the_flag_that_is_named(
    teacher: Path, data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "student"
    for updates in (6, 6, 9):
        distill(teacher, asked(Progressive(), out, rounds=1, updates=updates), data=data)
    assert "has 6 steps already; a larger --updates continues it" in capsys.readouterr().err
    saved = newest(out)
    assert saved is not None and saved.step == 9


def test_a_method_by_itself_is_no_config(teacher: Path) -> None:
    with pytest.raises(ConfigError, match="goes into DistillConfig"):
        distill(teacher, Consistency())  # pyright: ignore[reportArgumentType]


def test_pictures_are_distilled_by_every_method(tmp_path: Path) -> None:
    data = pictures(3, 8, 8)
    quietly(settings(tmp_path / "teacher", network=SMALL_UNET, steps=2), data=data)
    for method in KINDS:
        if not isinstance(method, Guidance):
            out = tmp_path / f"{type(method).__name__}-{getattr(method, 'source', '')}-{getattr(method, 'steps', '')}"
            assert quiet(tmp_path / "teacher", asked(method, out, updates=2, checkpoint_every=2), data).code == 0
            assert ddpm.sample(ddpm.load(out), 2).shape == (2, 3, 8, 8)


@pytest.mark.parametrize(("sampler", "kind", "said"), [
    (DDIM(), Consistency(), "where a trajectory ends"),
    (Ancestral(), Progressive(), "from each of its own instants"),
    (ConsistencySampler(), Progressive(), "from each of its own instants"),
    (DDIM(eta=0.5), Progressive(), "from each of its own instants"),
])  # fmt: skip
def test_a_sampler_that_makes_no_sense_is_refused_and_why(
    sampler: Any, kind: Distillation, said: str, teacher: Path, data: Dataset, tmp_path: Path
) -> None:
    quiet(teacher, asked(kind, tmp_path / "student", updates=1), data)
    with pytest.raises(ConfigError, match=said):
        ddpm.sample(ddpm.load(tmp_path / "student"), 2, sampler=sampler, cond={"class": torch.tensor([0, 1])})


def test_the_program_fills_in_what_it_knows_and_has_no_flag_for_it(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Teacher, instants and the like of a method; a scale of guidance is settled when a student is made."""
    assert main(["distill", str(teacher), "--help-all"]) == 0
    shown = capsys.readouterr().out
    assert "--method.guidance" in shown and "--method.begin" in shown
    assert not any(f"--method.{name}" in shown for name in ("teacher", "fine", "told", "variance"))


def test_guidance_of_a_student_is_settled_when_it_is_made(
    teacher: Path, data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet(teacher, asked(Consistency(), tmp_path / "student", updates=1), data)
    assert main(["sample", str(tmp_path / "student"), "--n", "2", "--classes", "0", "--guidance", "2"]) == 2
    assert "settled when it is made" in capsys.readouterr().err


def test_what_cannot_be_distilled_is_refused(teacher: Path, data: Dataset, tmp_path: Path) -> None:
    quiet(teacher, asked(Consistency(), tmp_path / "student", updates=1), data)
    with pytest.raises(ConfigError, match="itself a student"):
        quiet(tmp_path / "student", asked(Consistency(), tmp_path / "again"), data)
    plain = table(40)
    quietly(settings(tmp_path / "plain", steps=1), data=plain)
    with pytest.raises(ConfigError, match="without conditions"):
        quiet(tmp_path / "plain", asked(Guidance(), tmp_path / "no"), plain)
    quietly(settings(tmp_path / "straight", steps=1, schedule=Straight()), data=plain)
    with pytest.raises(ConfigError, match="alpha"):
        quiet(tmp_path / "straight", asked(ContinuousConsistency(), tmp_path / "no2"), plain)
    with pytest.raises(ConfigError, match="this chain has 1000"):
        quiet(teacher, asked(Progressive(), tmp_path / "no3", steps=512, rounds=1), data)
    assert not any((tmp_path / name).exists() for name in ("no", "no2", "no3"))
    with pytest.raises(ConfigError, match="float32 does not resolve"):
        Consistency(stages=10, first=9)
    with pytest.raises(ConfigError, match="leave one of them out"):
        DistillConfig(method=Matching(steps=3), steps=2)


@pytest.mark.parametrize(("how", "method", "said"), [
    ({"parameterization": X0()}, Consistency(), "wants a prediction of x0"),
    ({"parameterization": PosteriorMean()}, Matching(), "wants a prediction of x0"),
    ({"schedule": Cosine(T=50)}, Consistency(), "has only 50; use progressive, or guidance"),
    ({"cond_dropout": 0.0}, Guidance(), "cond_dropout 0"),
    ({"cond_dropout": 0.0}, Progressive(guidance=2.0), "cond_dropout 0"),
    ({}, Consistency(teacher="x"), "filled in from the teacher"),
    ({}, Progressive(fine=(1.0, 0.5)), "filled in from the teacher"),
])  # fmt: skip
def test_teachers_that_do_not_suit_a_method_are_refused(
    how: dict[str, Any], method: Distillation, said: str, data: Dataset, tmp_path: Path
) -> None:
    quietly(settings(tmp_path / "t", steps=1, **how), data=data)
    with pytest.raises(ConfigError, match=said):
        quiet(tmp_path / "t", asked(method, tmp_path / "no"), data)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("method", [Consistency(), ContinuousConsistency(), Matching(), Progressive(), Guidance()])
def test_a_student_begins_as_its_teacher(method: Distillation, teacher: Path, data: Dataset, tmp_path: Path) -> None:
    still = OptimizerSettings(lr=1e-12, warmup=0)
    student = quiet(teacher, asked(method, tmp_path / "s", updates=1, optimizer=still), data).denoiser
    wanted = dict(ddpm.load(teacher).named_parameters())
    found = {name: value for name, value in student.named_parameters() if name in wanted}
    assert len(found) == len(wanted)
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], atol=1e-6, rtol=0.0, msg=lambda text, name=name: f"{name}: {text}")


def test_student_and_teacher_are_each_drawn_and_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row is of the model, the steps and the solver it names, and counts their calls."""
    monkeypatch.chdir(tmp_path)
    small = ["--network.channels", "8", "--network.mults", "1,2", "--network.blocks", "1"]
    assert main(["train", "--steps", "2", "--out", "t", "--preview", "0", "--track", "none", *small]) == 0
    drawn: list[tuple[str, Any]] = []
    plain = sampling.sample

    def watched(one: Any, n: int, **how: Any) -> torch.Tensor:
        drawn.append((one.meaning, how["steps"]))
        return plain(one, n, **how)

    monkeypatch.setattr(sampling, "sample", watched)
    monkeypatch.setattr("ddpm.evaluation.extractors.Learned.of", lambda data, **how: Raw(data.card))
    words = ["--method", "progressive", "--steps", "2", "--rounds", "1", "--updates", "2", "--preview", "0", "--score", "40"]
    assert main(["distill", "t", *words]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("student", "teacher", "real"))]
    assert [line.split("  ")[0] for line in lines] == [
        "student, 2", "teacher, DDIM, 2", "teacher, dpm++2m, 2", "teacher, DDIM, 50", "real data, unseen"
    ]  # fmt: skip
    assert [int(re.findall(r"  (\d+)  ", line)[0]) for line in lines[:-1]] == [2, 2, 2, 50]
    assert drawn == [("step", 2), ("mean", 2), ("mean", 2), ("mean", None)]


def test_corrected_and_uncorrected_figures_do_not_stand_together() -> None:
    corrected, raw = Estimate(1.0, 0.5, 1.5, 2.0, 500), Estimate(3.0, math.nan, math.nan, 3.0, 100)
    assert beside(corrected, corrected) == str(corrected) and beside(raw, raw) == str(raw)
    assert beside(raw, corrected) == beside(corrected, raw) == "too few are held out"


def test_guidance_can_be_distilled_into_a_student_of_few_steps(teacher: Path, data: Dataset, tmp_path: Path) -> None:
    """Guidance first, then steps: the second student is told a scale too."""
    quick = OptimizerSettings(lr=0.02, warmup=0)
    quiet(teacher, asked(Guidance(), tmp_path / "guided", optimizer=quick), data)
    quiet(tmp_path / "guided", asked(Progressive(), tmp_path / "few", optimizer=quick), data)
    few = ddpm.load(tmp_path / "few")
    assert few.guided and few.meaning == "step"

    cond = {"class": torch.tensor([0, 1])}
    one, other = (ddpm.sample(Told(few, scale), 2, cond=cond) for scale in (1.0, 4.0))
    assert not torch.equal(one, other)


def test_guidance_is_applied_in_the_first_round_alone(
    teacher: Path, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second round's teacher has it already."""
    from ddpm.distillation import progressive

    seen: list[float] = []
    plain = progressive.ProgressiveLoss.forward

    def watched(loss: Any, *inputs: Any) -> torch.Tensor:
        seen.append(loss.settings.guidance)
        return plain(loss, *inputs)

    monkeypatch.setattr(progressive.ProgressiveLoss, "forward", watched)
    quiet(teacher, asked(Progressive(guidance=2.0), tmp_path / "few", updates=2), data)
    assert 2.0 in seen and seen.index(1.0) > 0 and set(seen[seen.index(1.0) :]) == {1.0}
    assert ddpm.load(tmp_path / "few").conditions and load_with_card(tmp_path / "few")[1]["cond_dropout"] == 0.3


def test_only_scales_that_were_learned_are_scored(teacher: Path, data: Dataset, tmp_path: Path) -> None:
    """And the teacher's two calls a step are counted as two."""
    student = quiet(teacher, asked(Guidance(most=2.0), tmp_path / "guided", updates=2), data).denoiser
    found = {name: calls(one, sampler, steps, grid) for name, one, steps, sampler, grid in ways(ddpm.load(teacher), student, 4)}
    assert found == {
        "student, guidance 1": 50,
        "teacher, guidance 1": 50,
        "student, guidance 2": 50,
        "student, guidance 2, 100": 100,
        "teacher, guidance 2": 100,
    }


def test_the_folder_is_named_by_what_was_asked() -> None:
    assert student_folder("runs/digits", DistillConfig(method=Progressive(), steps=2)).as_posix() == "runs/digits-progressive2"
    assert student_folder("runs/digits", DistillConfig(method=ContinuousConsistency())).as_posix() == "runs/digits-continuous-consistency"
    assert student_folder("runs/digits", DistillConfig(method=Consistency(), steps=4)).as_posix() == "runs/digits-consistency4"
    assert student_folder("runs/digits", DistillConfig(method=Consistency(), steps=1)).as_posix() == "runs/digits-consistency"
    assert student_folder("runs/digits", DistillConfig(method=Matching(steps=2))).as_posix() == "runs/digits-matching2"
    assert student_folder("runs/digits", DistillConfig(out="there")).as_posix() == "there"


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--network.channels", "8", "--network.mults", "1,2", "--network.blocks", "1"]
    assert main(["train", "--steps", "2", "--out", "t", "--preview", "0", "--track", "none", *small]) == 0
    assert main(["distill", "t", "--method", "progressive", "--steps", "2", "--rounds", "1", "--updates", "2", "--score", "0"]) == 0
    assert "next: ddpm sample t-progressive2" in capsys.readouterr().out
    compared: list[Any] = []
    monkeypatch.setattr("ddpm.cli.distill.compare", lambda *given: compared.append(given))
    assert main(["distill", "t", "--method", "progressive", "--steps", "2", "--rounds", "1", "--updates", "2"]) == 0
    assert compared[0][0] == Path("t-progressive2/teacher") and compared[0][3] == 1000
    capsys.readouterr()
    for extra in ([], ["--sampler", "auto"], ["--steps", "2"]):
        assert main(["sample", "t-progressive2", "--n", "4", *extra]) == 0
        assert "DDIM, 2 steps" in capsys.readouterr().out
    assert main(["sample", "t-progressive2", "--n", "4", "--steps", "3"]) == 2
    assert "its own 2" in capsys.readouterr().err
    assert main(["sample", "t", "--n", "4", "--sampler", "consistency"]) == 2
    assert main(["distill", "t", "--score", "5"]) == 2
    assert main(["distill", "nowhere"]) == 4


def test_only_the_teachers_own_data_are_distilled_on(teacher: Path, data: Dataset, tmp_path: Path) -> None:
    """Data that came from Python are not those of the settings, which would be the bundled digits."""
    with pytest.raises(DataError):
        distill(teacher, asked(Consistency(), tmp_path / "student"), quiet=True)
    with pytest.raises(DataError):
        quiet(teacher, asked(Consistency(), tmp_path / "student"), pictures(1, 8, 8))
    assert not (tmp_path / "student").exists()


def test_teachers_that_hear_themselves(data: Dataset, tmp_path: Path) -> None:
    quietly(settings(tmp_path / "t", steps=2, tricks=Tricks(self_condition=True)), data=data)
    for method in (Matching(), ContinuousConsistency(), Consistency(), Progressive()):
        out = tmp_path / type(method).__name__
        assert quiet(tmp_path / "t", asked(method, out), data).code == 0
        assert ddpm.sample(ddpm.load(out), 2, cond={"class": torch.tensor([0, 1])}).isfinite().all()


def test_a_variance_that_is_not_trained_is_not_said(data: Dataset, tmp_path: Path) -> None:
    quietly(settings(tmp_path / "t", steps=2, loss=Hybrid(), cond_dropout=0.3), data=data)
    quiet(tmp_path / "t", asked(Guidance(), tmp_path / "s"), data)
    with pytest.raises(ConfigError, match="predicts none"):
        ddpm.sample(ddpm.load(tmp_path / "s"), 2, sampler=Ancestral(variance="learned"), cond={"class": torch.tensor([0, 1])})


def test_scales_of_guidance_that_were_not_learned_are_refused(teacher: Path, data: Dataset, tmp_path: Path) -> None:
    quiet(teacher, asked(Guidance(most=3.0), tmp_path / "g"), data)
    quiet(tmp_path / "g", asked(Progressive(), tmp_path / "p"), data)
    for run in ("g", "p"):
        Told(ddpm.load(tmp_path / run), 3.0)
        for scale in (0.5, 3.1, float("nan")):
            with pytest.raises(ConfigError, match="from 1 to 3"):
                Told(ddpm.load(tmp_path / run), scale)
    with pytest.raises(ConfigError, match="only progressive"):
        quiet(tmp_path / "g", asked(Consistency(), tmp_path / "no"), data)


def test_the_loss_moves_on_with_the_run(teacher: Path, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gaps: list[float] = []
    step = Trainer.step

    def watched(self: Trainer, say: Any) -> Any:
        out = step(self, say)
        gaps.append(self.loss.gap)  # type: ignore[arg-type]
        return out

    monkeypatch.setattr(Trainer, "step", watched)
    quiet(teacher, asked(Consistency(stages=3), tmp_path / "s"), data)
    assert gaps == [0.5, 0.5, 0.25, 0.25, 0.125, 0.125]


def test_settings_without_effect_are_refused() -> None:
    makers: list[Any] = [
        lambda: Guidance(guidance=2.0),
        lambda: Consistency(source="data", guidance=2.0),
        lambda: ContinuousConsistency(source="data", guidance=2.0),
        lambda: Matching(low=0.9, high=0.1),
        lambda: DistillConfig(method=Matching(), rounds=2),
        lambda: DistillConfig(method=Guidance(), steps=4),
    ]
    for make in makers:
        with pytest.raises(ConfigError):
            make()


def test_a_student_from_before_a_setting_of_its_method_resumes(
    teacher: Path, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(teacher, asked(Consistency(), tmp_path / "s", updates=2), data)
    plain = Checkpoint.document

    def older(self: Checkpoint, name: str) -> Any:
        found = plain(self, name)
        if name == "state" and "steps" in found["config"]["loss"]:
            del found["config"]["loss"]["steps"]
        return found

    monkeypatch.setattr(Checkpoint, "document", older)
    assert quiet(teacher, asked(Consistency(), tmp_path / "s", updates=4), data).code == 0
    with pytest.raises(ConfigError, match="another model"):
        quiet(teacher, asked(Consistency(steps=2), tmp_path / "s", updates=6), data)
