"""Laws of the adaptive solver: it keeps its tolerance, in both directions and on every schedule, for each sample by itself."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from members import named, schedules
from scipy.integrate import solve_ivp
from torch import Tensor
from worlds import Toy, close, isotropic, normal_data, plain_codec, three_bumps, unit

from ddpm.denoiser import Denoiser, Index, NetworkDenoiser, Prediction, V
from ddpm.errors import ConfigError
from ddpm.process import EDM, VPSDE, At, Cosine, Linear, Process, Schedule, Straight, SubVP, Trailing
from ddpm.random import normals
from ddpm.sampling import Adaptive, sample, trajectory
from ddpm.sampling.adaptive import FOURTH, NODES, STAGES

smooth = pytest.mark.parametrize("schedule", named([SubVP(), EDM(), Cosine(clip=None)]))


class Watched(Denoiser):
    """A denoiser that remembers where it was called, and may misname what it predicts."""

    def __init__(self, inner: Denoiser, meaning: str = "mean") -> None:
        super().__init__()
        self.inner, self.meaning, self.process, self.shape = inner, meaning, inner.process, inner.shape
        self.times: list[Tensor] = []

    def forward(self, x: Tensor, at: At, cond: object = None) -> Prediction:
        """The inner prediction."""
        self.times.append(at.t.flatten())
        return self.inner(x, at)

    def residual(self, at: At) -> Tensor:
        """The inner denoiser's."""
        return self.inner.residual(at)


@smooth
def test_it_solves_the_flow_in_t_as_scipy_does(schedule: Schedule) -> None:
    """dx/dt = alpha' x0 + sigma' eps by DOP853, in time and in x: other coordinates, another method."""
    process = Process(schedule)
    denoiser, first = three_bumps(process), schedule.first
    x = process.prior(unit(3, 2, seed=1), process.at(1.0))

    def rate(t: float, flat: object) -> object:
        at = process.at(min(max(t, first), 1.0))
        prediction = denoiser(torch.as_tensor(flat).reshape(3, 2), at)
        return process.velocity(prediction.x0, prediction.eps, at).flatten().numpy()

    noisy = 0.999  # where alpha = 0 is a corner in t, sigma'(t) may be infinite there
    middle = Adaptive(rtol=1e-7, atol=1e-7).solve(denoiser.bind(), x, 1.0, noisy)[0]
    wanted = solve_ivp(rate, (noisy, first), middle.flatten().numpy(), method="DOP853", rtol=1e-7, atol=1e-9).y[:, -1]
    got, _ = Adaptive(rtol=1e-8, atol=1e-8).solve(denoiser.bind(), middle, noisy, first)
    close(got.flatten(), torch.as_tensor(wanted), rtol=5e-6, atol=5e-6)


@pytest.mark.parametrize("schedule", named(schedules))
def test_a_gaussian_keeps_its_quantiles_there_and_back(schedule: Schedule) -> None:
    """The flow of N(0, v): x_t / sqrt(alpha^2 v + sigma^2) is constant. And the way back is the way there."""
    process, z, v = Process(schedule), unit(4, 2, seed=2), 0.3
    denoiser, begin, end = isotropic(process, v), process.at(1.0), process.at(schedule.first)
    spread = [(at.alpha**2 * v + at.sigma**2).sqrt() for at in (begin, end)]
    solver = Adaptive(rtol=1e-5, atol=1e-5)
    data, calls = solver.solve(denoiser.bind(), spread[0] * z, begin, end)
    close(data, spread[1] * z, rtol=2e-4, atol=2e-4)
    assert bool((calls % 6 == 1).all()) and int(calls.max()) < 200
    back, _ = solver.solve(denoiser.bind(), data, schedule.first, 1.0)
    close(back / spread[0], z, rtol=4e-4, atol=4e-4)


def test_the_error_is_proportional_to_the_tolerance() -> None:
    process = Process(Straight())
    denoiser, x = three_bumps(process), unit(8, 2, seed=3)
    exact, _ = Adaptive(rtol=1e-10, atol=1e-10).solve(denoiser.bind(), x, 1.0, 1e-3)
    errors, calls = [], []
    for power in (3, 5, 7):
        tolerance = 10.0**-power
        got, used = Adaptive(rtol=tolerance, atol=tolerance).solve(denoiser.bind(), x, 1.0, 1e-3)
        errors.append(float((got - exact).abs().max()))
        calls.append(float(used.double().mean()))
        assert errors[-1] < 40 * tolerance
    assert all(later < earlier / 20 for earlier, later in itertools.pairwise(errors))
    assert calls[-1] / calls[1] < 10 ** (2 / 5) * 1.3  # fifth order: a hundredth of the error at 2.5 times the calls


def test_the_pair_has_its_orders() -> None:
    """Quadrature of u^k over one step: exact up to k = 4 for the solution and k = 3 for the embedded one; stages are consistent."""
    for weights, node in zip(STAGES, NODES, strict=True):
        assert math.isclose(sum(weights), node, rel_tol=1e-14)
    places = (0.0, *NODES)
    for weights, order in (((*STAGES[-1], 0.0), 5), (FOURTH, 4)):
        for k in range(order):
            moment = sum(w * place**k for w, place in zip(weights, places, strict=True))
            assert math.isclose(moment, 1 / (k + 1), rel_tol=1e-12)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    denoiser, x = three_bumps(Process(VPSDE())), unit(4, 2, seed=4)
    solver = Adaptive(rtol=1e-5, atol=1e-5)
    together, calls = solver.solve(denoiser.bind(), x, 1.0, 1e-3)
    assert len(calls.unique()) > 1  # they take different steps
    for i in range(4):
        alone, own = solver.solve(denoiser.bind(), x[i : i + 1], 1.0, 1e-3)
        close(together[i], alone[0], rtol=1e-11, atol=1e-12)
        assert own.tolist() == [calls[i].item()]


@pytest.mark.parametrize("schedule", named([Linear(), Straight(), EDM(), Linear(T=10)]))
def test_it_ends_at_clean_by_returning_x0_and_calls_within_the_trained_range(schedule: Schedule) -> None:
    process = Process(schedule)
    watched, first = Watched(normal_data(process)), process.at(schedule.first)
    x, solver = process.prior(unit(3, 2), process.at(1.0)), Adaptive(rtol=1e-6, atol=1e-6)
    clean, calls = solver.solve(watched.bind(), x, 1.0, process.clean)
    times = torch.stack([t.expand(3) for t in watched.times])
    assert float(times.min()) >= schedule.first * (1 - 1e-9) and float(times.max()) <= 1.0
    assert len(times) == int(calls.max())  # a call for all at once
    there, _ = solver.solve(watched.bind(), x, 1.0, first)
    close(clean, watched.inner(there, first).x0, rtol=1e-8)
    from_clean, _ = solver.solve(watched.bind(), clean, process.clean, 1.0)
    close(from_clean, solver.solve(watched.bind(), first.alpha * clean, first, 1.0)[0], rtol=1e-12)


def test_integrals_beside_the_flow() -> None:
    """int du = u_1 - u_0, int du/u = log u_1/u_0, int y du of y' = 0."""
    process, y = Process(Straight()), unit(3, 2)
    start, stop = process.at(torch.tensor([0.1, 0.2, 0.5], dtype=torch.float64)), process.at(0.9)

    def slope(y: Tensor, at: At) -> tuple[Tensor, Tensor]:
        u = process.straightened(at)[1].reshape(-1, 1).expand(3, 1)
        return torch.zeros_like(y), torch.cat([torch.ones_like(u), 1 / u, y], 1)

    ended = Adaptive(rtol=1e-9, atol=1e-9).integrate(slope, process, y, start, stop)
    wide = 0.9 - start.t
    close(ended.y, y)
    close(ended.extra, torch.cat([wide[:, None], (0.9 / start.t).log()[:, None], y * wide[:, None]], 1), rtol=1e-7)


def test_sample_takes_it_and_trajectory_does_not() -> None:
    process, solver = Process(Straight()), Adaptive(rtol=1e-7, atol=1e-7)
    denoiser = three_bumps(process)
    drawn = sample(denoiser, 5, sampler=solver, seed=7, batch=2, dtype=torch.float64)
    noise = normals(7, range(5), (2,), "start", dtype=torch.float64)
    close(drawn, solver.solve(denoiser.bind(), noise, 1.0, process.clean)[0], rtol=1e-9)
    close(sample(denoiser, 2, sampler=solver, seed=7, first=3, dtype=torch.float64), drawn[3:], rtol=1e-9)
    walked = sample(denoiser, 5, steps=500, seed=7, dtype=torch.float64)
    assert float((drawn - walked).abs().max()) < 2e-2  # DDIM's first-order error
    with pytest.raises(ConfigError, match="frames"):
        next(trajectory(denoiser, 1, sampler=solver))
    with pytest.raises(ConfigError, match="grid"):
        sample(denoiser, 1, sampler=solver, grid=Trailing())


def test_a_network_in_single_precision() -> None:
    network = NetworkDenoiser(Toy(), Process(Linear()), V(), Index(scale=1.0), plain_codec(2), (2,))
    drawn = sample(network, 3, sampler=Adaptive(rtol=1e-3, atol=1e-3))
    assert drawn.shape == (3, 2) and bool(drawn.isfinite().all())


def test_what_it_refuses() -> None:
    process, x = Process(Straight()), unit(2, 2)
    with pytest.raises(ConfigError, match="after 13 network calls; allow more calls"):
        Adaptive(rtol=1e-8, atol=1e-8, calls=14).solve(three_bumps(process).bind(), x, 1.0, 1e-3)
    with pytest.raises(ConfigError, match="not a mean"):
        Adaptive().solve(Watched(three_bumps(process), "map").bind(), x, 1.0, 1e-3)
    with pytest.raises(ConfigError, match="atol"):
        Adaptive(atol=0.0)
