"""Millions of vectors: nothing copies all of them to float64, or makes a table of all pairs; and pieces say what the whole says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm.errors import DataError
from ddpm.metrics import moments, neighbours
from ddpm.metrics.moments import Moments
from ddpm.metrics.neighbours import manifold, nearest, nearest_distances, radii


class Largest(TorchDispatchMode):
    """Remembers the most bytes that a tensor had which was made."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {one.untyped_storage().data_ptr() for one in args if isinstance(one, Tensor)}
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() not in known:  # a view is no memory
                self.most = max(self.most, one.nbytes)
        return out


def most(call: Callable[[], Any]) -> int:
    """Of the tensors that a call makes, the bytes of the largest."""
    with Largest() as largest:
        call()
    return largest.most


def drawn(n: int, seed: int, dim: int = 8) -> Tensor:
    """Standard normal vectors, in float32 as extractors give them."""
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 50 vectors."""
    monkeypatch.setattr(moments, "ROWS", 50, raising=False)
    monkeypatch.setattr(neighbours, "ROWS", 50)


@pytest.mark.usefixtures("small")
def test_nothing_as_large_as_the_data_is_made() -> None:
    """Nor a table of it: beside a piece there are six distances of each vector."""
    x, y = drawn(60, 1), drawn(3000, 2)
    assert most(lambda: Moments.of(y)) < y.nbytes / 4
    for call in (lambda: nearest(x, y), lambda: nearest(y, x), lambda: radii(y, 5), lambda: manifold(x, y)):
        assert most(call) <= 8 * 6 * len(y)


def test_pieces_say_what_the_whole_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances of every pair by hand; moments to rounding, far from zero; the number of the first that is not finite."""
    x, y = drawn(130, 1), drawn(170, 2) + 100.0
    whole, pairs = Moments.of(y), torch.cdist(x.double(), y.double())
    for rows in (7, 50, 1000):
        monkeypatch.setattr(moments, "ROWS", rows)
        monkeypatch.setattr(neighbours, "ROWS", rows)
        for one, two in zip(Moments.of(y), whole, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-9)
        torch.testing.assert_close(nearest_distances(x, y, 9), pairs.sort(dim=1).values[:, :9])
        assert torch.equal(nearest(x, y)[1], pairs.argmin(1))
        torch.testing.assert_close(radii(x, 3), torch.cdist(x.double(), x.double()).sort(dim=1).values[:, 3], rtol=1e-6, atol=1e-6)
    bad = y.clone()
    bad[[120, 160], 3] = torch.nan
    monkeypatch.setattr(moments, "ROWS", 50)
    with pytest.raises(DataError, match="2 of 170 samples are not finite, first number 120"):
        Moments.of(bad)
