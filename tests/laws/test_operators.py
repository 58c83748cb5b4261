"""Laws of measurement operators: adjoint, solve and pseudo-inverse are those of the matrix; what cannot be is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from measurements import KNOWN, OPERATORS, D, eye, matrix_of, pair
from worlds import close, unit

from ddpm.errors import ConfigError
from ddpm.guidance import DPS, Convolution, Dense, Mask, MomentMatching, Operator, PiGDM, Projection, Separable, blur, pool
from ddpm.sampling import RePaint

operators = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


@operators
def test_the_adjoint_and_the_solve_are_those_of_the_matrix(operator: Operator) -> None:
    a = matrix_of(operator)
    x = unit(3, *D, seed=1)
    y = operator.seen(operator(unit(3, *D, seed=2)) + 0.1)
    close((operator(x) * y).flatten(1).sum(1), (x * operator.adjoint(y)).flatten(1).sum(1), rtol=1e-12)
    close(operator.adjoint(y).flatten(1), y.flatten(1) @ a, rtol=1e-10, atol=1e-12)
    variance = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64).reshape(3, *[1] * len(D))
    for i, v in enumerate(variance.flatten().tolist()):
        wanted = torch.linalg.solve(v * a @ a.T + 0.3**2 * eye(len(a)), y[i].flatten())
        close(operator.solve(y, variance, 0.3)[i].flatten(), wanted, rtol=1e-9, atol=1e-11)
    assert int(torch.as_tensor(operator.count(y)).max()) == (int(KNOWN.sum()) if isinstance(operator, Mask) else y[0].numel())


@operators
def test_the_pseudo_inverse_obeys_penrose(operator: Operator) -> None:
    y, x = operator.seen(operator(unit(2, *D, seed=2)) + 0.1), unit(2, *D, seed=1)
    close(operator.pinv(y).flatten(1), y.flatten(1) @ torch.linalg.pinv(matrix_of(operator)).T, rtol=1e-8, atol=1e-9)
    close(operator(operator.pinv(operator(x))), operator(x), rtol=1e-8, atol=1e-9)
    close(operator.pinv(operator(operator.pinv(y))), operator.pinv(y), rtol=1e-8, atol=1e-9)


def test_operators_take_any_shape_and_keep_the_precision() -> None:
    x = unit(2, 3, 4, 6, seed=1)
    assert pool((4, 6), 2)(x).shape == (2, 3, 2, 3) and pool((6,), 3)(x).shape == (2, 3, 4, 2)
    close(pool((4, 6), 2)(x), torch.nn.functional.avg_pool2d(x, 2), rtol=1e-12)
    constant = torch.ones(1, 3, 4, 6, dtype=torch.float64)
    close(blur((4, 6), 1.3)(constant), constant, rtol=1e-12)  # mirrored edges keep what is constant
    weights = torch.exp(-0.5 * (torch.arange(-6, 7, dtype=torch.float64) / 1.5) ** 2)
    mirrored = torch.cat([x.flip(-1), x, x.flip(-1)], -1).unfold(-1, 13, 1) @ (weights / weights.sum())
    close(blur((6,), 1.5)(x), mirrored, rtol=1e-10)
    kernel = torch.tensor([0.1, 0.7, 0.3])
    close(Convolution(kernel)(x)[..., 2], 0.1 * x[..., 3] + 0.7 * x[..., 2] + 0.3 * x[..., 1], rtol=1e-6)
    for operator in (pool((4, 6), 2), blur((4, 6), 0.5), Convolution(kernel), Dense(unit(2, 72), (3, 4, 6))):
        single = x.to(torch.float32)
        assert operator(single).dtype == operator.pinv(operator(single)).dtype == torch.float32
    holes = torch.where(KNOWN, unit(*D), math.nan)
    assert bool(Mask(KNOWN).pinv(holes[None]).isfinite().all())


def test_what_cannot_be_is_refused() -> None:
    denoiser, mask, y, _, _ = pair()
    refusals: list[tuple[Callable[[], object], str]] = [
        (lambda: Mask(torch.ones(2)), "bool"),
        (lambda: MomentMatching(denoiser, mask, y, noise=-1.0), "noise: got -1.0"),
        (lambda: Projection(denoiser, mask, y, noise=math.nan), "noise: got nan"),
        (lambda: PiGDM(denoiser, mask, y, sigma_data=0.0), "sigma_data"),
        (lambda: MomentMatching(denoiser, mask, y, iterations=0), "iterations"),
        (lambda: DPS(denoiser, mask, y, scale=-1.0), "scale"),
        (lambda: Projection(denoiser, mask, unit(1, 3)), "y: got shape"),
        (lambda: Projection(denoiser, Dense(unit(2, 3), (3,)), unit(1, 2)), "operator: cannot be applied"),
        (lambda: Projection(denoiser, mask, y * math.nan), "not finite"),
        (lambda: MomentMatching(denoiser, torch.tanh, y), "linear"),  # type: ignore[arg-type]
        (lambda: Projection(denoiser, mask, y.expand(3, 2))(unit(2, 2), denoiser.process.at(0.5)), "3 rows for 2 samples"),
        (lambda: Dense(unit(2, 3), (2,)), r"\(m, 2\)"),
        (lambda: pool((3,), 2), "factor: got 2"),
        (lambda: blur((3,), 0.0), "width"),
        (lambda: Convolution(torch.ones(5))(unit(1, 3)), "kernel"),
        (lambda: Separable([unit(3)]), "matrices"),
        (lambda: RePaint(values=y, known=torch.ones(2)), "bool"),
        (lambda: RePaint(values=y, known=torch.ones(3, dtype=torch.bool)), "broadcast"),
        (lambda: RePaint(values=y * math.nan, known=mask.known), "not finite"),
        (lambda: RePaint(values=y, known=mask.known, jump=0), "jump"),
    ]
    for call, words in refusals:
        with pytest.raises(ConfigError, match=words):
            call()
