"""Laws of distillation: every loss is at rest at its exact answer and leads there, found on data whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from members import named, schedules
from torch import Tensor, nn
from worlds import covariance, isotropic, normal_data, plain_codec, three_bumps, uniforms, unit

from ddpm.denoiser import Denoiser, EDMPreconditioning, Mixture, NetworkDenoiser, Prediction, Student, V, default_clock, gaussian
from ddpm.distillation import Consistency, ContinuousConsistency, Guidance, Matching, Progressive
from ddpm.distillation.consistency import ConsistencyLoss, below, heun
from ddpm.distillation.continuous import ContinuousLoss, along, network_output
from ddpm.distillation.matching import MatchingLoss
from ddpm.distillation.progressive import ProgressiveLoss, split, triple
from ddpm.distillation.teacher import Teacher
from ddpm.errors import ConfigError
from ddpm.guidance import ClassifierFree, Told
from ddpm.networks.config import CondSpec, MLPConfig
from ddpm.objective import Draws, LogitNormal
from ddpm.process import EDM, At, Cosine, Linear, Listed, Process, Schedule, Straight, Trailing
from ddpm.random import normals
from ddpm.sampling import DDIM, Adaptive, Ancestral, sample
from ddpm.sampling import Consistency as ConsistencySampler

COUNT = 64


class Answering(Denoiser):
    """A denoiser made of a function (x, at) -> x0."""

    def __init__(self, process: Process, answer: Callable[[Tensor, At], Tensor], student: Student | None = None) -> None:
        super().__init__()
        self.process, self.shape, self.answer = process, (2,), answer
        if student is not None:
            self.meaning, self.times = student.meaning, student.times

    def forward(self, x: Tensor, at: At, cond: Any = None) -> Prediction:
        """The answer, and the eps that goes with it."""
        x0 = self.answer(x, at)
        return Prediction(x0, self.process.noise(x, x0, at))

    def residual(self, at: At) -> Tensor:
        """Not known."""
        raise NotImplementedError


@dataclass
class Bell:
    """N(mean, covariance) in two dimensions, its denoiser, and the exact map: along the flow each coordinate of the basis keeps its z."""

    process: Process

    def __post_init__(self) -> None:
        self.mean, self.covariance = 0.5 * unit(2, seed=3), covariance(2, seed=4)
        self.exact = gaussian(self.process, self.mean, self.covariance)

    def map(self, x: Tensor, at: At) -> Tensor:
        """Where the flow through x ends."""
        values, basis = torch.linalg.eigh(self.covariance)
        alpha, sigma = (level.double().reshape(-1, 1) for level in (at.alpha, at.sigma))
        z = ((x.double() - alpha * self.mean) @ basis) / (alpha**2 * values + sigma**2).sqrt()
        return self.mean + (z * values.sqrt()) @ basis.T

    def data(self, count: int, seed: int = 0) -> Tensor:
        """Draws."""
        return self.exact.draw(unit(count, 2, seed=seed), torch.zeros(count, dtype=torch.long))


def drawn(count: int = COUNT, seed: int = 5) -> Draws:
    """All the randomness of a loss."""
    return Draws(uniforms(count, seed), unit(count, 2, seed=seed + 1), unit(count, 2, seed=seed + 2))


def taught(loss: Any, teacher: Denoiser) -> Any:
    """The loss with a teacher that is at hand."""
    loss.teacher.use(teacher)
    return loss


def network(process: Process, student: Student | None = None, *, seed: int = 0, **cond: Any) -> NetworkDenoiser:
    """A small network in float64, none of whose layers is zero."""
    torch.manual_seed(seed)
    net = MLPConfig(width=16, depth=1, dropout=0.0).build((2,), 1, CondSpec(**cond)).double()
    for name, parameter in net.named_parameters():
        if name.endswith(("layer2.weight", "head.weight")):
            nn.init.normal_(parameter, std=0.3)
    spec = CondSpec(**cond)
    return NetworkDenoiser(
        net, process, V(), default_clock(process.schedule), plain_codec(2), (2,), conditions=spec.keys, classes=spec.classes,
        guided=spec.guidance, student=student,
    )  # fmt: skip


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


@pytest.mark.parametrize("schedule", [Cosine(T=None, clip=None), Straight(), EDM(), Linear()], ids=repr)
def test_heun_follows_the_flow_to_second_order(schedule: Schedule) -> None:
    process = Process(schedule)
    bell, errors = Bell(process), []
    teacher = Teacher(Consistency())
    teacher.use(bell.exact)
    t = process.at_level(torch.full((COUNT,), 0.6, dtype=torch.float64))
    x = process.perturb(bell.data(COUNT), unit(COUNT, 2, seed=8), t.like(unit(COUNT, 2)))
    for gap in (0.2, 0.1, 0.05):
        s = below(process, t, gap)
        x_s = heun(teacher, process, x, t.like(x), s.like(x), None)
        errors.append(float((bell.map(x_s, s) - bell.map(x, t)).abs().max()))
    assert errors[0] / errors[1] > 5.5 and errors[1] / errors[2] > 5.5, errors  # third order in a single step


def test_the_nearby_instant_is_lower_in_level_and_ends_clean() -> None:
    process = Process(Cosine(T=None, clip=None))
    t = process.at(torch.tensor([1.0, 0.5, 1e-4], dtype=torch.float64))
    s = below(process, t, 0.25)
    torch.testing.assert_close(s.level[:2], 0.75 * t.level[:2], rtol=1e-9, atol=0)
    assert below(process, t, 1.0).sigma.abs().max() == 0.0 and below(process, t, 1.0).alpha.tolist() == [1.0] * 3
    least = process.at(process.schedule.first).level
    assert all(level >= least or level == 0 for level in s.level.tolist())


@pytest.mark.parametrize("schedule", [Cosine(T=None, clip=None), Straight(), EDM()], ids=repr)
def test_the_exact_map_has_almost_no_consistency_loss(schedule: Schedule) -> None:
    process = Process(schedule)
    bell = Bell(process)
    loss = taught(ConsistencyLoss(Consistency()), bell.exact)
    loss.advance(0.999)  # the last stage: s is next to t
    student = Consistency().student(process)
    inside = Draws(0.05 + 0.9 * uniforms(COUNT, 5), *drawn()[1:])
    exact = loss(Answering(process, bell.map, student), bell.data(COUNT), None, inside)
    wrong = loss(Answering(process, lambda x, at: bell.map(x, at) * (1 + 0.1 * at.level), student), bell.data(COUNT), None, inside)
    assert exact.mean() < 1e-3 * wrong.mean(), (exact.mean(), wrong.mean())


def test_the_gap_is_halved_from_stage_to_stage() -> None:
    loss = ConsistencyLoss(Consistency(stages=3, first=1))
    gaps = []
    for share in (0.0, 0.32, 0.34, 0.7, 0.999):
        loss.advance(share)
        gaps.append(loss.gap)
    assert gaps == [0.5, 0.5, 0.25, 0.125, 0.125]


def test_the_first_stage_regresses_the_data() -> None:
    """With s = 0 the target is the end of a single Euler step of the teacher: its mean; from data, the data themselves."""
    process = Process(Straight())
    bell = Bell(process)
    for settings, wanted in ((Consistency(first=0), None), (Consistency(source="data", first=0), bell.data(COUNT))):
        loss = taught(ConsistencyLoss(settings), bell.exact)
        draws = drawn()
        at = process.at(draws.u, like=draws.eps)
        x = process.perturb(bell.data(COUNT), draws.eps, at)
        expected = bell.exact(x, at).x0 if wanted is None else wanted
        s = below(process, process.at(draws.u), loss.gap).like(x)
        found = loss.target(Answering(process, bell.map), bell.data(COUNT), x, at, s, None, draws.eps)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_both_calls_drop_the_same() -> None:
    """A network that drops half of what it knows has no consistency loss at the same point: the masks are those of the first call."""
    process = Process(Straight())

    def dropping(x: Tensor, at: At) -> Tensor:
        return torch.nn.functional.dropout(torch.ones_like(x), 0.5, training=True)

    loss = taught(ConsistencyLoss(Consistency(source="data")), normal_data(process))
    found = loss(Answering(process, dropping), unit(COUNT, 2), None, Draws(0.5 + 0.5 * uniforms(COUNT), *drawn()[1:]))
    assert found.abs().max() < 1e-12


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
    _, change = along(model, process.perturb(x0, eps, at), at, None, rates[1] * x0 + rates[2] * eps, rates)
    phi, h = process.at(t).ratio.atan(), 1e-6
    expected = (output(phi + h) - output(phi - h)) / (2 * h) * at.alpha * at.sigma
    torch.testing.assert_close(change, expected.detach(), rtol=1e-5, atol=1e-6)


def test_the_exact_map_is_at_rest_in_continuous_time() -> None:
    """On the flow of its teacher the exact map does not change, so the tangent is zero; of a map that is off it points back."""
    process = Process(Cosine(T=None, clip=None))
    bell = Bell(process)
    loss = taught(ContinuousLoss(ContinuousConsistency(warmup=0.0)), bell.exact)
    loss.advance(0.0)
    at = process.at(0.1 + 0.8 * uniforms(COUNT, 5), like=unit(COUNT, 2))
    x0, eps = bell.data(COUNT), unit(COUNT, 2, seed=6)
    x = process.perturb(x0, eps, at)
    rest = loss.tangent(Answering(process, bell.map), x0, x, at, None, eps)
    assert rest.abs().max() < 1e-6
    mean = loss.tangent(bell.exact, x0, x, at, None, eps)  # the teacher itself, which is no map
    gap = (at.alpha * x - bell.map(x, at)) / at.sigma - network_output(bell.exact, x, at, None)  # F of the map less F of the mean
    assert (mean * gap).sum() > 0.3 * mean.norm() * gap.norm()


def test_continuous_time_wants_v_on_the_circle() -> None:
    for process, kind in ((Process(Straight()), V()), (Process(Cosine()), EDMPreconditioning(sigma_data=1.0))):
        model = Answering(process, lambda x, at: x)
        model.parameterization = kind
        with pytest.raises(ConfigError, match="alpha\\^2 \\+ sigma\\^2"):
            ContinuousLoss(ContinuousConsistency())(model, unit(4, 2), None, drawn(4))


def test_a_generator_of_the_teachers_density_is_not_moved_and_another_is_moved_there() -> None:
    process = Process(Cosine(T=None, clip=None))
    bell, settings = Bell(process), Matching(steps=1)
    student = settings.student(process)
    for shift in (0.0, 0.7):
        made = nn.Parameter(bell.data(COUNT) + shift)
        generator = Answering(process, lambda x, at, made=made: made, student)
        loss = MatchingLoss(settings)
        loss.teacher.use(bell.exact)
        loss.fake = gaussian(process, bell.mean + shift, bell.covariance)  # what it makes, exactly
        loss(generator, bell.data(COUNT), None, drawn()).sum().backward()
        assert made.grad is not None
        if shift:
            assert (made.grad > 0).all(), "down the gradient is towards the teacher"
        else:
            assert made.grad.abs().max() < 1e-12


def test_the_second_network_learns_of_the_samples_and_the_generator_of_neither_loss_but_its_own() -> None:
    process, settings = Process(Cosine(T=None, clip=None)), Matching(steps=1)
    model = network(process, settings.student(process))
    loss = MatchingLoss(settings)
    loss.use(normal_data(process), network(process, seed=1))
    loss(model, unit(8, 2), None, drawn(8)).sum().backward()
    assert loss.fake is not None
    for learner in (loss.fake, model):
        heads = [parameter.grad for name, parameter in learner.named_parameters() if name.endswith("head.weight")]
        assert len(heads) == 1 and heads[0] is not None and heads[0].abs().sum() > 0
    alone = MatchingLoss(settings)
    alone.use(normal_data(process), network(process, seed=1))
    at = process.at(torch.tensor(model.times, dtype=torch.float64), like=unit(1, 2))
    made = model(process.prior(drawn(8).eps, at), at).x0.detach()
    alone(Answering(process, lambda x, at: made, settings.student(process)), unit(8, 2), None, drawn(8)).sum().backward()
    assert alone.fake is not None
    for together, by_itself in zip(loss.fake.parameters(), alone.fake.parameters(), strict=True):
        torch.testing.assert_close(together.grad, by_itself.grad)


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


def test_a_mean_is_refused_by_the_sampler_of_maps() -> None:
    with pytest.raises(ConfigError, match="distilled"):
        sample(isotropic(Process(Cosine()), 0.5), 2, sampler=ConsistencySampler())


@pytest.mark.parametrize("times", [(), (0.5, 0.5), (0.2, 0.4), (1.2,), (0.5, 0.0)])
def test_a_student_that_steps_knows_its_instants(times: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="times"):
        Student(method="a test", meaning="step", times=times)
    with pytest.raises(ConfigError, match="fine"):
        Progressive(fine=(1.0, 0.5, 0.25))


def pull(
    loss: Any, process: Process, answer: Callable[[Tensor, At], Tensor], student: Student, x0: Tensor, draws: Draws, off: float
) -> float:
    """The gradient of a loss along a shift of the right answer by `off`: positive where descent goes back to it."""
    shift = nn.Parameter(torch.full((2,), off, dtype=torch.float64))
    loss(Answering(process, lambda x, at: answer(x, at) + at.level * shift, student), x0, None, draws).mean().backward()
    assert shift.grad is not None
    return float((shift.grad * off).sum())


@pytest.mark.parametrize("method", [Consistency(), Consistency(source="data"), ContinuousConsistency(warmup=0.0)], ids=repr)
def test_from_beside_the_exact_map_descent_leads_back(method: Any) -> None:
    process = Process(Cosine(T=None, clip=None))
    bell, loss = Bell(process), taught(method.build(), Bell(process).exact)
    loss.advance(0.999)
    draws = Draws(0.1 + 0.8 * uniforms(4096, 5), unit(4096, 2, seed=6), unit(4096, 2, seed=7))
    for off in (0.3, -0.3):
        assert pull(loss, process, bell.map, method.student(process), bell.data(4096), draws, off) > 0


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
    s = below(process, t, 0.25)
    found = loss(Answering(process, lambda x, at: at.level * torch.ones_like(x)), unit(COUNT, 2), None, draws)
    expected = (((t.level - s.level) ** 2 + 0.00054**2).sqrt() - 0.00054) / (t.level - s.level) / density
    inside = s.sigma > 0
    assert int(inside.sum()) > COUNT // 2
    torch.testing.assert_close(found[inside], expected[inside])


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


def test_the_second_network_is_at_rest_when_it_knows_what_is_made() -> None:
    """Its loss is that of a denoiser of the generator's samples: the exact one has no gradient in expectation, another one has."""
    process, settings = Process(Cosine(T=None, clip=None)), Matching(steps=3)
    bell, student, count = Bell(process), settings.student(process), 20_000
    assert len(student.times) == 3
    made, sizes = bell.data(count, seed=11), []
    for off in (0.0, 0.2):
        gain = nn.Parameter(torch.full((2,), 1.0 + off, dtype=torch.float64))
        loss = MatchingLoss(settings)
        loss.teacher.use(bell.exact)
        loss.fake = Answering(process, lambda x, at, gain=gain: bell.exact(x, at).x0 * gain)
        loss(Answering(process, lambda x, at: made, student), bell.data(count), None, drawn(count)).mean().backward()
        assert gain.grad is not None
        sizes.append(float(gain.grad.sum()))
    assert abs(sizes[0]) < 0.05 * sizes[1], sizes


def test_the_generator_begins_with_noise_and_goes_on_from_data() -> None:
    process, settings = Process(Cosine(T=None, clip=None)), Matching(steps=3)
    student = settings.student(process)
    handed: list[tuple[Tensor, At]] = []

    def watched(x: Tensor, at: At) -> Tensor:
        handed.append((x, at))
        return torch.zeros_like(x)

    loss = MatchingLoss(settings)
    loss.teacher.use(normal_data(process))
    loss.fake = normal_data(process)
    draws, x0 = drawn(), unit(COUNT, 2) + 5.0
    loss(Answering(process, watched, student), x0, None, draws)
    x, at = handed[0]
    first = (at.t.flatten() - student.times[0]).abs() < 1e-9
    assert 0 < int(first.sum()) < COUNT
    torch.testing.assert_close(x[first], process.prior(draws.eps, at)[first])
    torch.testing.assert_close(x[~first], process.perturb(x0, draws.eps, at)[~first])


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


def test_the_generator_follows_the_normalised_difference_of_the_two_at_instants_of_the_whole_range() -> None:
    """Its gradient is (x0_fake - x0_teacher) over the mean of |made - x0_teacher|, an entry, at t even in [low, high]."""
    process, settings = Process(Cosine(T=None, clip=None)), Matching(low=0.1, high=0.9)
    bell, draws = Bell(process), drawn()
    made = nn.Parameter(bell.data(COUNT, seed=11))
    asked: list[tuple[Tensor, At]] = []

    def teacher(x: Tensor, at: At) -> Tensor:
        asked.append((x, at))
        return bell.exact(x, at).x0

    loss = MatchingLoss(settings)
    loss.teacher.use(Answering(process, teacher))
    loss.fake = three_bumps(process)
    loss(Answering(process, lambda x, at: made, settings.student(process)), bell.data(COUNT), None, draws).sum().backward()
    x, at = asked[0]
    torch.testing.assert_close(at.t.flatten(), 0.1 + 0.8 * draws.u)
    torch.testing.assert_close(x, process.perturb(made.detach(), draws.z, at))
    real = bell.exact(x, at).x0
    size = (made.detach() - real).abs().mean(1, keepdim=True)
    torch.testing.assert_close(made.grad, (three_bumps(process)(x, at).x0 - real) / size / 2)
