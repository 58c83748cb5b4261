"""Laws of parameterizations: F and (x0, eps) name one point at any noise level; what has no inverse is refused with a reason."""

from __future__ import annotations

import pytest
import torch
from members import illegal_pairs, legal_pairs, named, pairs, shapes
from worlds import Toy, close, plain_codec, some_times, toy, unit

from ddpm.denoiser import (
    X0,
    EDMPreconditioning,
    Eps,
    Flow,
    Index,
    NetworkDenoiser,
    Parameterization,
    PosteriorMean,
    Score,
    V,
    legal,
    reaches_zero,
)
from ddpm.errors import ConfigError
from ddpm.process import EDM, VE, At, Linear, Process, Schedule, Straight, ZeroTerminalSNR

every = pytest.mark.parametrize("pair", named(legal_pairs))
Pair = tuple[Schedule, Parameterization]


def points(pair: Pair, dtype: torch.dtype) -> tuple[Process, At, torch.Tensor, torch.Tensor]:
    """Data and noise (40, 6), with their instants, the whole range of noise levels over and over."""
    process, x0, eps = Process(pair[0]), unit(40, 6, seed=1).to(dtype), unit(40, 6, seed=2).to(dtype)
    return process, process.at(some_times(pair[0]).repeat(8), like=x0), x0, eps


@every
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=["float64", "float32"])
def test_round_trip(pair: Pair, dtype: torch.dtype, tolerance: float) -> None:
    """F -> (x0, eps) -> F, and alpha x0 + sigma eps = x, relative to the terms summed on the way.

    These are large for mu~ only: in a long chain it is nearly x, and the inverse nearly singular.
    """
    process, at, x0, eps = points(pair, dtype)
    a, b = pair[1].target(at, process)
    assert a.dtype == b.dtype == dtype
    x, output = process.perturb(x0, eps, at), a * x0 + b * eps
    got = pair[1].predict(output, x, at, process)
    assert bool(torch.isfinite(got.x0).all() and torch.isfinite(got.eps).all())
    d = pair[1].determinant(at, process).abs()
    size_x0, size_eps = ((b * x).abs() + at.sigma * output.abs()) / d, (at.alpha * output.abs() + (a * x).abs()) / d
    for back, wanted, terms in (
        (a * got.x0 + b * got.eps, output, a.abs() * size_x0 + b.abs() * size_eps),
        (process.perturb(got.x0, got.eps, at), x, at.alpha * size_x0 + at.sigma * size_eps),
    ):
        assert float(((back - wanted).abs() / terms).max()) < tolerance


@every
def test_the_true_output_gives_the_true_data_and_noise(pair: Pair) -> None:
    """In float64, to the digits that x itself still holds: x0 is seen through alpha, eps through sigma."""
    process, at, x0, eps = points(pair, torch.float64)
    a, b = pair[1].target(at, process)
    got = pair[1].predict(a * x0 + b * eps, process.perturb(x0, eps, at), at, process)
    size = at.alpha.abs() + at.sigma
    d = pair[1].determinant(at, process).abs()
    assert float(((got.x0 - x0).abs() * d / (b.abs() * size + at.sigma * (a.abs() + b.abs()))).max()) < 1e-13
    assert float(((got.eps - eps).abs() * d / (a.abs() * size + at.alpha * (a.abs() + b.abs()))).max()) < 1e-13


@pytest.mark.parametrize("pair", named(pairs))
def test_illegal_is_what_cannot_be_recovered(pair: Pair) -> None:
    schedule, kind = pair
    blind = isinstance(kind, Eps | Score) and float(schedule.alpha(torch.ones((), dtype=torch.float64))) == 0.0
    headless = isinstance(kind, PosteriorMean) and schedule.T is None
    assert (legal(schedule, kind) is not None) == (blind or headless)
    if legal(schedule, kind) is None:  # a determinant that is not 0 wherever the network is called
        assert bool((kind.determinant(Process(schedule).at(some_times(schedule)), Process(schedule)) != 0).all())


@pytest.mark.parametrize("pair", named(illegal_pairs))
def test_illegal_pairs_are_refused_when_built(pair: Pair) -> None:
    reason = legal(*pair)
    assert reason is not None and type(pair[0]).__name__ in reason and type(pair[1]).__name__ in reason
    with pytest.raises(ConfigError) as refusal:
        NetworkDenoiser(Toy(), Process(pair[0]), pair[1], Index(), plain_codec(2), (2,))
    assert reason in str(refusal.value)


def test_illegal_pairs_as_listed_by_hand() -> None:
    assert legal(ZeroTerminalSNR(), Eps()) and legal(Straight(), Score()) and legal(Straight(), PosteriorMean())
    assert not legal(Linear(), PosteriorMean()) and not legal(Straight(), V()) and not legal(EDM(), Eps())
    assert reaches_zero(Straight()) and not reaches_zero(Linear())


def test_targets_are_the_published_ones() -> None:
    process = Process(Linear())
    at = process.at(torch.tensor([0.001, 0.3, 1.0], dtype=torch.float64))
    x0, eps = 0.7, -1.1
    x = at.alpha * x0 + at.sigma * eps
    s = process.at(at.t - 0.001)
    bar, before = at.alpha**2, s.alpha**2
    beta = 1 - bar / before
    wanted = {
        Eps(): torch.full((3,), eps),
        X0(): torch.full((3,), x0),
        V(): at.alpha * eps - at.sigma * x0,
        Flow(): torch.full((3,), eps - x0),
        Score(): -(x - at.alpha * x0) / at.sigma**2,
        PosteriorMean(): before.sqrt() * beta / (1 - bar) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - bar) * x,
    }
    for kind, target in wanted.items():
        a, b = kind.target(at, process)
        close(a * x0 + b * eps, target, rtol=1e-7 if not isinstance(kind, PosteriorMean) else 1e-9)


def test_the_flow_target_is_the_velocity_of_the_straight_path() -> None:
    process, x0, eps = Process(Straight()), unit(4, 3), unit(4, 3, seed=1)
    close(process.velocity(x0, eps, process.at(torch.tensor([0.1, 0.4, 0.6, 0.9]), like=x0)), eps - x0)


@pytest.mark.parametrize("schedule", named([EDM(), VE()]))
def test_edm_preconditioning_is_the_published_one(schedule: Schedule) -> None:
    """D(x) = c_skip x + c_out F(c_in x), Karras et al. 2022, table 1."""
    process, data = Process(schedule), 0.5
    kind, x, output = EDMPreconditioning(sigma_data=data), unit(5, 4), unit(5, 4, seed=1)
    at = process.at(some_times(schedule), like=x)
    total = at.sigma**2 + data**2
    c_skip, c_out, c_in = data**2 / total, at.sigma * data / total.sqrt(), 1 / total.sqrt()
    close(kind.scale(at), c_in)
    close(kind.predict(output, x, at, process).x0, c_skip * x - c_out * -output, rtol=1e-10, atol=1e-12)


def test_input_and_target_of_edm_have_unit_variance() -> None:
    process, kind = Process(Linear()), EDMPreconditioning(sigma_data=0.3)
    at = process.at(torch.linspace(0.01, 1.0, 9, dtype=torch.float64))
    a, b = kind.target(at, process)
    close((a * 0.3) ** 2 + b**2, 1.0)
    close(kind.scale(at) ** 2 * (at.alpha**2 * 0.3**2 + at.sigma**2), 1.0)


def test_sigma_data_must_be_known() -> None:
    with pytest.raises(ConfigError, match="not measured"):
        EDMPreconditioning().target(Process(EDM()).at(0.5), Process(EDM()))


@pytest.mark.parametrize("shape", shapes, ids=str)
@pytest.mark.parametrize("learned", [False, True])
def test_a_network_sees_the_scaled_input_and_the_clock(shape: tuple[int, ...], learned: bool) -> None:
    denoiser, x = toy(Linear(), V(sigma_data=0.5), shape, learned=learned), unit(3, *shape)
    at = denoiser.process.at(torch.tensor([0.001, 0.5, 1.0], dtype=torch.float64), like=x)
    prediction = denoiser(x, at)
    assert isinstance(denoiser.network, Toy)
    seen, c_noise, _ = denoiser.network.seen[-1]
    close(seen, x / (0.25 * at.alpha**2 + at.sigma**2).sqrt())
    close(c_noise, torch.tensor([0.0, 499.0, 999.0]), rtol=1e-9, atol=1e-9)
    close(denoiser.process.perturb(prediction.x0, prediction.eps, at), x, rtol=1e-10, atol=1e-12)
    close(
        at.alpha * prediction.eps - at.sigma * prediction.x0,
        denoiser.network(seen, c_noise, None).narrow(1, 0, shape[0]),
        rtol=1e-9,
        atol=1e-11,
    )
    assert (prediction.variance is not None) == learned
    if prediction.variance is not None:
        close(prediction.variance, (torch.sin(3 * seen) + 1) / 2)
