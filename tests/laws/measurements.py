"""What the laws of inverse problems share: operators as matrices, and posteriors of a Gaussian prior by the textbook."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from worlds import unit

from ddpm.denoiser import Denoiser, Mixture, gaussian
from ddpm.guidance import Convolution, Dense, Mask, Operator, Separable, blur, pool
from ddpm.process import Grid, Linear, Process, Trailing
from ddpm.sampling import Sampler

D = (1, 2, 4)
SIZE = math.prod(D)
KNOWN = torch.tensor([[[True, False, False, True], [False, True, False, False]]])
OPERATORS: dict[str, Operator] = {
    "mask": Mask(KNOWN),
    "blur": blur(D[1:], 0.6),
    "pool": pool(D[1:], 2),
    "filter": Separable([unit(3, 4, seed=11)]),
    "convolution": Convolution(torch.tensor([[0.2, 0.6, 0.3]])),
    "matrix": Dense(unit(3, SIZE, seed=7), D),
    "deficient": Dense(torch.cat([unit(2, SIZE, seed=8), unit(2, SIZE, seed=8)]), D),
}


def eye(size: int) -> Tensor:
    """The identity (size, size)."""
    return torch.eye(size, dtype=torch.float64)


def matrix_of(operator: Operator) -> Tensor:
    """The operator as a matrix (m, n)."""
    return operator(eye(SIZE).reshape(SIZE, *D)).flatten(1).T


def measured(operator: Operator, noise: float) -> Tensor:
    """y of a datum that is not the mean, (1, *M)."""
    y = operator(unit(1, *D, seed=5))
    return operator.seen(y + noise * unit(*y.shape, seed=6))


def conditioned(mean: Tensor, cov: Tensor, a: Tensor, y: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of x ~ N(mean, cov) given y = a x + noise z, by the textbook; mean may be (B, n)."""
    gain = cov @ a.T @ torch.linalg.pinv(a @ cov @ a.T + noise**2 * eye(len(a)), rtol=1e-11)
    return mean + (y - mean @ a.T) @ gain.T, cov - gain @ a @ cov


def law(model: Denoiser, sampler: Sampler, size: int, grid: Grid, steps: int) -> tuple[Tensor, Tensor]:
    """Mean (n,) and covariance (n, n) where a stochastic walk of an affine denoiser on (n,) ends: unit x and z pushed through each step."""
    none, probe = torch.zeros(size + 1, size, dtype=torch.float64), torch.cat([torch.zeros(1, size, dtype=torch.float64), eye(size)])
    mean, cov = none[0], eye(size)
    for row in sampler.plan(model.bind(), grid.times(model.process, steps)).rows(probe):
        pushed = sampler.step(model.bind(), torch.cat([probe, none]), row, (), torch.cat([none, probe]))[0]
        offset, by_x, by_z = pushed[0], (pushed[1 : size + 1] - pushed[0]).T, (pushed[size + 2 :] - pushed[0]).T
        mean, cov = offset + by_x @ mean, by_x @ cov @ by_x.T + by_z @ by_z.T
    return mean, cov


# One stated example: two entries of standard deviation 0.5 and correlation 0.8; the first is measured as 1.


def pair(noise: float = 0.2) -> tuple[Mixture, Mask, Tensor, Tensor, Tensor]:
    """Denoiser, operator, y, and the exact posterior's mean and standard deviations: for noise 0.2 (0.862, 0.690) and (0.186, 0.335)."""
    cov = 0.25 * torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    denoiser, mask = gaussian(Process(Linear()), torch.zeros(2, dtype=torch.float64), cov), Mask(torch.tensor([True, False]))
    y = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    mean, spread = conditioned(torch.zeros(2, dtype=torch.float64), cov, torch.tensor([[1.0, 0.0]], dtype=torch.float64), y[0, :1], noise)
    return denoiser, mask, y, mean, spread.diag().sqrt()


def ended(model: Denoiser, sampler: Sampler, steps: int = 200) -> tuple[Tensor, Tensor]:
    """Mean and standard deviations where the walk ends."""
    mean, cov = law(model, sampler, 2, Trailing(), steps)
    return mean, cov.diag().sqrt()
