"""Laws of the other students: progressive and guided, how they are walked, and what their samples are like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pupils import COUNT, Answering, Bell, drawn, network, taught
from torch import Tensor, nn
from torch.testing import assert_close
from worlds import isotropic, normal_data, three_bumps, unit

from ddpm.denoiser import Denoiser, Mixture, Prediction, Student
from ddpm.distillation import Consistency, Guidance, Progressive
from ddpm.distillation.progressive import ProgressiveLoss, split, triple
from ddpm.distillation.teacher import Teacher
from ddpm.errors import ConfigError
from ddpm.guidance import ClassifierFree, Told
from ddpm.objective import Draws
from ddpm.objective.times import UniformTimes
from ddpm.process import At, Cosine, Listed, Process, Straight, Trailing
from ddpm.random import normals
from ddpm.sampling import DDIM, Adaptive, Ancestral, sample
from ddpm.sampling import Consistency as ConsistencySampler


@pytest.mark.parametrize("teacher", [normal_data, three_bumps])
def test_a_progressive_student_that_lands_where_two_steps_do_has_no_loss(teacher: Callable[[Process], Mixture]) -> None:
    process = Process(Cosine())
    fine = tuple(Trailing().times(process, 8).tolist())
    settings = Progressive(fine=fine)
    loss = taught(ProgressiveLoss(settings), teacher(process))
    student = settings.student(process)
    assert student.times == tuple(Trailing().times(process, 4).tolist()) and student.meaning == "step"

    def two(x: Tensor, at: At) -> Tensor:
        first = DDIM().plan(teacher(process).bind(), torch.tensor(fine, dtype=torch.float64))
        out = torch.empty_like(x)
        for i, t in enumerate(at.t.flatten().tolist()):
            k = min(range(8), key=lambda k: abs(fine[k] - t))
            here, rows = x[i : i + 1], first.rows(x)[k : k + 2]
            for row in rows:
                here, _, _ = DDIM().step(teacher(process).bind(), here, row, (), None)
            end = rows[-1].next
            out[i] = process.landing(end, rows[0].now, here, x[i : i + 1])[0]
        return out

    x0 = unit(COUNT, 2)
    at_rest = loss(Answering(process, two, student), x0, None, drawn())
    elsewhere = loss(Answering(process, lambda x, at: two(x, at) + 0.1, student), x0, None, drawn())
    assert at_rest.abs().max() < 1e-12 and elsewhere.min() >= 0.01 - 1e-9


def test_pairs_are_drawn_evenly_and_the_last_ends_clean() -> None:
    process = Process(Straight())
    fine = (1.0, 0.75, 0.5, 0.25)
    which, cond = split(torch.tensor([0.0, 0.25, 0.5, 0.99], dtype=torch.float64), 2, None, 8.0)
    assert which.tolist() == [0, 0, 1, 1]
    assert cond is not None
    torch.testing.assert_close(cond["guidance"], torch.tensor([1.0, 4.5, 1.0, 7.86]))
    t, middle, s = triple(process, fine, which)
    assert t.t.tolist() == [1.0, 1.0, 0.5, 0.5] and middle.t.tolist() == [0.75, 0.75, 0.25, 0.25]
    assert s.t.tolist() == [0.5, 0.5, 0.0, 0.0] and s.sigma.tolist()[-1] == 0.0


def test_student_and_teacher_are_told_the_same_scale_where_the_teacher_was_told_one() -> None:
    """Of every sample another one, from 1 to the largest; none where the teacher knows none."""
    process, told = Process(Straight()), dict[str, list[Any]]()

    class Watched(Answering):
        """Keeps what it is told."""

        def __init__(self, name: str) -> None:
            super().__init__(process, lambda x, at: torch.zeros_like(x))
            self.name = name

        def forward(self, x: Tensor, at: At, cond: Any = None) -> Prediction:
            told.setdefault(self.name, []).append((cond or {}).get("guidance"))
            return super().forward(x, at, cond)

    for most in (4.0, 1.0):
        told.clear()
        loss = taught(ProgressiveLoss(Progressive(fine=(1.0, 0.75, 0.5, 0.25), told=most)), Watched("teacher"))
        loss(Watched("student"), unit(COUNT, 2), {"class": torch.zeros(COUNT, dtype=torch.long)}, drawn())
        scales = [*told["teacher"], *told["student"]]
        assert len(scales) == 3
        if most == 1.0:
            assert scales == [None] * 3
            continue
        assert all(torch.equal(scale, scales[0]) for scale in scales)
        assert scales[0].min() >= 1.0 and scales[0].max() <= most and scales[0].max() - scales[0].min() > 2.0


def test_students_walk_their_own_instants_to_the_teachers_end() -> None:
    """A chain of exact jumps between four instants is the teacher's walk over eight, whatever is asked for by name or not at all."""
    process = Process(Cosine())
    exact = three_bumps(process)
    wide = sample(exact, 32, steps=8, sampler=DDIM(), dtype=torch.float64)
    fine = tuple(Trailing().times(process, 8).tolist())

    def jump(x: Tensor, at: At) -> Tensor:
        pair = torch.tensor([min(range(4), key=lambda k: abs(fine[2 * k] - float(at.t)))])
        t, middle, s = (one.like(x) for one in triple(process, fine, pair))
        return taught(ProgressiveLoss(Progressive(fine=fine)), exact).landed(process, x, t, middle, s, None)

    student = Answering(process, jump, Progressive(fine=fine).student(process))
    torch.testing.assert_close(sample(student, 32, dtype=torch.float64), wide, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(sample(student, 32, steps=4, sampler=DDIM(), dtype=torch.float64), wide, rtol=1e-8, atol=1e-8)
    refused: list[dict[str, Any]] = [
        {"steps": 3},
        {"steps": 4, "grid": Listed(at=(1.0, 0.5, 0.3, 0.1))},
        {"sampler": Ancestral()},
        {"sampler": DDIM(eta=1.0)},
    ]
    for wrong in refused:
        with pytest.raises(ConfigError):
            sample(student, 2, **wrong)


def test_a_student_that_says_what_guidance_says_has_no_loss() -> None:
    process = Process(Cosine())
    teacher = network(process, classes=3)

    class Learned(Denoiser):
        """What guidance by the scale it is told says."""

        def __init__(self) -> None:
            super().__init__()
            self.process, self.shape = process, (2,)

        def forward(self, x: Tensor, at: At, cond: Any = None) -> Prediction:
            parts = []
            for i in range(len(x)):
                one = {key: value[i : i + 1] for key, value in cond.items()}
                level = At(*(value[i : i + 1] for value in at))
                parts.append(ClassifierFree(teacher, float(one.pop("guidance")))(x[i : i + 1], level, one))
            return Prediction(torch.cat([p.x0 for p in parts]), torch.cat([p.eps for p in parts]))

        def residual(self, at: At) -> Tensor:
            raise NotImplementedError

    from ddpm.distillation.guidance import GuidanceLoss

    loss = taught(GuidanceLoss(Guidance(most=5.0)), teacher)
    cond = {"class": torch.arange(COUNT) % 3}
    assert loss(Learned(), unit(COUNT, 2), cond, drawn()).abs().max() < 1e-9
    assert loss(teacher, unit(COUNT, 2), cond, drawn()).mean() > 1e-6  # it knows no guidance
    x0, draws, off = unit(COUNT, 2), drawn(), 0.1

    class Off(Learned):
        """x0 off by 0.1 everywhere."""

        def forward(self, x: Tensor, at: At, cond: Any = None) -> Prediction:
            said = super().forward(x, at, cond)
            return Prediction(said.x0 + off, self.process.noise(x, said.x0 + off, at))

    t, _ = UniformTimes().draw(((draws.u * 2**24).long().double() + 0.5) / 2**24, process)
    snr = process.log_snr(t).exp()
    assert_close(loss(Off(), x0, cond, draws), off**2 * snr.clamp(min=1.0), rtol=1e-6, atol=0.0)
    with pytest.raises(ConfigError, match="no condition"):
        loss(teacher, unit(4, 2), None, drawn(4))


def test_a_network_that_is_told_a_scale_begins_as_its_teacher_and_one_is_none() -> None:
    process = Process(Cosine())
    teacher, student = network(process, classes=3), network(process, classes=3, guidance=True)
    student.network.load_state_dict(teacher.network.state_dict(), strict=False)
    x, at, cond = unit(4, 2), process.at(0.5), {"class": torch.arange(4) % 3}
    for scale in (1.0, 3.0):
        torch.testing.assert_close(Told(student, scale)(x, at.like(x), cond).x0, teacher(x, at.like(x), cond).x0)
    nn.init.normal_(dict(student.named_parameters())["network.embed.guidance.weight"])
    torch.testing.assert_close(student(x, at.like(x), cond).x0, teacher(x, at.like(x), cond).x0)
    torch.testing.assert_close(Told(student, 1.0)(x, at.like(x), cond).x0, teacher(x, at.like(x), cond).x0)
    assert (Told(student, 3.0)(x, at.like(x), cond).x0 - teacher(x, at.like(x), cond).x0).abs().max() > 1e-3
    with pytest.raises(ConfigError, match="not told"):
        Told(teacher, 2.0)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_samples_of_an_exact_map_have_the_datas_mean_and_covariance(steps: int) -> None:
    """On a Gaussian a step of the sampler is affine in x and z: its law is followed exactly, from that of the data at t = 1."""
    process = Process(Cosine(T=None, clip=None))
    bell = Bell(process)
    student = Answering(process, bell.map, Student(method="exact", meaning="map"))
    plan = ConsistencySampler().plan(student.bind(), Trailing().times(process, steps))
    noisiest = process.at(1.0)
    mean = noisiest.alpha * bell.mean[None]
    root = torch.linalg.cholesky(noisiest.alpha**2 * bell.covariance + noisiest.sigma**2 * torch.eye(2, dtype=torch.float64))

    def push(row: Any, x: Tensor, z: Tensor) -> Tensor:
        return ConsistencySampler().step(student.bind(), x, row, (), z)[0]

    for row in plan.rows(mean):
        zero = torch.zeros_like(mean)
        base = push(row, zero, zero)
        of_x = torch.cat([push(row, one[None], zero) - base for one in torch.eye(2, dtype=torch.float64)])
        of_z = torch.cat([push(row, zero, one[None]) - base for one in torch.eye(2, dtype=torch.float64)])
        mean = push(row, mean, zero)
        root = torch.linalg.cholesky((of_x.T @ root @ root.T @ of_x) + of_z.T @ of_z)
    torch.testing.assert_close(mean[0], bell.mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(root @ root.T, bell.covariance, rtol=0, atol=1e-9)


def test_one_step_of_a_map_is_the_end_of_the_trajectory() -> None:
    process = Process(Cosine(T=None, clip=None))
    bell = Bell(process)
    start = normals(0, range(16), (2,), "start", dtype=torch.float64)
    ended = sample(bell.exact, 16, sampler=Adaptive(rtol=1e-8, atol=1e-8), start=start, dtype=torch.float64)
    student = Answering(process, bell.map, Student(method="exact", meaning="map"))
    torch.testing.assert_close(sample(student, 16, start=start, dtype=torch.float64), ended, rtol=0, atol=2e-4)


def test_a_consistent_student_of_several_steps_walks_to_the_end_of_the_trajectory() -> None:
    """From segment to segment along the flow, exactly."""
    process = Process(Cosine(T=None, clip=None))
    bell, made = Bell(process), Consistency(steps=3).student(process)
    start = normals(0, range(16), (2,), "start", dtype=torch.float64)
    wanted = bell.map(start, process.at(torch.ones(16, dtype=torch.float64), like=start))
    torch.testing.assert_close(sample(Answering(process, bell.jump(made.times), made), 16, start=start, dtype=torch.float64), wanted)


def test_a_mean_is_refused_by_the_sampler_of_maps() -> None:
    with pytest.raises(ConfigError, match="distilled"):
        sample(isotropic(Process(Cosine()), 0.5), 2, sampler=ConsistencySampler())


@pytest.mark.parametrize("times", [(), (0.5, 0.5), (0.2, 0.4), (1.2,), (0.5, 0.0)])
def test_a_student_that_steps_knows_its_instants(times: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="times"):
        Student(method="a test", meaning="step", times=times)
    with pytest.raises(ConfigError, match="fine"):
        Progressive(fine=(1.0, 0.5, 0.25))


def test_the_truncated_weight_is_that_of_the_larger_error() -> None:
    """max(SNR, 1) |x0 - x0_hat|^2: at much noise that of x0, at little that of eps."""
    process = Process(Straight())
    fine = (0.9, 0.6, 0.2, 0.1)
    settings = Progressive(fine=fine)
    loss = taught(ProgressiveLoss(settings), normal_data(process))
    draws = Draws(torch.tensor([0.2, 0.7], dtype=torch.float64), *drawn(2)[1:])
    x0 = unit(2, 2)
    t, middle, s = (at.like(x0) for at in triple(process, fine, torch.tensor([0, 1])))
    right = loss.landed(process, process.perturb(x0, draws.eps, t), t, middle, s, None)
    found = loss(Answering(process, lambda x, at: right + 0.1, settings.student(process)), x0, None, draws)
    torch.testing.assert_close(found, 0.01 * t.log_snr.exp().clamp(min=1.0).flatten(), rtol=1e-6, atol=0)


def test_the_teacher_is_asked_under_its_guidance() -> None:
    process = Process(Cosine())
    plain = network(process, classes=3)
    teacher = Teacher(Consistency(guidance=2.5))
    teacher.use(plain)
    x, at = unit(4, 2), process.at(0.5).like(unit(4, 2))
    cond = {"class": torch.tensor([0, 1, 2, 0]), "null": torch.tensor([False, False, True, False])}
    torch.testing.assert_close(teacher(x, at, cond).x0, ClassifierFree(plain, 2.5)(x, at, cond).x0)
    assert (teacher(x, at, cond).x0 - plain(x, at, cond).x0).abs().max() > 1e-3
    torch.testing.assert_close(teacher(x, at, None).x0, plain(x, at, None).x0)
