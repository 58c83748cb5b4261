"""Parts of a report, of made-up figures and data: which column, which row, which picture; and what figures compare."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm.cli.evaluate import show
from ddpm.data import Dataset, from_arrays
from ddpm.errors import ConfigError
from ddpm.evaluation import EvaluateConfig, Evaluated, run
from ddpm.evaluation.extractors import Raw
from ddpm.evaluation.report import Evaluator
from ddpm.evaluation.report import page as page_module
from ddpm.evaluation.report.charts import Spot, lines
from ddpm.evaluation.report.page import curves, memory, page, scores
from ddpm.evaluation.scoring import Scores
from ddpm.metrics import Estimate, Memorisation, Moments, frechet

BETTER = {
    "frechet": "lower", "kernel": "lower", "inception_score": "higher", "precision": "higher", "recall": "higher", "density": "near 1",
    "coverage": "higher", "sliced_wasserstein": "lower", "energy": "lower", "channel_values": "lower", "spectrum": "lower",
}  # fmt: skip


def figures(first: float) -> dict[str, Estimate]:
    """A figure of its own for every score."""
    return {name: Estimate(first + k, first + k, first + k, first + k, 100) for k, name in enumerate(BETTER)}


def small(seed: int, **options: Any) -> Dataset:
    """Pictures of noise, every second held out."""
    pictures = np.random.default_rng(seed).integers(0, 256, (160, 1, 4, 4)).astype(np.uint8)
    return from_arrays(pictures, name="noise", holdout=0.5, **options)


def test_samples_stand_before_real_data_on_the_page_and_each_score_says_which_way_is_better() -> None:
    mine, real = ({name: one._asdict() for name, one in figures(first).items()} for first in (100.0, 200.0))
    table = scores(mine, real)
    heads = re.findall(r"<th>([^<]*)", table)
    rows = re.findall(r'<tr><td>[^<]*<td class="n">(\d+)<.*?<td class="n">(\d+)<.*?<td>([^<]*)<', table)
    assert heads[:4] == ["score", "samples", "real data, unseen", "better"]
    assert rows == [(str(100 + k), str(200 + k), better) for k, better in enumerate(BETTER.values())]


def test_samples_stand_before_real_data_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    mine, real = Scores(figures(100.0), None, []), Scores(figures(200.0), None, [])
    show(Evaluated(mine, real, "by seed 3", "raw", {"n": 100, "warnings": []}, Path()))
    _, head, first, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["score", "samples", "real", "data,", "unseen"] and re.findall(r"(\d+) \[", first) == ["100", "200"]


@pytest.mark.parametrize(("found", "verdict"), [(True, "the model copies training data"), (False, "no sign of copies")])
def test_the_verdict_on_copies_is_what_was_found(found: bool, verdict: str) -> None:
    assert verdict in "".join(memory(Memorisation(0.5, 0.01, 0.1, -9.0, found, [])._asdict())) and memory(None) == []


def test_neighbours_shown_are_the_nearest_of_those_trained_on_and_of_those_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples are training rows: each beside itself, and the held-out row nearest to it, in a row of four with a gap."""
    data = small(0)
    chosen = data.train_rows[np.random.default_rng(1).permutation(80)[:30]]
    samples, shown = torch.from_numpy(data.batch(chosen)[0]), list[Any]()
    monkeypatch.setattr(run, "grid", lambda pictures, limits, **how: shown.append(pictures))
    evaluator = Evaluator(data, Raw(data.card))
    run.pictures(samples, samples.flatten(1).float(), evaluator, (0.0, 255.0))
    held = data.batch(data.held_rows)[0]
    nearest = [held[np.square(held.astype(float) - one).sum((1, 2, 3)).argmin()] for one in shown[1][0::4]]
    assert len(shown[1]) == 4 * 12 and (shown[1][0::4] == shown[1][1::4]).all() and (shown[1][2::4] == np.stack(nearest)).all()
    assert (shown[1][3::4] == 255).all() and len({one.tobytes() for one in shown[1][0::4]}) == 12


def test_runs_on_other_data_compare_by_the_same_statistics_and_by_others_do_not() -> None:
    """Statistics of another tool replace data and rows in what a Frechet distance depends on; without them other data do not compare."""
    spread = 900.0 * torch.eye(16, dtype=torch.float64)
    first, second = (Moments.given(torch.full((16,), mean, dtype=torch.float64), spread) for mean in (90.0, 99.0))
    here, there = small(0), small(1)
    one, two, third, plain = (
        Evaluator(data, Raw(data.card), to) for data, to in ((here, first), (there, first), (here, second), (here, None))
    )
    one.against.check(two.against)
    for other in (third, plain):
        with pytest.raises(ConfigError, match="do not compare"):
            one.against.check(other.against)
    with pytest.raises(ConfigError, match="do not compare"):
        one.train.protocol.check(two.train.protocol)
    held = torch.from_numpy(here.batch(here.held_rows)[0])
    wanted, real = frechet(Moments.of(held.flatten(1).double()), first), one.real(80)
    assert real is not None and one.frechet(held).raw == real.estimates["frechet"].raw == pytest.approx(wanted)


def test_as_many_samples_are_scored_as_published_figures_take_where_inception_is_used() -> None:
    for extractor, weights, count in (("auto", "x", 50_000), ("inception", "x", 50_000), ("dinov2", "x", 10_000), ("auto", None, 10_000)):
        asked = {"extractor": extractor, "weights_file": weights}
        assert EvaluateConfig(**asked).count == count and EvaluateConfig(**asked, n=123).count == 123  # pyright: ignore[reportArgumentType]


def test_warnings_on_the_page_are_words_and_no_markup() -> None:
    noise, raw = small(0), Raw(small(0).card)
    evaluator = Evaluator(noise, raw)
    found, _ = evaluator.scores(torch.from_numpy(noise.batch(noise.train_rows)[0]))
    report = {
        "run": "<b>", "protocol": evaluator.against._asdict(), "n": 80, "data": "noise", "fingerprint": "f" * 64, "rows": "train",
        "version": "1", "scores": found.to_dict(), "real": None, "warnings": ["<script>"],
    }  # fmt: skip
    assert "<script>" not in page(report, {}) and "&lt;script&gt;" in page(report, {}) and "<h1>&lt;b&gt;" in page(report, {})


def test_curves_are_drawn_by_their_own_numbers() -> None:
    """A point's place, its value and its interval; the level of real data only where it is corrected as the points are."""
    drawn: list[Any] = []
    points = [{"at": at, "value": at + 1, "low": at + 0.5, "high": at + 2, "raw": at + 1, "samples": 40} for at in (5.0, 10.0)]
    report = {"sweeps": {"nfe": points}, "sweep_n": 40, "real": {"frechet": {"value": 0.25, "low": 0.1, "high": 0.3}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_module, "lines", lambda *given, **options: drawn.append((given, options)) or "")
        curves(report)
        report["real"]["frechet"]["low"] = None
        curves(report)
    (spots,) = drawn[0][0][0].values()
    assert [tuple(spot) for spot in spots] == [(5.0, 6.0, 5.5, 7.0), (10.0, 11.0, 10.5, 12.0)]
    assert drawn[0][1] == {"log_x": True, "level": 0.25} and drawn[1][1]["level"] is None


def test_a_chart_places_its_points_by_ratio_along_x_and_larger_ones_higher() -> None:
    spots = [Spot(5.0, 1.0, 0.5, 1.5), Spot(10.0, 3.0, 2.0, 4.0), Spot(20.0, 2.0, 1.0, 3.0)]
    for log, share in ((True, 0.5), (False, 1 / 3)):
        chart = lines({"nfe": spots}, "x", "y", log_x=log, level=2.0)
        x, y = ([float(v) for v in re.findall(rf'<circle[^>]* {axis}="([\d.]+)"', chart)] for axis in ("cx", "cy"))
        assert (x[1] - x[0]) / (x[2] - x[0]) == pytest.approx(share, abs=2e-3) and y[1] < y[2] < y[0]
        assert f'y1="{y[2]:.1f}" y2="{y[2]:.1f}" stroke="#888"' in chart  # the level, as high as the point of its value
