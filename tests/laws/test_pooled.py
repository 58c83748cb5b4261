"""Laws of the batch's mean: what it says of each row, that it is right on average in batches of any size, and nearer to the truth."""

from __future__ import annotations

import pytest
import torch
from members import named, schedules
from pupils import Bell, network
from torch import Tensor
from torch.testing import assert_close
from worlds import uniforms, unit

from ddpm.denoiser import Cond
from ddpm.distillation import Consistency, ContinuousConsistency
from ddpm.distillation.consistency import ConsistencyLoss, below
from ddpm.distillation.continuous import ContinuousLoss
from ddpm.distillation.pooled import MOST, pooled
from ddpm.distillation.segments import segment_end
from ddpm.process import At, Cosine, Process, Schedule

COUNT = 1000


def levels(process: Process, count: int) -> At:
    """Instants of `count` rows, the ends among them."""
    times = process.schedule.first + (1.0 - process.schedule.first) * uniforms(count, seed=9)
    times[0], times[-1] = process.schedule.first, 1.0
    return process.at(times).like(unit(count, 2))


@pytest.mark.parametrize("schedule", named(schedules))
def test_it_is_the_mean_of_the_rows_by_their_density(schedule: Schedule) -> None:
    """sum_j w_ij x0_j with w_ij ~ exp(-|x_i - alpha_i x0_j|^2/(2 sigma_i^2)), and eps is what is left of x."""
    process = Process(schedule)
    x0, eps, at = unit(20, 2, seed=1), unit(20, 2, seed=2), levels(process, 20)
    x = process.perturb(x0, eps, at)
    found, noise = pooled(x0, eps, at, None)
    squares = (x[:, None] - at.alpha[:, None] * x0).square().sum(2)
    assert_close(found, (-squares / (2.0 * at.sigma**2)).softmax(1) @ x0, rtol=1e-9, atol=1e-9)
    assert_close(process.perturb(found, noise, at), x, rtol=1e-9, atol=1e-9)


def test_only_rows_of_the_same_condition_count() -> None:
    process = Process(Cosine())
    x0, eps, at = unit(6, 2, seed=1), unit(6, 2, seed=2), process.at(torch.full((6,), 0.7, dtype=torch.float64)).like(unit(6, 2))
    kinds = torch.tensor([0, 1, 0, 1, 0, 2])
    hidden, vector = torch.tensor([False, True, False, False, True, False]), torch.zeros(6, 3, 2)
    vector[4, 0, 0] = 1.0
    found, noise = pooled(x0, eps, at, {"class": kinds, "null": hidden, "vector": vector})  # rows 1 and 4: nothing is told of them
    for rows in ([0, 2], [1, 4], [3], [5]):
        alone = pooled(x0[rows], eps[rows], At(*(level[rows] for level in at)), None)
        assert_close((found[rows], noise[rows]), alone)
    assert torch.equal(found[[3, 5]], x0[[3, 5]]), "a row that is alone is itself"
    vector[2, 1, 1] = 1e-6
    assert torch.equal(pooled(x0, eps, at, {"class": kinds, "vector": vector})[0][[0, 2]], x0[[0, 2]])
    large = 2**24 + torch.tensor([0, 1, 2, 3, 4, 5])  # alike in float32
    assert torch.equal(pooled(x0, eps, at, {"class": large})[0], x0)
    for key, seen in (("augment", unit(6, 9)), ("low", unit(6, 2)), ("mask", torch.eye(6) > 0)):  # of hidden rows, too
        assert torch.equal(pooled(x0, eps, at, {"null": torch.ones(6, dtype=torch.bool), key: seen})[0], x0)


def test_many_rows_are_compared_some_at_a_time() -> None:
    process = Process(Cosine())
    x0, eps, at = unit(MOST + 3, 2, seed=1), unit(MOST + 3, 2, seed=2), levels(process, MOST + 3)
    kinds = torch.arange(MOST + 3) % 3
    found = pooled(x0, eps, at, {"class": kinds})
    for rows in (slice(0, MOST), slice(MOST, MOST + 3)):
        assert_close([part[rows] for part in found], list(pooled(x0[rows], eps[rows], at.take(rows), {"class": kinds[rows]})))


def test_both_losses_follow_the_rows_of_a_samples_own_condition() -> None:
    """Each class by itself gives the same targets as both in one batch; as one class they would be others."""
    process = Process(Cosine(T=None, clip=None))
    kinds, x0, eps = torch.arange(40) % 2, unit(40, 2, seed=1), unit(40, 2, seed=2)
    x0 = x0 + 4.0 * kinds[:, None]
    model = network(process, classes=2)
    finite, limit = ConsistencyLoss(Consistency(source="data")), ContinuousLoss(ContinuousConsistency(source="data"))

    def targets(rows: Tensor, cond: Cond) -> list[Tensor]:
        t = process.at(torch.full((len(rows),), 0.9, dtype=torch.float64))
        end = segment_end(process, (), t.t)
        s, t, end = (at.like(x0) for at in (below(process, t, end, 0.5), t, end))
        given = x0[rows], process.perturb(x0[rows], eps[rows], t)
        return [finite.target(model, *given, t, s, end, cond, eps[rows]), limit.tangent(model, *given, t, end, cond, eps[rows])]

    together = targets(torch.arange(40), {"class": kinds})
    for kind in (0, 1):
        rows = (kinds == kind).nonzero().flatten()
        assert_close([found[rows] for found in together], targets(rows, {"class": kinds[rows]}))
    mixed = targets(torch.arange(40), {"class": torch.zeros_like(kinds)})
    assert all((one - other)[kinds == 0].abs().max() > 1e-3 for one, other in zip(together, mixed, strict=True))


@pytest.mark.parametrize("size", [2, 5, COUNT])
def test_it_is_right_on_average_and_nearer_to_the_truth(size: int) -> None:
    """In batches of two already: its mean given x_t is E[x0 | x_t], tried by functions of x_t; its error is less than that of a row."""
    process = Process(Cosine(T=None, clip=None))
    bell = Bell(process)
    x0, eps, at = bell.data(COUNT, seed=21), unit(COUNT, 2, seed=22), levels(process, COUNT)
    x = process.perturb(x0, eps, at)
    found = pooled(x0, eps, at, {"class": torch.arange(COUNT) // size})[0]
    truth = bell.exact(x, at).x0
    for tried in (torch.ones_like(x), x, x.flip(1), x.square(), at.t.expand_as(x)):
        moments = ((found - truth) * tried).sum(1).reshape(-1, size).sum(1)  # rows of a batch share its data
        if len(moments) > 1:
            assert abs(float(moments.mean())) < 4.0 * float(moments.std()) / len(moments) ** 0.5
    errors = [float((which - truth).square().mean().sqrt()) for which in (found, x0)]
    assert errors[0] < {2: 0.9, 5: 0.7, COUNT: 0.25}[size] * errors[1], errors


def test_autocast_does_not_round_it() -> None:
    process = Process(Cosine())
    x0, eps, at = unit(8, 2, seed=1).float(), unit(8, 2, seed=2).float(), levels(process, 8)
    at = At(*(level.float() for level in at))
    plain = pooled(x0, eps, at, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pooled(x0, eps, at, None)[0], plain[0])
