"""Cascades: exact stages draw the exact distribution, and what a stage is told is what it enlarges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from worlds import close, covariance, unit

from ddpm.data.fit import shrunk
from ddpm.denoiser import Base, Cond, Denoiser, Prediction, enlarged, factors, gaussian, told
from ddpm.errors import ConfigError
from ddpm.process import At, Cosine, Process, Straight
from ddpm.sampling import DDIM, Adaptive, Ancestral, sample, trajectory

HALVE = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]], dtype=torch.float64)
TWICE = HALVE.T * 2.0  # `enlarged` as a matrix
SPREAD = covariance(4, seed=4)


class Exact(Denoiser):
    """E[x0 | x_t, low] where x0 ~ N(0, SPREAD) of shape (1, 4) and low = TWICE HALVE x0 + low_noise n: one more Gaussian observation."""

    def __init__(self, process: Process, drawn: float) -> None:
        super().__init__()
        self.process, self.shape = process, (1, 4)
        small = gaussian(process, torch.zeros(1, 2, dtype=torch.float64), HALVE @ SPREAD @ HALVE.T)
        self.base = Base(small, {}, 1.0, drawn)
        self.seen: list[Any] = []

    def forward(self, x: Tensor, at: At, cond: Cond = None) -> Prediction:
        """The mean of the product of three Gaussians."""
        assert cond is not None
        self.seen.append(cond)
        seen, noise = TWICE @ HALVE, float(cond["low_noise"][0]) ** 2
        precision = (
            SPREAD.inverse() + seen.T @ seen / noise + torch.eye(4, dtype=torch.float64) * (at.alpha / at.sigma).reshape(-1, 1, 1) ** 2
        )
        pull = cond["low"].double().flatten(1) @ seen / noise + (at.alpha / at.sigma**2).reshape(-1, 1) * x.flatten(1)
        x0 = torch.linalg.solve(precision.expand(len(x), -1, -1), pull).reshape(x.shape)
        return Prediction(x0, self.process.noise(x, x0, at))

    def residual(self, at: At) -> Tensor:
        """Nobody asks."""
        raise NotImplementedError


@pytest.mark.parametrize("drawn", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("schedule", [Cosine(T=None), Straight()], ids=["cosine", "straight"])
def test_exact_stages_draw_the_data(schedule: Any, drawn: float) -> None:
    """The covariance of 6,000 samples is the data's, whatever noise lies between the stages: the noise that is told is there, and the
    noises of the two stages are independent.
    """
    x = sample(Exact(Process(schedule), drawn), 6000, steps=120, sampler=DDIM(), batch=6000, dtype=torch.float64).flatten(1)
    found = x.T @ x / len(x)
    root = torch.linalg.cholesky(SPREAD).inverse()
    close(root @ found @ root.T, torch.eye(4, dtype=torch.float64), atol=5.0 * (2.0 / len(x)) ** 0.5 + 0.02, rtol=0.0)


def test_a_sample_depends_on_its_number_alone() -> None:
    """Not on the batch it is in, nor on whether the frames are asked for one by one."""
    model = Exact(Process(Cosine(T=None)), 0.3)
    whole = sample(model, 6, steps=5, dtype=torch.float64, sampler=Ancestral())
    close(sample(model, 6, steps=5, dtype=torch.float64, sampler=Ancestral(), batch=4), whole, rtol=1e-12, atol=1e-12)
    close(sample(model, 2, first=3, steps=5, dtype=torch.float64, sampler=Ancestral()), whole[3:5], rtol=1e-12, atol=1e-12)
    *_, last = trajectory(model, 6, steps=5, dtype=torch.float64, sampler=Ancestral())
    close(last.x, whole, rtol=1e-12, atol=1e-12)
    assert not torch.equal(sample(model, 6, steps=5, seed=1, dtype=torch.float64), sample(model, 6, steps=5, dtype=torch.float64))


def test_what_is_given_is_enlarged() -> None:
    """A smaller sample of one's own, in cond, is taken instead of the base's; other conditions go on to the base."""
    model = Exact(Process(Cosine(T=None)), 0.3)
    low = enlarged(torch.tensor([[[1.0, -1.0]]], dtype=torch.float64).expand(500, 1, 2), (1, 4))
    x = sample(model, 500, steps=50, dtype=torch.float64, cond=told(low, torch.full((500,), 0.01), torch.zeros(500, 1, 4)))
    assert (x.flatten(1) @ HALVE.T - torch.tensor([1.0, -1.0])).abs().max() < 0.05
    with pytest.raises(ConfigError, match="drawn in steps"):
        sample(model, 2, sampler=Adaptive())


def test_enlarging_and_shrinking() -> None:
    """Fields: shrinking undoes enlarging and takes the mean of a block; pictures: a flat one stays what it is."""
    small = unit(5, 2, 3, 4, seed=1)
    for shape in ((2, 6, 8), (2, 3, 16), (2, 9, 4)):
        large = enlarged(small, shape)
        assert tuple(large.shape[1:]) == shape
        close(torch.from_numpy(shrunk(large.numpy(), (3, 4))), small, rtol=1e-15, atol=0.0)
    field = unit(5, 1, 8, seed=2)
    close(torch.from_numpy(shrunk(field.numpy(), (4,))), field.reshape(5, 1, 4, 2).mean(-1), rtol=1e-12, atol=1e-12)
    levels = np.arange(0, 256, 5, dtype=np.uint8).reshape(-1, 1, 1, 1)
    for channels in (1, 3):
        flat = np.broadcast_to(levels, (len(levels), channels, 8, 8))
        assert np.array_equal(shrunk(flat, (2, 4)), flat[:, :, :2, :4])
    ramp = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8), (2, 3, 16, 32))
    assert np.abs(shrunk(ramp, (4, 8)).astype(float)[..., 1:-1] - ramp.reshape(2, 3, 4, 4, 8, 4).mean((3, 5))[..., 1:-1]).max() <= 1.0


@pytest.mark.parametrize(
    ("large", "small"), [((1, 8, 8), (1, 8, 8)), ((1, 8, 8), (3, 4, 4)), ((1, 8, 8), (1, 3, 4)), ((1, 8), (1, 4, 4)), ((8,), (4,))]
)
def test_what_cannot_be_enlarged(large: tuple[int, ...], small: tuple[int, ...]) -> None:
    assert factors(large, small) is None
