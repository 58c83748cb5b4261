"""Everything that is offered trains and samples: every schedule with every prediction it allows, losses, shapes and conditions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import ddpm
from ddpm.data import from_arrays
from ddpm.data.dataset import Dataset
from ddpm.denoiser import PARAMETERIZATIONS, PosteriorMean, legal
from ddpm.errors import ConfigError
from ddpm.networks.config import UNetConfig
from ddpm.objective import TIMES, WEIGHTINGS, Denoising, Hybrid, LossSettings, Stepwise, VariationalBound
from ddpm.process import EDM, SCHEDULES, Cosine, Schedule, Table
from ddpm.sampling import SAMPLERS, Ancestral, Restart
from ddpm.training import load, run
from small_runs import SMALL_UNET, held, metrics, pictures, quietly, settings, table


@pytest.fixture(autouse=True)
def _no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "loss_figure", lambda folder: None)


def made(kind: type[Schedule]) -> list[Schedule]:
    """A schedule as it is offered, and its chain of 20 steps."""
    if kind is Table:
        return [Table(betas=tuple(np.linspace(0.01, 0.4, 20)))]
    return [kind(), kind(T=20)]


@pytest.mark.parametrize("kind", SCHEDULES, ids=lambda kind: kind.__name__)
def test_every_schedule_with_every_prediction_it_allows(kind: type[Schedule], tmp_path: Path) -> None:
    data, ran = table(), 0
    for schedule in made(kind):
        for parameterization in (member() for member in PARAMETERIZATIONS):
            out = tmp_path / str(ran)
            if legal(schedule, parameterization) is not None:
                with pytest.raises(ConfigError):
                    settings(out, schedule=schedule, parameterization=parameterization)
                continue
            finished = quietly(settings(out, steps=2, log_every=1, schedule=schedule, parameterization=parameterization), data=data)
            rows = metrics(out)
            assert len(rows) == 3 and all(np.isfinite(list(row.values())).all() for row in rows), (schedule, parameterization, rows)
            denoiser = load(finished.run)
            assert denoiser.process.schedule == schedule and type(denoiser.parameterization) is type(parameterization)
            for sampler in (member() for member in SAMPLERS):
                if isinstance(sampler, Restart) and float(denoiser.process.at(schedule.first).ratio) >= sampler.high:
                    with pytest.raises(ConfigError, match="must lie within"):
                        ddpm.sample(denoiser, 3, steps=2, sampler=sampler)
                    continue
                drawn = ddpm.sample(denoiser, 3, steps=2, sampler=sampler)
                wild = isinstance(sampler, Restart) and isinstance(parameterization, PosteriorMean)  # untrained, x grows at every call
                assert drawn.shape == (3, 3) and (wild or drawn.isfinite().all()), (schedule, parameterization, sampler)
            ran += 1
    assert ran >= 4


@pytest.mark.parametrize("weighting", [member() for member in WEIGHTINGS], ids=lambda member: type(member).__name__)
def test_every_weighting(weighting: object, tmp_path: Path) -> None:
    quietly(settings(tmp_path, steps=2, log_every=1, loss=Denoising(weighting=weighting)), data=table())  # type: ignore[arg-type]
    assert all(np.isfinite(row["loss"]) for row in metrics(tmp_path) if "loss" in row)


@pytest.mark.parametrize("times", [member() for member in TIMES], ids=lambda member: type(member).__name__)
def test_every_sampler_of_times(times: object, tmp_path: Path) -> None:
    quietly(settings(tmp_path, steps=2, log_every=1, schedule=EDM(), loss=Denoising(times=times)), data=table())  # type: ignore[arg-type]
    assert all(np.isfinite(row["loss"]) for row in metrics(tmp_path) if "loss" in row)


@pytest.mark.parametrize(
    "loss", [Denoising(), Hybrid(), VariationalBound(variance="learned"), Stepwise(), Stepwise(reduced=False)], ids=repr
)
def test_every_loss_trains_in_pictures(loss: LossSettings, tmp_path: Path) -> None:
    finished = quietly(settings(tmp_path, network=SMALL_UNET, schedule=Cosine(T=50), loss=loss, log_every=1), data=pictures(1, 4, 4))
    assert all(np.isfinite(row["loss"]) for row in metrics(tmp_path) if "loss" in row)
    denoiser = load(finished.run)
    assert denoiser.learned_variance == loss.learned_variance
    drawn = ddpm.sample(denoiser, 2, steps=5, sampler=Ancestral(variance="learned" if loss.learned_variance else "small"))
    assert drawn.shape == (2, 1, 4, 4) and drawn.dtype == torch.uint8


@pytest.mark.parametrize("shape", [(2, 12), (3, 4, 6), (1, 2, 4, 4)], ids=str)
def test_signals_pictures_and_volumes(shape: tuple[int, ...], tmp_path: Path) -> None:
    finished = quietly(settings(tmp_path, network=SMALL_UNET, steps=2, preview=2), data=pictures(*shape))
    assert ddpm.sample(load(finished.run), 2, steps=2).shape == (2, *shape)
    assert [path.suffix for path in (tmp_path / "samples").iterdir()] == [".npz" if len(shape) == 2 else ".png"]


def test_without_a_network_named_one_is_chosen_that_fits(tmp_path: Path) -> None:
    for name, data in {"table": table(), "signal": pictures(1, 6), "odd": pictures(1, 5, 7)}.items():
        config = settings(tmp_path / name, steps=1, network=None)
        quietly(config, data=data)
        kind = held(tmp_path / name).document("config")["network"]
        assert kind["name"] == ("MLPConfig" if name == "table" else "UNetConfig")


def conditioned(kind: str) -> Dataset:
    """Random data with one kind of condition."""
    rng = np.random.default_rng(0)
    samples, vector = rng.normal(size=(40, 1, 4, 4)).astype(np.float32), rng.normal(size=(40, 3)).astype(np.float32)
    field = rng.normal(size=(40, 2, 4, 4)).astype(np.float32)
    return from_arrays(samples, {kind: {"class": np.arange(40) % 4, "vector": vector, "image": field}[kind]}, name=kind)


@pytest.mark.parametrize("kind", ["class", "vector", "image"])
def test_conditions_are_learned_from_kept_and_needed(kind: str, tmp_path: Path) -> None:
    data = conditioned(kind)
    network = UNetConfig(channels=8, mults=(1,), blocks=1, attention=(), zero_init=False)
    finished = quietly(settings(tmp_path, network=network, steps=3, preview=2), data=data)
    denoiser = load(finished.run)
    spec = held(tmp_path).document("config")["cond"]
    assert spec == {"classes": 0, "vector": 0, "image": 0} | {
        {"class": "classes"}.get(kind, kind): {"class": 4, "vector": 3, "image": 2}[kind]
    }
    pairs = [{kind: torch.from_numpy(data.cond[kind][rows])} for rows in ([0, 1], [2, 3])]
    a, b, nothing = (ddpm.sample(denoiser, 2, steps=3, cond=cond) for cond in (*pairs, denoiser.null(pairs[0])))
    assert not torch.equal(a, b) and not torch.equal(a, nothing)


def test_labels_can_be_ignored(tmp_path: Path) -> None:
    finished = quietly(settings(tmp_path, conditional=False), data=table(classes=3))
    document = held(finished.run).document("config")
    assert document["cond"]["classes"] == 0 and document["classes"] == [] and ddpm.sample(load(finished.run), 2, steps=2).shape == (2, 3)
