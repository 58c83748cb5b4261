"""Laws of the walk: where it calls the network and where it ends, what its randomness depends on, and what clipping does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from members import named, samplers, schedules, shapes
from torch import Tensor
from worlds import Nudged, close, isotropic, plain_codec, three_bumps, toy, unit

from ddpm.denoiser import Codec, Denoiser, Prediction, V
from ddpm.errors import ConfigError
from ddpm.process import At, Cosine, Linear, Listed, LogSNR, Process, Schedule, Straight, default_grid
from ddpm.random import generator, normals, torch_seed
from ddpm.sampling import DDIM, Ancestral, Multistep, Plan, Restart, Row, Sampler, SingleStep, clipped, sample, trajectory

every = pytest.mark.parametrize("sampler", named(samplers))


class Watched(Nudged):
    """A denoiser that remembers at which instants it was called."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner, 0.0, 0.5)
        self.called: list[At] = []

    def forward(self, x: Tensor, at: At, cond: Any = None) -> Prediction:
        self.called.append(at)
        return super().forward(x, at, cond)


@dataclass(frozen=True, kw_only=True)
class Spy(Sampler):
    """Another sampler that remembers the z it is handed."""

    base: Sampler
    seen: list = field(default_factory=list)

    def __post_init__(self) -> None: ...

    @property
    def draws(self) -> int:
        return self.base.draws

    def init(self, x: Tensor) -> tuple:
        return self.base.init(x)

    def plan(self, model: Any, times: Tensor) -> Plan:
        return self.base.plan(model, times)

    def step(self, model: Any, x: Tensor, row: Row, state: tuple, z: Tensor | None) -> tuple[Tensor, tuple, Prediction]:
        self.seen.append(z)
        return self.base.step(model, x, row, state, z)


@every
@pytest.mark.parametrize("schedule", named(schedules))
def test_the_network_is_called_at_the_grids_instants_and_the_walk_ends_at_the_data(sampler: Sampler, schedule: Schedule) -> None:
    process, steps = Process(schedule), 6
    denoiser = Watched(isotropic(process, 0.3))
    if isinstance(sampler, Restart) and float(process.at(schedule.first).ratio) >= sampler.high:
        with pytest.raises(ConfigError, match="must lie within"):
            list(trajectory(denoiser, 3, steps=steps, sampler=sampler))
        return
    frames = list(trajectory(denoiser, 3, steps=steps, sampler=sampler, dtype=torch.float64))
    times = default_grid(process, steps).times(process, steps)
    called = torch.stack([at.t for at in denoiser.called])
    churned = isinstance(sampler, SingleStep) and sampler.churn > 0
    assert churned or bool(torch.isin(times, called).all())
    assert float(called.min()) >= (0.0 if isinstance(sampler, Restart) else float(times[-1])) and float(called.max()) <= 1.0
    saved = sampler.calls(steps) - len(called)
    assert 0 <= saved <= 2 * (float(process.at(1.0).alpha) == 0.0) + 2 * isinstance(sampler, Restart)
    rows = len(frames) - 1
    assert rows <= sampler.rows(steps)
    assert [frame.step for frame in frames] == list(range(rows + 1)) and frames[0].prediction is None
    assert bool(torch.isin(times, torch.stack([frame.at.t for frame in frames])).all())
    end = frames[-1]
    assert end.prediction is not None
    if not isinstance(sampler, Multistep) or sampler.variable == "log_snr":  # others read x0 off a polynomial
        assert torch.equal(end.x, end.prediction.x0)
    assert float(end.at.sigma) == 0.0 and float(end.at.alpha) == 1.0
    assert bool(torch.isfinite(end.x).all())


@every
@pytest.mark.parametrize("shape", shapes, ids=str)
def test_samples_do_not_depend_on_the_batch_they_are_drawn_in(sampler: Sampler, shape: tuple[int, ...]) -> None:
    denoiser = Nudged(isotropic(Process(Linear()), 0.3, shape), 0.0, 0.5)
    drawn = {batch: sample(denoiser, 7, steps=4, sampler=sampler, seed=5, batch=batch, dtype=torch.float64) for batch in (7, 3, 1)}
    assert drawn[7].shape == (7, *shape)
    close(drawn[3], drawn[7], rtol=1e-12, atol=1e-13)
    close(drawn[1], drawn[7], rtol=1e-12, atol=1e-13)
    close(sample(denoiser, 2, steps=4, sampler=sampler, seed=5, first=3, dtype=torch.float64), drawn[7][3:5], rtol=1e-12, atol=1e-13)
    assert not torch.allclose(sample(denoiser, 7, steps=4, sampler=sampler, seed=6, dtype=torch.float64), drawn[7])
    assert len(drawn[7].reshape(7, -1)[:, 0].unique()) == 7


@pytest.mark.parametrize("sampler", named(s for s in samplers if s.stochastic))
def test_the_noise_of_a_sample_depends_on_seed_index_and_step_alone(sampler: Sampler) -> None:
    denoiser = Nudged(isotropic(Process(Linear()), 0.3), 0.0, 0.5)
    spy = Spy(base=sampler)
    frames = list(trajectory(denoiser, 4, steps=5, sampler=spy, seed=11, first=20, dtype=torch.float64))
    for step, z in enumerate(spy.seen):
        for row in range(4):
            shape = (sampler.draws, 2) if sampler.draws > 1 else (2,)
            mine = z[:, row] if sampler.draws > 1 else z[row]
            assert torch.equal(mine, normals(11, [20 + row], shape, "step", step, torch.float64)[0])
    close(frames[0].x, normals(11, range(20, 24), (2,), "start", dtype=torch.float64), rtol=1e-12)
    every_z = torch.cat([*(z.reshape(-1) for z in spy.seen), frames[0].x.reshape(-1)])
    assert len(every_z.unique()) == len(every_z)


def test_without_noise_none_is_drawn() -> None:
    spy = Spy(base=DDIM())
    list(trajectory(isotropic(Process(Linear()), 0.3), 2, steps=3, sampler=spy))
    assert spy.seen == [None, None, None]


def test_streams_of_different_keys_differ_and_are_normal() -> None:
    wide = [
        normals(seed, [i], (3,), purpose, step, torch.float64)
        for seed in (0, 1, 2**32, 2**40 + 1)
        for i in (0, 1, 2**33)
        for purpose in ("start", "step")
        for step in (0, 1)
    ]
    flat = torch.cat(wide).reshape(-1)
    assert len(flat.unique()) == len(flat)
    many = normals(3, range(300), (64,), "noise", dtype=torch.float64)
    assert abs(float(many.mean())) * many.numel() ** 0.5 < 4.5 and abs(float(many.var()) - 1) * (many.numel() / 2) ** 0.5 < 4.5
    assert normals(3, [5], (4,), "noise").dtype == torch.float32 and torch.equal(
        normals(3, [5], (4,), "noise"), normals(3, [4, 5], (4,), "noise")[1:]
    )
    assert torch_seed(1, "dropout", 2) == torch_seed(1, "dropout", 2) != torch_seed(1, "dropout", 3)
    assert generator(1, "order").integers(2**60) == generator(1, "order").integers(2**60)


@pytest.mark.parametrize(
    ("schedule", "instants"), [(Linear(T=None), (1.0, 0.0005)), (Cosine(T=None), (1.0, 0.5, 1e-5)), (Straight(), (1.0, 0.0005))]
)
def test_a_grid_outside_the_trained_range_is_refused(schedule: Schedule, instants: tuple[float, ...]) -> None:
    denoiser = toy(schedule, V())
    with pytest.raises(ConfigError, match="trained on"):
        list(trajectory(denoiser, 1, steps=len(instants), grid=Listed(at=instants)))
    list(trajectory(denoiser, 1, steps=2, grid=Listed(at=(1.0, schedule.first)), clip="off"))


@every
def test_a_map_is_refused_by_samplers_that_need_a_mean(sampler: Sampler) -> None:
    denoiser = isotropic(Process(Linear()), 0.3)
    denoiser.meaning = "map"
    assert not sampler.reads("map")
    with pytest.raises(ConfigError, match="not a mean"):
        list(trajectory(denoiser, 1, steps=3, sampler=sampler))


def test_instants_that_do_not_fall_and_wrong_counts_are_refused() -> None:
    denoiser = isotropic(Process(Linear()), 0.3)
    for times in ([], [0.5, 0.5], [0.4, 0.6], [1.5, 0.2], [0.5, 0.0]):
        with pytest.raises(ConfigError, match="must fall strictly"):
            DDIM().plan(denoiser.bind(), torch.tensor(times, dtype=torch.float64))
    with pytest.raises(ConfigError, match="n: got 0"):
        list(trajectory(denoiser, 0))
    with pytest.raises(ConfigError, match="got 2 rows, must be n = 3"):
        sample(denoiser, 3, steps=2, cond={"class": torch.zeros(2)})


def test_static_clipping_is_a_clamp_of_x0_that_keeps_the_noise_consistent() -> None:
    process, codec = Process(Linear()), Codec(shift=(0.0, 8.0), scale=(1.0, 8.0), low=(-0.5, 0.0), high=(0.7, 12.0))
    model, x = three_bumps(process, (2, 3)).bind(), 3 * unit(6, 2, 3)
    at = process.at(0.9)
    plain, kept = model(x, at), clipped(model, codec, "static", x)(x, at)
    low, high = torch.tensor([[-0.5], [-1.0]], dtype=torch.float64), torch.tensor([[0.7], [0.5]], dtype=torch.float64)
    close(kept.x0, torch.minimum(torch.maximum(plain.x0, low), high), rtol=1e-6, atol=1e-7)
    assert not torch.equal(kept.x0, plain.x0)
    close(at.alpha * kept.x0 + at.sigma * kept.eps, x)


def test_dynamic_clipping_rescales_what_reaches_beyond_the_range() -> None:
    process, codec = Process(Linear()), plain_codec(1)
    x, at = unit(5, 1, 4, 3), process.at(0.5)
    inner = isotropic(process, 0.3, (1, 4, 3))
    wild, tame = Nudged(inner, torch.tensor([3.0, -2.0, 5.0, 1.5, -4.0])), Nudged(inner, torch.zeros(5))
    got, plain = clipped(wild.bind(), codec, "dynamic", x)(x, at), wild(x, at)
    for i in range(5):
        reach = plain.x0[i].abs().flatten().quantile(0.995).clamp(min=1.0)
        close(got.x0[i], plain.x0[i].clamp(-reach, reach) / reach, rtol=1e-6)
    calm = tame(0.1 * x, at)
    assert float(calm.x0.abs().max()) < 1
    close(clipped(tame.bind(), codec, "dynamic", x)(0.1 * x, at).x0, calm.x0)


def test_clipping_is_never_silent() -> None:
    model, x = isotropic(Process(Linear()), 0.3).bind(), unit(2, 2)
    bins = Codec(shift=(8.0, 8.0), scale=(8.0, 8.0), bins=(0.0, 16.0))
    assert (
        clipped(model, bins, "off", x) is model
        and clipped(model, None, "auto", x) is model
        and clipped(model, plain_codec(2), "auto", x) is model
    )
    assert clipped(model, bins, "auto", x) is not model
    with pytest.raises(ConfigError, match="not known"):
        clipped(model, None, "static", x)
    denoiser = Nudged(isotropic(Process(Linear()), 0.3), 4.0)
    denoiser.codec = plain_codec(2)
    reached = {
        clip: float(sample(denoiser, 8, steps=5, sampler=Ancestral(), clip=clip, dtype=torch.float64).abs().max())
        for clip in ("off", "static", "dynamic")
    }  # type: ignore[arg-type]
    assert reached["off"] > 3 and reached["static"] <= 1.0 and reached["dynamic"] <= 1.0 + 1e-6


def test_samples_come_back_in_the_datas_units() -> None:
    denoiser = isotropic(Process(Linear()), 0.3)
    denoiser.codec = Codec(shift=(8.0, 4.0), scale=(8.0, 2.0), dtype="uint8", bins=(0.0, 16.0))
    raw, x = sample(denoiser, 5, steps=4), sample(denoiser, 5, steps=4, decode=False)
    assert raw.dtype == torch.uint8
    close(raw, (x * torch.tensor([8.0, 2.0]) + torch.tensor([8.0, 4.0])).round().clamp(0, 16))


def test_log_snr_grids_reach_the_ends_they_were_trained_on() -> None:
    frames = list(trajectory(toy(Cosine(T=None), V()), 1, steps=5, grid=LogSNR(), clip="off"))
    assert float(frames[0].at.t) == 1.0
