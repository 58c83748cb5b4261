"""Cascades: a model that enlarges what a smaller model drew, and carries that model with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ddpm.denoiser.denoiser import Denoiser


class Base(NamedTuple):
    """What a denoiser of large samples enlarges: the denoiser of smaller ones, config.json of that, and the noise laid on its samples.

    noise: in training the enlarged sample gets Gaussian noise of a deviation uniform in [0, noise], in the space diffused in, and the
    network is told which; so it does not trust details that the smaller model gets wrong. drawn: the deviation when a sample is drawn.

    Reference: Ho et al., 2022, arXiv:2106.15282, section 3 (conditioning augmentation), here with many strengths at once.
    """

    denoiser: Denoiser
    about: Mapping[str, Any]
    noise: float
    drawn: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one of its samples, in the data's units."""
        return self.denoiser.data_shape


def factors(large: tuple[int, ...], small: tuple[int, ...]) -> tuple[int, ...] | None:
    """How many times longer each axis of `large` (C, *axes) is; None where that is no whole number, nothing is longer, or C differs."""
    if len(large) != len(small) or len(large) < 2 or large[0] != small[0] or any(a % b for a, b in zip(large[1:], small[1:], strict=True)):
        return None
    found = tuple(a // b for a, b in zip(large[1:], small[1:], strict=True))
    return found if max(found) > 1 else None


def enlarged(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(B, C, *small) -> (B, *shape), every entry repeated."""
    for axis, times in enumerate(factors(shape, tuple(x.shape[1:])) or (), start=2):
        x = x.repeat_interleave(times, dim=axis)
    return x


def told(low: Tensor, deviation: Tensor, eps: Tensor) -> dict[str, Tensor]:
    """The conditions "low" (B, *shape), an enlarged sample with noise of a deviation (B,), and "low_noise" (B,), which it is."""
    wide = deviation.view(-1, *[1] * (low.ndim - 1)).to(low)
    return {"low": low + wide * eps.to(low), "low_noise": deviation.to(torch.float32)}
