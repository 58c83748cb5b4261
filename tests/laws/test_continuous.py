"""Laws of consistency in continuous time: at rest at the exact map, and what the tangent is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pupils import COUNT, Answering, Bell, drawn, dropping, network, taught
from torch import Tensor
from worlds import uniforms, unit

from ddpm.denoiser import EDMPreconditioning, V
from ddpm.distillation import Consistency, ContinuousConsistency, continuous
from ddpm.distillation.consistency import ConsistencyLoss
from ddpm.distillation.continuous import ContinuousLoss, along, network_output
from ddpm.distillation.pooled import pooled
from ddpm.distillation.segments import segment_end
from ddpm.errors import ConfigError
from ddpm.objective import Draws, LogitNormal
from ddpm.process import At, Cosine, Process, Straight


def test_the_derivative_along_the_trajectory_is_a_finite_difference() -> None:
    process = Process(Cosine(T=None, clip=None))
    model = network(process)
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    x0, eps = unit(3, 2, seed=1), unit(3, 2, seed=2)

    def output(phi: Tensor) -> Tensor:
        at = process.at_ratio(phi.tan()).like(x0)
        return network_output(model, process.perturb(x0, eps, at), at, None)

    at = process.at(t, like=x0)
    rates = process.circle_rates(at)
    _, change = along(model, process.perturb(x0, eps, at), at, None, rates[1] * x0 + rates[2] * eps, rates, at.alpha * at.sigma)
    phi, h = process.at(t).ratio.atan(), 1e-6
    expected = (output(phi + h) - output(phi - h)) / (2 * h) * at.alpha * at.sigma
    torch.testing.assert_close(change, expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_exact_map_is_at_rest_in_continuous_time(steps: int) -> None:
    """On the flow of its teacher the exact jump does not change, so the tangent is zero; of one that is off it points back."""
    process = Process(Cosine(T=None, clip=None))
    bell, settings = Bell(process), ContinuousConsistency(warmup=0.0, steps=steps)
    times = settings.student(process).times
    loss, right = taught(ContinuousLoss(settings), bell.exact), bell.jump(times)
    loss.advance(0.0)
    t = 0.1 + 0.8 * uniforms(COUNT, 5)
    t = t[(t[:, None] - torch.tensor((*times, 0.0))).abs().min(1).values > 0.03]  # `landing` divides by little next to an end
    count, at, end = len(t), process.at(t, like=unit(len(t), 2)), segment_end(process, times, t).like(unit(len(t), 2))
    x0, eps = bell.data(count), unit(count, 2, seed=6)
    x = process.perturb(x0, eps, at)

    def output(answer: Callable[[Tensor, At], Tensor]) -> Tensor:
        return network_output(Answering(process, answer), x, at, None)

    rest = loss.tangent(Answering(process, smooth(bell, end)), x0, x, at, end, None, eps)
    assert rest.abs().max() < 1e-6
    mean = loss.tangent(bell.exact, x0, x, at, end, None, eps)  # the teacher itself, which is no jump
    gap = output(right) - network_output(bell.exact, x, at, None)  # F of the jump less F of the mean
    assert (mean * gap).sum() > 0.3 * mean.norm() * gap.norm()


@pytest.mark.parametrize("steps", [1, 3])
def test_the_exact_jump_has_no_continuous_loss_and_a_map_to_the_data_has_where_there_are_segments(steps: int) -> None:
    """Through the loss itself, which must know where a segment ends."""
    process = Process(Cosine(T=None, clip=None))
    bell, settings = Bell(process), ContinuousConsistency(warmup=0.0, steps=steps)
    student = settings.student(process)
    loss, draws = taught(ContinuousLoss(settings), bell.exact), Draws(0.1 + 0.8 * uniforms(COUNT, 5), *drawn()[1:])
    loss.advance(0.0)
    at = process.at(settings.times.draw(draws.u, process)[0], like=unit(COUNT, 2))
    ends = segment_end(process, student.times, at.t.flatten().double()).like(unit(COUNT, 2))
    far = (at.t - ends.t).flatten() > 0.03  # `landing` divides by little next to an end
    rest = loss(Answering(process, smooth(bell, ends), student), bell.data(COUNT), None, draws)[far]
    whole = loss(Answering(process, smooth(bell, process.clean.like(ends.t)), student), bell.data(COUNT), None, draws)[far]
    assert rest.abs().max() < 1e-10
    assert (whole.mean() > 1e-2) == (steps > 1)


def smooth(bell: Bell, end: At) -> Callable[[Tensor, At], Tensor]:
    """`Bell.jump` to ends that are given, which can be differentiated."""
    return lambda x, at: bell.process.landing(end, at, bell.walked(x, at, end), x)


def test_the_warm_up_leaves_the_networks_own_derivative_out() -> None:
    """The tangent before it is divided by its size: -alpha^2 (F - v) - r alpha sigma (x + dF/dphi), at r = 0, 1/2 and 1."""
    process = Process(Cosine(T=None, clip=None))
    loss, model = ContinuousLoss(ContinuousConsistency(source="data", warmup=0.5, soften=1e6)), network(process)  # hardly divided
    at = process.at(0.1 + 0.8 * uniforms(COUNT, 5), like=unit(COUNT, 2))
    x0, eps = unit(COUNT, 2), unit(COUNT, 2, seed=6)
    x, rates = process.perturb(x0, eps, at), process.circle_rates(at)
    mean, rest = pooled(x0, eps, at, None)
    v = rates[1] * mean + rates[2] * rest
    clean = process.clean.like(x)
    output, change = along(model, x, at, None, v, rates, at.alpha * at.sigma)
    for share, ramp in ((0.0, 0.0), (0.25, 0.5), (1.0, 1.0)):
        loss.advance(share)
        expected = -(at.alpha**2) * (output - v) - ramp * (at.alpha * at.sigma * x + change)
        torch.testing.assert_close(1e6 * loss.tangent(model, x0, x, at, clean, None, eps), expected, rtol=1e-4, atol=1e-6)


def test_both_answers_in_continuous_time_drop_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """F_old, whose derivative is taken, under the masks of F."""
    process = Process(Cosine(T=None, clip=None))
    model, loss, draws, found = dropping(network(process)), ContinuousLoss(ContinuousConsistency(source="data")), drawn(), list[Tensor]()

    def watched(*inputs: Any) -> tuple[Tensor, Tensor]:
        found.append(along(*inputs)[0])
        return along(*inputs)

    monkeypatch.setattr(continuous, "along", watched)
    x0 = unit(COUNT, 2)
    at = process.at(loss.settings.times.draw(draws.u, process)[0], like=x0)
    torch.manual_seed(3)
    expected = network_output(model, process.perturb(x0, draws.eps, at), at, None)
    torch.manual_seed(3)
    loss(model, x0, None, draws)
    torch.testing.assert_close(found[0], expected.detach())


def test_the_continuous_loss_is_the_published_one_without_learned_weights() -> None:
    """|F - F_old - g|^2 over the density of the instants; g is at most of size 1; the derivative's share rises."""
    process = Process(Cosine(T=None, clip=None))
    settings = ContinuousConsistency(source="data", warmup=0.5, times=LogitNormal())  # whose density is not 1
    loss, model, draws, x0 = ContinuousLoss(settings), network(process), drawn(), 50.0 * unit(COUNT, 2)
    for share, ramp in ((0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.9, 1.0)):
        loss.advance(share)
        assert loss.ramp == ramp
    time, density = settings.times.draw(draws.u, process)
    at = process.at(time, like=x0)
    g = loss.tangent(model, x0, process.perturb(x0, draws.eps, at), at, process.clean.like(x0), None, draws.eps)
    size = g.square().mean(1).sqrt()
    assert size.max() < 1.0 and size.max() > 0.9  # far-off data: |g|/(|g| + c)
    expected = g.square().mean(1) / density
    torch.testing.assert_close(loss(model, x0, None, draws), expected.detach(), rtol=1e-6, atol=1e-6, check_dtype=False)


def test_a_share_of_a_continuous_run_goes_in_finite_steps() -> None:
    """The loss is that of `Consistency` from stage 0 on, with the same teacher, and then that of the limit alone."""
    process = Process(Cosine(T=None, clip=None))
    bell, model, draws = Bell(process), network(process), drawn()
    ways: list[dict[str, Any]] = [{}, {"source": "data"}, {"times": LogitNormal()}]
    for how in ways:
        mixed = taught(ContinuousLoss(ContinuousConsistency(finite=0.5, stages=2, **how)), bell.exact)
        finite = taught(ConsistencyLoss(Consistency(first=0, stages=2, **how)), bell.exact)
        limit = taught(ContinuousLoss(ContinuousConsistency(warmup=0.0, **how)), bell.exact)
        limit.advance(0.0)
        for share in (0.0, 0.2, 0.3, 0.49):
            mixed.advance(share)
            finite.advance(2 * share)
            assert mixed.early.gap == finite.gap == (1.0 if share < 0.25 else 0.5)
            assert torch.equal(mixed(model, bell.data(COUNT), None, draws), finite(model, bell.data(COUNT), None, draws))
        mixed.advance(0.5)
        assert torch.equal(mixed(model, bell.data(COUNT), None, draws), limit(model, bell.data(COUNT), None, draws))


def test_continuous_time_wants_v_on_the_circle() -> None:
    for process, kind in ((Process(Straight()), V()), (Process(Cosine()), EDMPreconditioning(sigma_data=1.0))):
        model = Answering(process, lambda x, at: x)
        model.parameterization = kind
        with pytest.raises(ConfigError, match="alpha\\^2 \\+ sigma\\^2"):
            ContinuousLoss(ContinuousConsistency())(model, unit(4, 2), None, drawn(4))
