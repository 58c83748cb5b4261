"""Laws of consistency: at rest at the exact map, and led back to it from beside."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from members import named, schedules
from pupils import COUNT, Answering, Bell, drawn, dropping, network, taught
from torch import Tensor, nn
from worlds import normal_data, uniforms, unit

from ddpm.denoiser import Student
from ddpm.distillation import Consistency, ContinuousConsistency
from ddpm.distillation.consistency import ConsistencyLoss, below, heun
from ddpm.distillation.pooled import pooled
from ddpm.distillation.segments import segment_end
from ddpm.distillation.teacher import Teacher
from ddpm.objective import Draws, LogitNormal
from ddpm.process import EDM, At, Cosine, Linear, Process, Schedule, Straight


@pytest.mark.parametrize("schedule", [Cosine(T=None, clip=None), Straight(), EDM(), Linear()], ids=repr)
def test_heun_follows_the_flow_to_second_order(schedule: Schedule) -> None:
    process = Process(schedule)
    bell, errors = Bell(process), []
    teacher = Teacher(Consistency())
    teacher.use(bell.exact)
    t = process.at_level(torch.full((COUNT,), 0.6, dtype=torch.float64))
    x = process.perturb(bell.data(COUNT), unit(COUNT, 2, seed=8), t.like(unit(COUNT, 2)))
    for gap in (0.2, 0.1, 0.05):
        s = below(process, t, process.clean, gap)
        x_s = heun(teacher, process, x, t.like(x), s.like(x), None)
        errors.append(float((bell.map(x_s, s) - bell.map(x, t)).abs().max()))
    assert errors[0] / errors[1] > 5.5 and errors[1] / errors[2] > 5.5, errors  # third order in a single step


def test_the_nearby_instant_is_lower_in_level_and_ends_with_its_segment() -> None:
    process = Process(Cosine(T=None, clip=None))
    t = process.at(torch.tensor([1.0, 0.5, 1e-4], dtype=torch.float64))
    s = below(process, t, process.clean, 0.25)
    torch.testing.assert_close(s.level[:2], 0.75 * t.level[:2], rtol=1e-9, atol=0)
    assert below(process, t, process.clean, 1.0).sigma.abs().max() == 0.0
    assert below(process, t, process.clean, 1.0).alpha.tolist() == [1.0] * 3
    least = process.at(process.schedule.first).level
    assert all(level >= least or level == 0 for level in s.level.tolist())
    end = segment_end(process, (1.0, 0.4, 0.1), t.t)
    assert end.t.tolist() == [0.4, 0.4, 0.0]
    s = below(process, t, end, 0.25)
    torch.testing.assert_close(s.level[:2], end.level[:2] + 0.75 * (t.level - end.level)[:2], rtol=1e-9, atol=0)
    assert below(process, t, end, 1.0).t.tolist() == end.t.tolist()


def test_a_segment_ends_at_the_next_instant_and_the_last_clean() -> None:
    """From an instant of its own a student jumps to the next one; without instants everything ends clean."""
    process, inside = Process(Straight()), torch.tensor([1.0, 0.9, 0.75, 0.7, 0.25, 1e-3], dtype=torch.float64)
    assert segment_end(process, (1.0, 0.75, 0.25), inside).t.tolist() == [0.75, 0.75, 0.25, 0.25, 0.0, 0.0]
    alone = segment_end(process, (), inside)
    assert alone.sigma.tolist() == [0.0] * 6 and alone.alpha.tolist() == [1.0] * 6


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("schedule", [Cosine(T=None, clip=None), Straight(), EDM()], ids=repr)
def test_the_exact_map_has_almost_no_consistency_loss(schedule: Schedule, steps: int) -> None:
    process = Process(schedule)
    bell, settings = Bell(process), Consistency(steps=steps)
    loss, student = taught(ConsistencyLoss(settings), bell.exact), settings.student(process)
    assert len(student.times) == (steps if steps > 1 else 0) and student.meaning == ("step" if steps > 1 else "map")
    loss.advance(0.999)  # the last stage: s is next to t
    right = bell.jump(student.times)
    inside = Draws(0.05 + 0.9 * uniforms(COUNT, 5), *drawn()[1:])
    exact = loss(Answering(process, right, student), bell.data(COUNT), None, inside)
    wrong = loss(Answering(process, lambda x, at: right(x, at) * (1 + 0.1 * at.level), student), bell.data(COUNT), None, inside)
    assert exact.mean() < 1e-3 * wrong.mean(), (exact.mean(), wrong.mean())
    if steps > 1:  # of a map to the data the segments know nothing
        whole = loss(Answering(process, bell.map, student), bell.data(COUNT), None, inside)
        assert exact.mean() < 1e-2 * whole.mean()


def test_the_gap_is_halved_from_stage_to_stage() -> None:
    loss = ConsistencyLoss(Consistency(stages=3, first=1))
    gaps = []
    for share in (0.0, 0.32, 0.34, 0.7, 0.999):
        loss.advance(share)
        gaps.append(loss.gap)
    assert gaps == [0.5, 0.5, 0.25, 0.125, 0.125]


def test_the_first_stage_regresses_a_mean() -> None:
    """With s = 0 the target is the end of a single Euler step of the teacher: its mean; from data, the batch's."""
    process = Process(Straight())
    bell = Bell(process)
    for settings in (Consistency(first=0), Consistency(source="data", first=0)):
        loss = taught(ConsistencyLoss(settings), bell.exact)
        draws = drawn()
        at = process.at(draws.u, like=draws.eps)
        x = process.perturb(bell.data(COUNT), draws.eps, at)
        expected = bell.exact(x, at).x0 if loss.settings.source == "teacher" else pooled(bell.data(COUNT), draws.eps, at, None)[0]
        s = below(process, process.at(draws.u), process.clean, loss.gap).like(x)
        found = loss.target(Answering(process, bell.map), bell.data(COUNT), x, at, s, process.clean.like(x), None, draws.eps)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_both_calls_drop_the_same() -> None:
    """A network that drops half of what it knows has no consistency loss at the same point: the masks are those of the first call."""
    process = Process(Straight())

    def dropping(x: Tensor, at: At) -> Tensor:
        return torch.nn.functional.dropout(torch.ones_like(x), 0.5, training=True)

    loss = taught(ConsistencyLoss(Consistency(source="data")), normal_data(process))
    found = loss(Answering(process, dropping), unit(COUNT, 2), None, Draws(0.5 + 0.5 * uniforms(COUNT), *drawn()[1:]))
    assert found.abs().max() < 1e-12


@pytest.mark.parametrize("source", ["teacher", "data"])
def test_near_points_are_compared_in_full_precision(source: Any) -> None:
    """Under autocast the two answers would differ by rounding alone, which is divided by a step of 2^-7."""
    process = Process(Cosine(T=None, clip=None))
    model = network(process).float()
    loss = taught(ConsistencyLoss(Consistency(source=source, first=7)), normal_data(process))
    draws = Draws(*(tensor.float() for tensor in drawn()))
    x0 = unit(COUNT, 2).float()
    plain = loss(model, x0, None, draws)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss(model, x0, None, draws), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", named(schedules))
def test_segments_share_the_process_out(schedule: Schedule) -> None:
    """No jump of a consistent student is left with nothing to do, whatever grid is usual."""
    process = Process(schedule)
    if process.schedule.T is None or process.schedule.T >= 100:
        levels = process.at(torch.tensor(Consistency(steps=3).student(process).times, dtype=torch.float64)).level
        assert len(levels) == 3 and float(levels[-1]) > 0.05 and bool((levels.diff() < 0).all())


def test_a_teacher_drops_nothing_and_learns_nothing() -> None:
    """Whatever mode it was handed over in."""
    process = Process(Cosine())
    model, teacher = dropping(network(process)), Teacher(Consistency())
    teacher.use(model)
    x, at = unit(4, 2), process.at(0.5).like(unit(4, 2))
    assert torch.equal(teacher(x, at, None).x0, teacher(x, at, None).x0)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


def pull(
    loss: Any, process: Process, answer: Callable[[Tensor, At], Tensor], student: Student, x0: Tensor, draws: Draws, off: float
) -> float:
    """The gradient of a loss along a shift of the right answer by `off`: positive where descent goes back to it."""
    shift = nn.Parameter(torch.full((2,), off, dtype=torch.float64))
    loss(Answering(process, lambda x, at: answer(x, at) + at.level * shift, student), x0, None, draws).mean().backward()
    assert shift.grad is not None
    return float((shift.grad * off).sum())


@pytest.mark.parametrize("method", [
    Consistency(), Consistency(source="data"), ContinuousConsistency(warmup=0.0), Consistency(steps=3), Consistency(source="data", steps=3),
    ContinuousConsistency(warmup=0.0, steps=3),
], ids=repr)  # fmt: skip
def test_from_beside_the_exact_map_descent_leads_back(method: Any) -> None:
    process = Process(Cosine(T=None, clip=None))
    bell, loss = Bell(process), taught(method.build(), Bell(process).exact)
    loss.advance(0.999)
    draws = Draws(0.1 + 0.8 * uniforms(4096, 5), unit(4096, 2, seed=6), unit(4096, 2, seed=7))
    student = method.student(process)
    for off in (0.3, -0.3):
        assert pull(loss, process, bell.jump(student.times), student, bell.data(4096), draws, off) > 0


def test_no_gradient_goes_through_the_nearby_point() -> None:
    process = Process(Straight())
    bell, asked = Bell(process), []
    loss = taught(ConsistencyLoss(Consistency()), bell.exact)

    def watched(x: Tensor, at: At) -> Tensor:
        asked.append(torch.is_grad_enabled())
        return bell.map(x, at)

    loss(Answering(process, watched), bell.data(COUNT), None, drawn())
    assert asked == [True, False]


def test_the_consistency_loss_is_the_distance_over_the_step_and_the_density() -> None:
    process = Process(Straight())
    loss = taught(ConsistencyLoss(Consistency(source="data", first=2, times=LogitNormal())), normal_data(process))
    draws = drawn()
    time, density = LogitNormal().draw(draws.u, process)
    t = process.at(time)
    s = below(process, t, process.clean, 0.25)
    found = loss(Answering(process, lambda x, at: at.level * torch.ones_like(x)), unit(COUNT, 2), None, draws)
    expected = (((t.level - s.level) ** 2 + 0.00054**2).sqrt() - 0.00054) / (t.level - s.level) / density
    inside = s.sigma > 0
    assert int(inside.sum()) > COUNT // 2
    torch.testing.assert_close(found[inside], expected[inside])


@pytest.mark.parametrize("schedule", named(schedules))
def test_landing_is_the_deterministic_step_read_backwards(schedule: Schedule) -> None:
    process = Process(schedule)
    times = torch.tensor([1.0, 0.6, 0.2, max(schedule.first, 0.01)], dtype=torch.float64)
    x_t, x0 = unit(3, 2, seed=1), unit(3, 2, seed=2)
    for t, s in pairwise(times):
        now, then = process.at(t), process.at(s)
        c_x0, c_eps, _ = process.implicit(then, now)
        x_s = c_x0 * x0 + c_eps * process.noise(x_t, x0, now)
        torch.testing.assert_close(process.landing(then, now, x_s, x_t), x0, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(process.landing(process.clean, process.at(0.5), x0, x_t), x0)
