"""Scores of ensembles: what is known in closed form, what calibration means, and sums over shards."""

from __future__ import annotations

import math

import pytest
import torch

from ddpm.errors import DataError
from ddpm.metrics import Ensemble, latitude_weights


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("members", [2, 5, 40])
def test_fair_crps_is_that_of_the_gaussian_whatever_the_members(members: int) -> None:
    mean, std, truth, cases = 0.7, 1.3, -0.4, 60_000
    z = (truth - mean) / std
    density, below = math.exp(-z * z / 2) / math.sqrt(2 * math.pi), 0.5 * math.erfc(-z / math.sqrt(2))
    exact = std * (z * (2 * below - 1) + 2 * density - 1 / math.sqrt(math.pi))
    x = mean + std * normals(cases, members)
    found = Ensemble.of(x, torch.full((cases,), truth, dtype=torch.float64)).result()
    assert found.crps == pytest.approx(exact, abs=5 * std / math.sqrt(cases))


def test_crps_equals_the_double_sum() -> None:
    x, y = normals(7, 6, 3), normals(7, 3, seed=1)
    pairs = (x[:, :, None] - x[:, None]).abs().sum((1, 2)) / (2 * 6 * 5)
    assert Ensemble.of(x, y).result().crps == pytest.approx(float(((x - y[:, None]).abs().mean(1) - pairs).mean()), abs=1e-12)


def test_members_like_the_truth_have_ratio_one_and_flat_ranks() -> None:
    centre = 3.0 * normals(40_000, seed=2)
    x, y = centre[:, None] + normals(40_000, 9, seed=3), centre + normals(40_000, seed=4)
    found = Ensemble.of(x, y).result()
    assert found.ratio == pytest.approx(1.0, abs=0.02)
    assert found.ranks == pytest.approx([0.1] * 10, abs=0.01)
    narrow = Ensemble.of(centre[:, None] + 0.5 * (x - centre[:, None]), y).result()
    assert narrow.ratio < 0.65 and narrow.ranks[0] > 0.2 and narrow.crps > found.crps


def test_shards_add_up_to_the_whole_and_weight_zero_leaves_out() -> None:
    x, y = normals(10, 4, 2, 3, 5), normals(10, 2, 3, 5, seed=1)
    weights = latitude_weights(torch.tensor([60.0, 0.0, -30.0]))
    whole = Ensemble.of(x, y, weights)
    parts = Ensemble.none(4) + Ensemble.of(x[:3], y[:3], weights) + Ensemble.of(x[3:], y[3:], weights)
    assert parts.result()[:5] == pytest.approx(whole.result()[:5], abs=1e-12)
    torch.testing.assert_close(parts.ranks, whole.ranks)
    holed, mask = y.clone(), torch.ones(10, 2, 3, 5)
    holed[4, 1], mask[4, 1] = math.nan, 0.0
    left = Ensemble.of(x, holed, mask).result()
    counts = mask.flatten(1) > 0
    rest = Ensemble.of(x.flatten(2).movedim(1, 2)[counts], y.flatten(1)[counts]).result()
    assert left[:5] == pytest.approx(rest[:5]) and left.ranks == pytest.approx(rest.ranks)
    with pytest.raises(DataError, match="not all finite"):
        Ensemble.of(x, holed)


def test_ties_are_shared_among_their_ranks_and_one_member_is_a_point() -> None:
    found = Ensemble.of(torch.zeros(1, 3), torch.zeros(1)).result()
    assert found.ranks == pytest.approx([0.25] * 4) and found.ratio == 1.0
    point = Ensemble.of(torch.tensor([[1.0], [4.0]]), torch.tensor([2.0, 2.0])).result()
    assert point.crps == point.mae == 1.5 and point.ratio == 0.0 and point.rmse == pytest.approx(math.sqrt(2.5))


def test_weights_are_cosines_and_shapes_are_checked() -> None:
    weights = latitude_weights(torch.tensor([0.0, 60.0, 90.0]))
    assert weights.shape == (3, 1) and weights.flatten().tolist() == pytest.approx([2.0, 1.0, 0.0])
    with pytest.raises(DataError, match=r"got shape \(2, 3\) for truths \(3,\)"):
        Ensemble.of(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(DataError, match="3 and 4; only ensembles of one size"):
        _ = Ensemble.none(3) + Ensemble.none(4)
    with pytest.raises(DataError, match="nothing was scored"):
        Ensemble.none(3).result()
