"""`ddpm evaluate` and `ddpm compare`: what they write, that they continue, and what they refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ddpm
from ddpm.cli import main
from ddpm.data import from_arrays, open_data
from ddpm.denoiser import NetworkDenoiser
from ddpm.errors import ConfigError
from ddpm.evaluation import EvaluateConfig, evaluate
from ddpm.evaluation.drawing import ready as drawing
from ddpm.evaluation.drawing.ready import How
from ddpm.evaluation.extractors import Raw
from ddpm.evaluation.reference import foreign_statistics
from ddpm.evaluation.report import Evaluator, Point, curves
from ddpm.evaluation.report.charts import ticks
from ddpm.evaluation.report.content import evenly
from ddpm.evaluation.scoring import mixed
from ddpm.likelihood import continuous
from ddpm.metrics import Estimate
from ddpm.training import OptimizerSettings
from ddpm.training.classifier import run_data
from ddpm.training.held_out import held_out_loss
from ddpm.training.state import open_run
from small_runs import SMALL_UNET, quietly, settings

WORDS = ["--n", "80", "--steps", "3", "--batch", "30", "--sweep", "40", "--nfe-curve", "1,2", "--likelihood", "4", "--extractor", "raw"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two short runs on the digits, in large steps, so that conditions and averages make a difference."""
    home, fast = tmp_path_factory.mktemp("evaluated"), OptimizerSettings(lr=1e-2, warmup=0)
    for seed in (0, 1):
        asked = settings(home / str(seed), network=SMALL_UNET, seed=seed, steps=6, conditional=True, ema=(0.05, 0.1), optimizer=fast)
        quietly(asked)
    return str(home / "0"), str(home / "1")


@pytest.fixture(scope="module")
def report(runs: tuple[str, str]) -> Path:
    assert main(["evaluate", runs[0], *WORDS, "--guidance-curve", "1,2"]) == 0
    return Path(runs[0]) / "report"


def test_a_report_holds_what_it_should(report: Path) -> None:
    content = json.loads((report / "report.json").read_text())
    plain = {"sliced_wasserstein", "energy", "channel_values", "spectrum"}
    assert {"frechet", "kernel", "precision", "recall", "density", "coverage"} | plain <= set(content["scores"])
    assert set(content["real"]) >= {"frechet", "kernel", "sliced_wasserstein"} and content["scores"]["memorisation"]["found"] is False
    for row in ("scores", "real"):
        one = content[row]["frechet"]
        assert one["low"] is None and one["value"] == one["raw"]  # 80 and 125 samples of 64 numbers are too few for an interval
        assert content[row]["kernel"]["low"] < content[row]["kernel"]["value"] < content[row]["kernel"]["high"]
        assert content[row]["frechet_alike"]["samples"] == 80 and content[row]["recall"]["low"] <= content[row]["recall"]["value"]
    assert content["real"]["frechet_alike"]["high"] < content["scores"]["frechet_alike"]["low"]  # six steps of training are no match
    assert [point["at"] for point in content["sweeps"]["nfe"]] == [1.0, 2.0]
    assert [point["at"] for point in content["sweeps"]["guidance"]] == [1.0, 2.0]
    assert [point["at"] for point in content["sweeps"]["ema"]] == [0.05, 0.1]
    assert all(one["value"] != two["value"] for one, two in content["sweeps"].values())  # each of another model, or another way
    assert content["bits_per_dim"]["value"] > 0 and content["losses"]["mean"] > 0 and content["drift"]["values"]
    assert sum("uncorrected" in line and "192 or more" in line for line in content["warnings"]) == 2
    assert any(line.startswith("real data: ") for line in content["warnings"])
    assert not (report / ".unfinished").exists()


def test_losses_and_bits_are_those_of_unseen_data_under_their_own_conditions(runs: tuple[str, str], report: Path) -> None:
    content = json.loads((report / "report.json").read_text())
    model, data = ddpm.load(runs[0]), open_data(run_data(open_run(runs[0])))
    told, untold = (held_out_loss(model, data, frozenset(keys)) for keys in (["class"], []))
    assert told and untold
    assert pytest.approx(told.loss, rel=1e-3) == content["losses"]["mean"] != pytest.approx(untold.loss, rel=1e-3)
    raw, values = data.batch(evenly(data.held_rows, 4))
    assert model.codec is not None
    scores = continuous(model, model.codec.encode(torch.from_numpy(raw)).float(), {"class": torch.from_numpy(values["class"])})
    assert content["bits_per_dim"]["value"] == pytest.approx(scores.bits_per_dim(64).mean()[0], rel=1e-3)


def test_to_statistics_of_another_tool_are_all_frechet_distances_and_nothing_else(
    runs: tuple[str, str], report: Path, tmp_path: Path
) -> None:
    """That of samples, of real data and of every point of the curves."""
    np.savez(tmp_path / "other.npz", mu=np.full(64, 5.0), sigma=np.eye(64))
    words = [*WORDS, "--guidance-curve", "1,2", "--reference", str(tmp_path / "other.npz"), "--out", str(tmp_path / "out")]
    assert main(["evaluate", runs[0], *words]) == 0
    plain, found = (json.loads((folder / "report.json").read_text()) for folder in (report, tmp_path / "out"))
    for row in ("scores", "real"):
        assert [name for name, one in found[row].items() if one != plain[row][name]] == ["frechet", "frechet_alike"]
    apart = [one["value"] != two["value"] for kind in plain["sweeps"] for one, two in zip(found["sweeps"][kind], plain["sweeps"][kind])]
    assert len(apart) == 6 and all(apart) and found["protocol"] != plain["protocol"]
    assert (found["fingerprint"], found["rows"]) == (plain["protocol"]["data"], plain["protocol"]["rows"])
    assert f"against the {found['protocol']['data']} of another tool" in (tmp_path / "out" / "report.html").read_text()


def test_a_report_from_python_is_that_of_the_command(runs: tuple[str, str], tmp_path: Path) -> None:
    """And what is left at its default is the run's own."""
    asked = EvaluateConfig(n=40, sweep=0, likelihood=0, extractor="raw", how=How(steps=3, batch=30), out=str(tmp_path / "a"))
    words = ["--n", "40", "--steps", "3", "--batch", "30", "--sweep", "0", "--likelihood", "0", "--extractor", "raw"]
    done = evaluate(runs[0], asked)
    assert main(["evaluate", runs[0], *words, "--out", str(tmp_path / "b")]) == 0
    assert done is not None and done.folder == tmp_path / "a"
    mine, its = (json.loads((tmp_path / name / "report.json").read_text()) for name in "ab")
    assert mine == its and (done.folder / "report.html").is_file()


def test_the_page_needs_nothing_but_itself(report: Path) -> None:
    text = (report / "report.html").read_text()
    assert text.count("<svg") >= 4 and text.count("data:image/png;base64,") == 2
    assert not re.search(r'(?:src|href)="(?!data:)', text) and "http://www.w3.org/2000/svg" in text
    assert "Nearest neighbours" in text and "real data, unseen" in text and "nan" not in text.lower().split("<style>")[0]


def test_the_same_samples_give_the_same_report_and_another_call_another_folder(
    runs: tuple[str, str], report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after two batches, without curves, and in the middle of the curves; what was drawn and found is not drawn again."""
    first = json.loads((report / "report.json").read_text())
    calls: list[int] = []
    original = drawing.Ready.draw

    def draw(self: Any, first: int, size: int, *rest: Any) -> Any:
        calls.append(first)
        if len(calls) in (3, 6):
            raise KeyboardInterrupt
        return original(self, first, size, *rest)

    monkeypatch.setattr(drawing.Ready, "draw", draw)
    words = ["evaluate", runs[0], *WORDS, "--guidance-curve", "1,2"]
    assert main([*words[:8], "--sweep", "0", "--likelihood", "0", "--extractor", "raw"]) == 130
    assert main(words) == 130
    calls_before = len(calls)
    assert main(words) == 0
    second = json.loads((report.with_name("report-2") / "report.json").read_text())
    assert first == second
    assert calls_before == 6 and calls[6:].count(60) == 0  # the last batch of the 80 was there


def test_each_process_makes_the_features_of_what_it_drew(
    runs: tuple[str, str], report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the report is that of one process."""
    seen: list[int] = []
    original = Raw.features

    def features(self: Raw, samples: torch.Tensor) -> torch.Tensor:
        seen.append(len(samples))
        return original(self, samples)

    words = ["evaluate", runs[0], *WORDS, "--guidance-curve", "1,2", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("ddpm.cli.app.inside", lambda: False)  # torchrun's own part is not tested here
    monkeypatch.setattr(Raw, "features", features)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(words) == 0 and seen == [30]  # 80 samples in batches of 30: the second
    monkeypatch.setenv("RANK", "0")
    assert main(words) == 0 and seen[1:3] == [30, 20]
    one, two = (json.loads((folder / "report.json").read_text())["scores"] for folder in (report, tmp_path / "out"))
    assert one == two


def test_curves_are_of_the_step_that_the_report_is_of(runs: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Even where training has gone on since: every point names the step, and what is its own."""
    asked: list[Any] = []

    def noted(run: str, how: Any, typed: Any) -> Any:
        asked.append((how.step, how.steps, how.guide.guidance, how.weights))
        return drawing.ready(run, how, typed)

    monkeypatch.setattr(curves, "ready", noted)
    words = ["--n", "40", "--steps", "3", "--sweep", "40", "--nfe-curve", "1,2", "--likelihood", "0", "--extractor", "raw"]
    assert main(["evaluate", runs[1], *words, "--guidance-curve", "1,2", "--out", str(tmp_path / "out")]) == 0
    assert asked[:4] == [(6, 1, 1.0, "ema"), (6, 2, 1.0, "ema"), (6, 3, 1.0, "ema"), (6, 3, 2.0, "ema")]
    assert asked[4:] == [(6, 3, 1.0, "ema-0.050"), (6, 3, 1.0, "ema-0.100")]


def test_points_of_other_curves_are_found_anew(tmp_path: Path) -> None:
    """Of other numbers of samples, or to another reference; the same are found once."""
    (tmp_path / ".unfinished").mkdir()
    for about, value, kept in (("40 data", 1.0, 1.0), ("40 data", 2.0, 1.0), ("50 data", 3.0, 3.0), ("40 other", 4.0, 4.0)):
        point = Point(5.0, Estimate(value, value, value, value, 40))
        assert curves.Points(tmp_path, about).get("nfe", 5.0, lambda point=point: point)["value"] == kept


def test_rows_are_taken_evenly_for_data_may_be_sorted_and_samples_by_chance() -> None:
    assert evenly(np.arange(10), 3).tolist() == [0, 4, 9] and evenly(np.arange(5), 9).tolist() == [0, 1, 2, 3, 4]
    assert sorted(mixed(9, 20).tolist()) == list(range(9)) != mixed(9, 20).tolist()
    assert mixed(90, 20).tolist() == mixed(90, 30).tolist()[:20]


def test_runs_are_ranked(runs: tuple[str, str], report: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in runs:
        assert main(["evaluate", run, *WORDS, "--n", "330", "--sweep", "0", "--likelihood", "0"]) == 0
    assert main(["compare", str(report), runs[1]]) == 2 and "too few samples" in capsys.readouterr().err
    assert main(["compare", *runs]) == 0
    said = capsys.readouterr().out
    assert " 1. " in said and " 2. " in said and "real data" not in said  # too few are held out to tell its bias


def test_ticks_are_round() -> None:
    assert ticks([0.9]) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8]) and ticks([470.0]) == [0.0, 100.0, 200.0, 300.0, 400.0]
    assert ticks([-0.31, 0.12]) == pytest.approx([-0.3, -0.2, -0.1, 0.0, 0.1])  # corrected distances may be below 0
    assert ticks([-4.0, -1.0]) == [-4.0, -3.0, -2.0, -1.0, 0.0] and ticks([0.0]) == [0.0]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--extractor", "inception"], 2, "needs --weights-file"),
        (["--weights-file", "nowhere.pth"], 2, "nowhere.pth"),
        (["--extractor", "own", "--weights-file", "x"], 2, "leave one of the two out"),
        (["--sweep", "3"], 2, "at least 40"),
        (["--n", "10"], 2, "--n is 10"),
        (["--reference", "missing.npz", "--extractor", "raw"], 2, "holds no mu and sigma"),
    ],
)
def test_refusals(words: list[str], code: int, said: str, runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", runs[0], *words]) == code
    assert said in capsys.readouterr().err


def test_compare_refuses_what_it_cannot_read(
    runs: tuple[str, str], report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").write_text("{")
    for words, code, said in (
        ([runs[0]], 2, "at least 2"), ([runs[0], runs[0]], 2, "are the same report"), ([str(report), str(tmp_path)], 4, "cannot be read"),
        ([str(report), str(tmp_path / "no")], 2, "no such report"), ([str(report), str(report / "report.json")], 2, "are the same report"),
    ):  # fmt: skip
        assert main(["compare", *words]) == code
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "broken",
    [
        {"format": 2}, {"protocol": {}},
        {"protocol": {"data": [1], "rows": "train", "extractor": "raw"}}, {"scores": [1]}, {"scores": {"frechet": None}},
        {"scores": {"frechet": {"value": None, "low": 1.0, "high": 2.0}}}, {"scores": {"frechet": {"value": "1", "low": "0", "high": "2"}}},
        {"scores": {"frechet": {"value": 1.0, "low": 0.5, "high": None}}}, {"real": [1]}, {"real": {"frechet": {"value": 1.0}}},
        {"scores": {"frechet": {"value": 1.0, "low": 0.5, "high": 2.0}, "memorisation": {"found": "yes"}}},
    ],
)  # fmt: skip
def test_a_damaged_report_is_named(report: Path, broken: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((report / "report.json").read_text()) | broken
    (tmp_path / "report.json").write_text(json.dumps(content))
    wanted = "has form 2, this version reads 1" if "format" in broken else "is damaged"
    assert main(["compare", str(tmp_path), str(report)]) == 4 and wanted in capsys.readouterr().err


def test_samples_of_broken_weights_are_refused(runs: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels of pictures cannot be NaN, so it is seen before they are made."""
    plain = NetworkDenoiser.forward

    def broken(self: NetworkDenoiser, *inputs: Any) -> Any:
        found = plain(self, *inputs)
        return found._replace(x0=found.x0 * torch.nan)

    monkeypatch.setattr(NetworkDenoiser, "forward", broken)
    for words in (["sample", runs[0], "--n", "4"], ["evaluate", runs[0], *WORDS, "--out", str(tmp_path / "e")]):
        assert main(words) == 3


def test_few_unseen_data_leave_the_test_for_copies_out() -> None:
    """Which says so, and scores the rest; figures that depend on the number are of as many in both rows."""
    data = from_arrays(np.random.default_rng(0).integers(0, 256, (480, 1, 8, 8)).astype(np.uint8), name="few")
    evaluator = Evaluator(data, Raw(data.card))
    found, _ = evaluator.scores(torch.from_numpy(data.batch(np.arange(60))[0]))
    assert len(data.held_rows) == 48 and found.copies is None and any("held out: got 48 samples" in line for line in found.warnings)
    real = evaluator.real(60)
    unseen = torch.from_numpy(data.batch(data.held_rows)[0])
    assert real is not None and real.estimates["sliced_wasserstein"] == evaluator._plain(unseen, 48)["sliced_wasserstein"]
    more = torch.cat([unseen, 0 * unseen])
    seen = more[mixed(96, 48)]  # those that are compared at equal numbers
    twice, once = evaluator._plain(more, 48), evaluator._plain(seen[mixed(48, 48).argsort()], 48)
    assert {k: v for k, v in twice.items() if k != "energy"} == {k: v for k, v in once.items() if k != "energy"}
    assert twice["energy"].value > 10 * evaluator._plain(unseen, 48)["energy"].value  # which has no bias, and is of all
    for one, count in ((found, 60), (real, 48)):  # too few for a correction: side by side at equal numbers
        assert np.isnan(one.estimates["frechet"].low) and one.estimates["frechet"].samples == count
        assert one.estimates["frechet_alike"].samples == 48 and one.estimates["frechet_alike"].low < one.estimates["frechet_alike"].value


def test_unseen_data_have_their_classes_by_chance_as_samples_do() -> None:
    """Not in the very shares of the training data, which a kernel distance without bias would see."""
    generator = np.random.default_rng(0)
    classes = np.arange(3000) % 10
    raw = (20 * classes[:, None, None, None] + generator.integers(0, 9, (3000, 1, 4, 4))).astype(np.uint8)
    evaluator = Evaluator(
        from_arrays(raw, cond={"class": classes}, classes=tuple("0123456789"), name="ten"), Raw(from_arrays(raw, name="ten").card)
    )
    counts = np.bincount(classes[evaluator.dataset.held_rows[evaluator.unseen]], minlength=10)
    assert len(evaluator.dataset.held_rows) == 300 and 150 < len(evaluator.unseen) == len(np.unique(evaluator.unseen)) < 300
    assert 2.0 < counts.std() < 8.0 and counts.max() == 30  # binomial: 4.7; the first class to run out ends it
    real = evaluator.real(1000)
    assert real is not None and real.estimates["kernel"].low < 0.0 < real.estimates["kernel"].high


def test_a_perfect_model_of_classes_is_at_distance_zero() -> None:
    """On average, and by its intervals: conditions are drawn for each sample by itself, as correction and interval expect."""
    generator = np.random.default_rng(0)
    classes = np.arange(600) % 6
    raw = (20.0 * classes[:, None, None, None] + generator.standard_normal((600, 1, 2, 2))).astype(np.float32)
    data = from_arrays(raw, cond={"class": classes}, classes=tuple("abcdef"), name="six", holdout=0.0)
    evaluator = Evaluator(data, Raw(data.card))
    found: list[Estimate] = []
    for seed in range(60):
        cond = evaluator.conditions(1200, seed, frozenset({"class"}), torch.device("cpu"))
        assert cond is not None
        rows = [np.flatnonzero(classes == i) for i in cond["class"].tolist()]
        found.append(evaluator.frechet(torch.from_numpy(raw[[generator.choice(some) for some in rows]])))
    values = torch.tensor([one.value for one in found])
    assert abs(values.mean()) < 3.0 * values.std() / 60**0.5  # with classes in exact shares: further below zero
    assert sum(one.low <= 0.0 <= one.high for one in found) >= 45  # at 0 itself an estimate is skewed
    few, many = (evaluator.conditions(n, 3, frozenset({"class"}), torch.device("cpu")) for n in (7, 100))
    assert few is not None and many is not None and torch.equal(few["class"], many["class"][:7])


def test_channels_of_small_numbers_count_as_much_as_those_of_large_ones() -> None:
    """Kelvin beside pascal: a shift of one by three deviations is seen by the distances of the entries."""
    fields = np.random.default_rng(0).standard_normal((600, 2, 4, 4)).astype(np.float32) * np.array([1.0, 1e4], np.float32)[:, None, None]
    data = from_arrays(fields, name="weather")
    evaluator = Evaluator(data, Raw(data.card))
    mine = torch.from_numpy(fields[:200])
    moved = evaluator._plain(mine + torch.tensor([3.0, 0.0]).view(2, 1, 1), 200)
    before = evaluator._plain(mine, 200)
    assert moved["energy"].value > before["energy"].value + 1.0 and moved["sliced_wasserstein"].value > 1.0


def test_fewer_samples_than_unseen_data_are_set_beside_some_of_every_part() -> None:
    """Data sorted by class: the first of the rows held out are all of one class."""
    grey = np.repeat(np.arange(10), 200)[:, None, None, None] * 20
    data = from_arrays((grey + np.random.default_rng(0).integers(0, 9, (2000, 1, 8, 8))).astype(np.uint8), name="sorted", holdout=0.5)
    real = Evaluator(data, Raw(data.card)).real(100)
    assert real is not None and real.estimates["channel_values"].value < 0.1  # of one class alone: above 1


def test_statistics_that_are_none_are_refused(tmp_path: Path) -> None:
    """Texts, a sigma that is not symmetric, one with a negative eigenvalue."""
    good = np.eye(3)
    for name, sigma in (("text", good.astype(str)), ("skew", good + np.triu(np.ones((3, 3)), 1)), ("negative", -good)):
        np.savez(tmp_path / f"{name}.npz", mu=np.array(["a", "b", "c"]) if name == "text" else np.zeros(3), sigma=sigma)
        with pytest.raises(ConfigError, match=r"no mu and sigma|is no covariance"):
            foreign_statistics(tmp_path / f"{name}.npz", 3)
    (tmp_path / "empty.npz").touch()
    np.savez_compressed(tmp_path / "cut.npz", mu=np.zeros(300), sigma=np.random.default_rng(0).normal(size=(300, 300)))
    damaged = bytearray((tmp_path / "cut.npz").read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 64] = bytes(64)
    (tmp_path / "cut.npz").write_bytes(damaged)
    for name in ("empty", "cut"):
        with pytest.raises(ConfigError, match="no mu and sigma"):
            foreign_statistics(tmp_path / f"{name}.npz", 300)
    np.savez(tmp_path / "good.npz", mu=np.zeros(3), sigma=good)
    assert foreign_statistics(tmp_path / "good.npz", 3).cov.equal(torch.eye(3, dtype=torch.float64))
