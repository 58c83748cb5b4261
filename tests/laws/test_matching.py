"""Laws of matching: its generator is at rest at the teacher's density and led there, its second network at what is made."""

from __future__ import annotations

import pytest
import torch
from pupils import COUNT, Answering, Bell, drawn, network
from torch import Tensor, nn
from torch.testing import assert_close
from worlds import normal_data, three_bumps, unit

from ddpm.denoiser import Base, gaussian
from ddpm.distillation import Matching
from ddpm.distillation.matching import MatchingLoss
from ddpm.networks.mlp import MLPBlock
from ddpm.process import At, Cosine, Process


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


def test_the_second_network_drops_nothing() -> None:
    """Also while the loss is in training mode: its answer moves the generator."""
    process = Process(Cosine())
    fake = network(process)
    for part in fake.modules():
        if isinstance(part, MLPBlock):
            part.dropout = 0.5
    loss = MatchingLoss(Matching())
    loss.use(normal_data(process), fake.train())
    x, at = unit(4, 2), process.at(0.5).like(unit(4, 2))
    for mode in (True, False, True):
        loss.train(mode)
        assert loss.fake is not None and loss.training == mode
        assert torch.equal(loss.fake(x, at).x0, loss.fake(x, at).x0)


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


@pytest.mark.parametrize("steps", [1, 3])
def test_the_generator_follows_the_normalised_difference_of_the_two_at_instants_of_the_whole_range(steps: int) -> None:
    """Its gradient is (x0_fake - x0_teacher) over the mean of |made - x0_teacher|, an entry, at t even in [low, high] whatever its step."""
    process, settings = Process(Cosine(T=None, clip=None)), Matching(low=0.1, high=0.9, steps=steps)
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
    torch.testing.assert_close(at.t.flatten(), 0.1 + 0.8 * (steps * draws.u % 1.0))
    torch.testing.assert_close(x, process.perturb(made.detach(), draws.z, at))
    real = bell.exact(x, at).x0
    size = (made.detach() - real).abs().mean(1, keepdim=True)
    torch.testing.assert_close(made.grad, (three_bumps(process)(x, at).x0 - real) / size / 2)


def test_a_generator_begins_at_the_noise_over_signal_it_is_told() -> None:
    """And its other instants are even in the level from there down."""
    process = Process(Cosine(T=None, clip=None))
    times = torch.tensor(Matching(steps=4, begin=2.5).instants(process), dtype=torch.float64)
    at = process.at(times)
    assert_close(at.ratio[0], torch.tensor(2.5, dtype=torch.float64))
    assert_close(at.level, torch.tensor([4, 3, 2, 1], dtype=torch.float64) / 4 * 2.5 / 3.5)


def test_on_a_chain_a_generator_stands_at_its_knots() -> None:
    """The nearest ones, each once, the first not below 1/T."""
    T = 20
    process, whole = Process(Cosine(T=T)), Process(Cosine(T=None, clip=None))
    times = Matching(steps=4, begin=2.5).instants(process)
    between = Matching(steps=4, begin=2.5).instants(whole)
    assert all(float(time * T).is_integer() for time in times)
    assert max(abs(a - b) for a, b in zip(times, between, strict=True)) <= 0.5 / T + 0.02  # the levels of the two schedules differ a little
    crowded = Matching(steps=60, begin=2.5).instants(process)
    assert len(crowded) < 60 and len(set(crowded)) == len(crowded) and list(crowded) == sorted(crowded, reverse=True)
    assert min(crowded) == 1 / T


def test_the_second_network_leaves_what_it_does_not_learn_to_the_first() -> None:
    """An autoencoder or a base is no part of its state; what it says is what the denoiser it began as says."""
    process = Process(Cosine())
    small = network(process)
    denoiser = network(process)
    denoiser.stand_on(Base(small, {}, 1.0, 0.1))
    loss = MatchingLoss(Matching())
    loss.use(normal_data(process), denoiser)
    assert loss.fake is not None and not any(name.startswith("fake.base") for name in loss.state_dict())
    x, at = unit(4, 2), process.at(torch.full((4,), 0.5), like=unit(4, 2))
    low = {"low": unit(4, 2), "low_noise": torch.zeros(4)}
    assert torch.equal(loss.fake(x, at, low).x0, denoiser(x, at, low).x0) and denoiser.base_denoiser is small
