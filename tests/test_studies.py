"""The formulas that studies add to the package's own; the studies themselves are run by hand."""

from __future__ import annotations

import math
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ddpm.data import from_arrays
from ddpm.denoiser import Prediction
from ddpm.likelihood.scores import Scores
from ddpm.metrics import Moments, frechet
from ddpm.networks import UNetConfig
from ddpm.objective.weighting import Bound, Simple
from ddpm.process import Cosine, Karras, Linear, LogSNR, Process, Straight
from ddpm.sampling import DDIM
from ddpm.training import TrainConfig
from small_runs import table

FOLDER = Path(__file__).resolve().parent.parent / "studies"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="studies are not installed with the package")


def study(name: str) -> Any:
    return import_module(name)


@pytest.fixture(autouse=True)
def _found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.parametrize("schedule", [Cosine(), Linear(), Straight()])
def test_the_weightings_lead_from_l_simple_to_the_bound(schedule: Any) -> None:
    weighting = study("weighting")

    process = Process(schedule)
    at, d = process.at(torch.linspace(0.01, 0.99, 50)), torch.ones(50)
    for power, end in ((0.0, Simple()), (1.0, Bound())):
        torch.testing.assert_close(
            weighting.Between(power=power).on_target(at, process, d), end.on_target(at, process, d), rtol=1e-9, atol=0
        )
    between = weighting.Between(power=0.5)(at, process)
    torch.testing.assert_close(between**2, Simple()(at, process), rtol=1e-9, atol=0)


def test_a_band_counts_more_inside_and_the_same_outside() -> None:
    weighting = study("weighting")

    process = Process(Cosine())
    at = process.at(process.time_of(torch.tensor([-3.0, -1.01, -0.99, 0.0, 1.99, 2.01, 4.0], dtype=torch.float64)))
    found = weighting.Band(low=-1.0, high=2.0)(at, process) / Simple()(at, process)
    assert found.tolist() == pytest.approx([1, 1, weighting.FACTOR, weighting.FACTOR, weighting.FACTOR, 1, 1])
    ends = process.log_snr(torch.tensor([process.schedule.first, 1.0]))
    assert weighting.EDGES[0] < float(ends[1]) and weighting.EDGES[-1] > float(ends[0])  # together the bands are all levels


def test_bits_are_the_integral_of_the_error_over_log_snr() -> None:
    """Of a denoiser that knows nothing, eps_hat = 0, at log-SNR from -8 to 12: 20 / (2 ln 2)."""
    weighting = study("weighting")

    found: list[dict[str, Any]] = [{"errors": [1.0] * 41, "unit": 8.0}, {"errors": [1.0] * 41, "unit": 8.0}]
    rate, error = weighting.rate_and_distortion(found)
    assert float(rate[-1]) == pytest.approx(20 / (2 * math.log(2))) and float(rate[0]) == 0
    assert error.tolist() == pytest.approx([8.0 * math.exp(-float(level) / 2) for level in weighting.LEVELS])


def test_the_effective_weight_of_l_simple_on_the_cosine_schedule() -> None:
    """alpha sigma / (d log_snr / dt) there is 1/cosh(log_snr / 2), the largest 1."""
    weighting = study("weighting")
    found, levels = weighting.effective(Cosine(T=None, clip=None, s=0.0)), weighting.LEVELS
    assert found.tolist() == pytest.approx([1 / math.cosh(float(level) / 2) for level in levels], rel=2e-3)


def test_distances_are_over_that_of_the_training_data(monkeypatch: pytest.MonkeyPatch) -> None:
    common = study("common")
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    test = Moments.of(x)
    monkeypatch.setattr(common, "compared", lambda here: (test, 0.5))
    here = common.World(None, x, SimpleNamespace(features=lambda samples: samples))
    assert here.distance(x + 2.0) == pytest.approx(12.0 / 0.5) and here.distance(x) == pytest.approx(0.0, abs=1e-9)
    assert common.mean([1.0, math.inf]) == (math.inf, pytest.approx(math.nan, nan_ok=True)) and common.mean([1.0, 3.0]) == (2.0, 1.0)


def test_the_floor_is_the_distance_of_as_many_training_data(monkeypatch: pytest.MonkeyPatch) -> None:
    common = study("common")
    monkeypatch.setattr(common, "SAMPLES", 60)
    data = table(200, holdout=0.25)
    test = torch.from_numpy(table(61, seed=1).batch(np.arange(61))[0])
    here = common.World(data, test, SimpleNamespace(features=lambda samples: samples.double()))
    some = data.batch(data.train_rows[np.linspace(0, len(data.train_rows) - 1, 60).astype(int)])[0]
    wanted = frechet(Moments.of(torch.from_numpy(some).double()), Moments.of(test.double()))
    assert pytest.approx(wanted) == common.compared.__wrapped__(here)[1] != pytest.approx(1.0, rel=0.1)


def test_data_that_are_sorted_are_tested_on_all_classes() -> None:
    """However few of the rows held out are taken; each is taken once."""
    common = study("common")
    data = from_arrays(np.zeros((4000, 2), np.float32), {"class": np.repeat(np.arange(10), 400)}, name="sorted", holdout=0.5)
    rows = common.tested(data)
    assert set(data.batch(rows[:100])[1]["class"].tolist()) == set(range(10))
    assert len(set(rows.tolist())) == len(rows) == common.TESTS and set(rows.tolist()) <= set(data.held_rows.tolist())


def test_samples_are_drawn_as_they_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps, sampler and grid; and bits are of eight draws of noise."""
    common = study("common")
    monkeypatch.setattr(common, "sample", lambda model, n, **how: torch.tensor([n, how["steps"], how["grid"].rho, how["sampler"].eta]))
    here: Any = SimpleNamespace(distance=lambda drawn: drawn.tolist(), test=torch.zeros(3, 2))
    assert common.distance(None, here, 7, DDIM(eta=0.5), Karras(rho=3.0), n=9) == [9, 7, 3.0, 0.5]
    scores = Scores(torch.tensor([2.0, 4.0]), torch.zeros(2), torch.zeros(2))
    monkeypatch.setattr(common, "continuous", lambda model, x0, draws: scores._replace(nats=draws * scores.nats))
    assert common.bits(SimpleNamespace(codec=SimpleNamespace(encode=lambda raw: raw)), here) == pytest.approx(8 * 3.0 / (2 * math.log(2)))


def test_schedules_are_sampled_on_both_grids_and_each_seed_learns_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    schedules = study("schedules")
    monkeypatch.setattr(schedules, "bits", lambda model, here: 1.0)
    monkeypatch.setattr(schedules, "distance", lambda model, here, calls, grid=None: (calls, grid))
    own, even = ({f"{name} {calls}": (calls, grid) for calls in (5, 10, 20, 50)} for name, grid in (("own", None), ("log-snr", LogSNR())))
    assert schedules.measure(None, None, None) == {"bits": 1.0, **own, **even}
    tables = [(9.0, -9.0), (8.0, -8.0)]
    jobs = schedules.jobs(SimpleNamespace(steps=4, seeds=2), tables)
    assert [job.config.schedule.log_snr for job in jobs if "learned" in job.name] == [*tables, *tables]
    assert len({job.name for job in jobs}) == 10 and len({(job.seed, job.config.schedule, job.config.loss.weighting) for job in jobs}) == 20


def test_the_variance_of_sampling_and_of_the_bound_is_the_one_that_was_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed one is the large one."""
    parameterization = study("parameterization")
    asked: list[str] = []

    def discrete(model: Any, x0: torch.Tensor, variance: str, **how: Any) -> Any:
        asked.append(variance)
        return SimpleNamespace(scores=Scores(torch.ones(2), torch.zeros(2), torch.zeros(2)))

    monkeypatch.setattr(parameterization, "discrete", discrete)
    monkeypatch.setattr(parameterization, "distance", lambda model, here, steps, sampler: (steps, sampler.variance))
    model, here = SimpleNamespace(codec=SimpleNamespace(encode=lambda raw: raw)), SimpleNamespace(test=torch.zeros(2, 3))
    jobs = parameterization.jobs(SimpleNamespace(steps=4, seeds=1))
    found = [parameterization.measure(job, model, here)["frechet"] for job in jobs]
    wanted = ["learned" if "learned" in job.name else "large" for job in jobs]
    assert len(jobs) == 14 and asked == wanted and found == [(100, variance) for variance in wanted]


def test_six_steps_are_each_what_their_row_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other samplings of the model as it is; four networks that together have the parameters and the steps of one."""
    six_steps = study("six_steps")
    monkeypatch.setattr(six_steps, "bits", lambda model, here: 2.0)
    monkeypatch.setattr(six_steps, "distance", lambda model, here, steps, sampler: (steps, sampler.variance))
    jobs = {job.name: job for job in six_steps.jobs(SimpleNamespace(steps=40, seeds=1))}
    base, apart = jobs["as it is"], jobs["3 four networks"]
    found = six_steps.measure(base, SimpleNamespace(process=Process(Cosine(T=None))), None)
    rows = six_steps.rows({"as it is": [found]})
    assert {name: row["frechet"] for name, row in rows.items()} == {
        "as it is": [(50, "small")], "2 five steps": [(5, "small")], "2 one step": [(1, "small")], "4 variance large": [(50, "large")],
    }  # fmt: skip
    one, small = (sum(p.numel() for p in job.config.network.build((1, 8, 8)).parameters()) for job in (base, apart))
    assert six_steps.PARTS * small == pytest.approx(one, rel=0.05)
    trained: list[Any] = []
    monkeypatch.setattr(six_steps, "world", lambda path: SimpleNamespace(data=None))
    monkeypatch.setattr(six_steps, "trained", lambda job, data: trained.append(job))
    monkeypatch.setattr(six_steps, "Parts", lambda members: None)
    monkeypatch.setattr(six_steps, "measure", lambda job, model, here: {})
    six_steps.act(apart, None)
    assert [(job.config.steps, job.config.loss.times.low, job.config.loss.times.high) for job in trained] == [
        (10, k / 4, (k + 1) / 4) for k in range(4)
    ]


def test_errors_are_mean_squares() -> None:
    """Of a denoiser that says 0 for eps: E eps^2 = 1 at every level."""
    common = study("common")

    class Silent:
        process, codec = Process(Cosine(T=None)), SimpleNamespace(encode=lambda raw: raw)

        def __call__(self, x: torch.Tensor, at: Any) -> Prediction:
            return Prediction(x, torch.zeros_like(x))

    here = common.World(None, torch.zeros(500, 1, 4, 4), None)
    assert common.errors(Silent(), here) == pytest.approx([1.0] * len(common.LEVELS), abs=0.08)


def test_scores_are_kept_under_what_is_not_the_default() -> None:
    """A setting that is younger than a kept score changes no name; one that is set does."""
    common = study("common")
    one, same = common.Job("a", 0, TrainConfig(steps=7)), common.Job("a", 0, TrainConfig(steps=7, batch=TrainConfig().batch))
    assert common.key(one) == common.key(same) != common.key(one._replace(config=TrainConfig(steps=8)))
    assert common.key(one) != common.key(one._replace(seed=1))


def test_instants_of_a_part_are_evenly_in_it() -> None:
    six_steps = study("six_steps")

    t, density = six_steps.Part(low=0.25, high=0.5).draw(torch.linspace(0.0, 1.0, 5), Process(Cosine(T=None)))
    assert t.tolist() == pytest.approx([0.25, 0.3125, 0.375, 0.4375, 0.5]) and density.tolist() == pytest.approx([4.0] * 5)
    first, density = six_steps.Part(low=0.0, high=0.25).draw(torch.tensor([0.0, 1.0]), Process(Cosine(T=None)))
    assert first.tolist() == pytest.approx([1e-3, 0.25]) and density.tolist() == pytest.approx([1 / 0.249] * 2)


def test_parts_answer_each_for_their_levels() -> None:
    six_steps = study("six_steps")

    def member(k: int) -> Any:
        def answer(x: torch.Tensor, at: Any, cond: Any = None) -> Prediction:
            return Prediction(torch.full_like(x, k), torch.full_like(x, -k))

        return answer

    process = Process(Cosine())
    parts = six_steps.Parts.__new__(six_steps.Parts)
    torch.nn.Module.__init__(parts)
    parts.members, parts.process = [member(k) for k in range(six_steps.PARTS)], process
    t = torch.tensor([0.01, 0.25, 0.251, 0.6, 0.75, 0.9, 1.0])
    x = torch.zeros(7, 1, 2, 2)
    assert parts(x, process.at(t, like=x)).x0[:, 0, 0, 0].tolist() == [0, 0, 1, 2, 2, 3, 3]
    assert parts(x, process.at(torch.tensor(0.6), like=x)).eps.unique().tolist() == [-2]


def test_the_network_and_its_rivals_are_of_the_size_they_are_said_to_be() -> None:
    common = study("common")
    stability = study("stability")

    shape = (1, 8, 8)
    ours = sum(p.numel() for p in common.NETWORK.build(shape).parameters())
    assert isinstance(common.NETWORK, UNetConfig) and ours <= 300_000
    for kind in ("GAN", "VAE"):
        theirs = sum(p.numel() for p in stability.rival(kind, ours, 1, 1e-3).parameters())
        assert abs(theirs / ours - 1) < 0.05


@pytest.mark.parametrize("kind", ["diffusion", "GAN", "VAE"])
def test_each_kind_is_trained_and_scored(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of training: every number is there."""
    stability, common = study("stability"), study("common")
    plain = common.Learned.of
    monkeypatch.setattr(common.Learned, "of", lambda data: plain(data, steps=2))
    for module in (stability, common):
        monkeypatch.setattr(module, "SAMPLES", 100)
    common.world.cache_clear()
    common.compared.cache_clear()
    args = SimpleNamespace(steps=2)
    found = stability.act(common.Job(kind, 0, common.settings(args), (kind, 1e-3)), None)
    common.world.cache_clear()
    common.compared.cache_clear()
    assert math.isfinite(found["frechet"]) and 0.0 <= found["rarest"] <= 0.1 and len(found["shown"]) == 16 * 64


def test_rivals_take_the_steps_their_budget_holds_and_are_sampled_by_their_average(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step half as dear: twice as many. Weights that leap by 1 in the last of 20 steps move an average of width 0.1 by 1 - 0.95^8."""
    stability, common = study("stability"), study("common")

    class Leaps(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.steps = torch.nn.Linear(stability.LATENT, 2), 0
            self.up = torch.nn.Sequential(self.last)
            for part in self.parameters():
                part.data.zero_()

        def step(self, x: torch.Tensor, noise: torch.Tensor) -> None:
            self.steps += 1
            self.last.bias.data.fill_(float(self.steps == 20))

    costs = iter((2, 1))
    monkeypatch.setattr(stability, "operations", lambda act: next(costs))
    monkeypatch.setattr(stability, "rival", lambda *asked: Leaps())
    data = SimpleNamespace(
        card=SimpleNamespace(shape=(2,), bins=(0, 200)), train_rows=np.arange(8), batch=lambda rows: (np.zeros((8, 2)), {})
    )
    network = SimpleNamespace(build=lambda shape: torch.nn.Linear(2, 2))
    config = SimpleNamespace(network=network, steps=10)
    drawn, about = stability.fitted(common.Job("VAE", 0, config, ("VAE", 1e-3)), SimpleNamespace(data=data))
    assert about["steps"] == 20 and drawn.unique().tolist() == [round(100 * (2 - 0.95**8))]


def test_what_counts_as_failed() -> None:
    stability = study("stability")

    rows = [{"frechet": value, "rarest": 0.05} for value in (1.0, 1.1, 1.2, 3.7, math.inf)]
    assert stability.failed(rows) == 2 and stability.failed([*rows[:3], {"frechet": 1.0, "rarest": 0.0}]) == 1


def test_scores_are_kept_and_seeds_compared_in_pairs(tmp_path: Path) -> None:
    common = study("common")

    args: Any = SimpleNamespace(folder=str(tmp_path), study="x", data=None, processes=1, steps=7)
    job = common.Job("one: a", 3, common.settings(args))
    folder = tmp_path / "x" / "digits"
    folder.mkdir(parents=True)
    (folder / f"{common.key(job)}.json").write_text('{"name": "one: a", "seed": 3, "bits": 2.5}')
    assert common.perform([job], lambda *_: pytest.fail("was known"), args) == {"one: a": [{"name": "one: a", "seed": 3, "bits": 2.5}]}
    other = job._replace(config=common.settings(args, batch=32))
    assert common.key(other) != common.key(job)
    assert common.paired([2.0, 4.0, 9.0], [1.0, 3.0, 8.0]) == (1.0, 0.0) and common.mean([1.0, 3.0]) == (2.0, pytest.approx(1.0))
