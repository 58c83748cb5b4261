"""Explicit randomness: numbers are functions of a key, never of what was drawn before. Counter-based (Philox), the same on every machine.

A key of two 64-bit words names a stream, a counter word the place in it, so sample i's noise at step k is (seed, i; k) whatever the batch,
and step k of training draws (seed, k). torch's CPU generator keeps 32 bits of a seed, so hashed seeds would collide; these do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
else:
    from ddpm.lazy import torch

_WORD = 2**64
PURPOSES = {
    name: i
    for i, name in enumerate(
        (
            "order",
            "times",
            "noise",
            "dropout",
            "augment",
            "start",
            "step",
            "network",
            "holdout",
            "evaluate",
            "warp",
            "again",
            "low",
            "words",
        )
    )
}


def generator(seed: int, purpose: str, index: int = 0, step: int = 0) -> np.random.Generator:
    """The stream of (seed, index) for one purpose at one step; key (seed, index), counter (0, 0, step, purpose)."""
    key = np.array([seed % _WORD, index % _WORD], dtype=np.uint64)
    counter = np.array([0, 0, step % _WORD, PURPOSES[purpose]], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def normals(
    seed: int, indices: Sequence[int], shape: Sequence[int], purpose: str, step: int = 0, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Unit normals (len(indices), *shape), row i a function of (seed, indices[i], purpose, step) alone; float32 unless dtype is float64.

    For the purpose "step", which every step of every sample asks for, float32 ones are made in bulk, by Box and Muller's formula from
    32-bit uniforms (so |z| < 6.8); all others by numpy's ziggurat.
    """
    wide = dtype == torch.float64
    if purpose == "step" and not wide:
        result = _bulk(seed, indices, math.prod(shape), PURPOSES[purpose], step).reshape(len(indices), *shape)
    else:
        out = np.empty((len(indices), *shape), dtype=np.float64 if wide else np.float32)
        for row, index in enumerate(indices):
            generator(seed, purpose, index, step).standard_normal(dtype=out.dtype.type, out=out[row])
        result = torch.from_numpy(out)
    return result if dtype is None or wide else result.to(dtype)


def _bulk(seed: int, indices: Sequence[int], count: int, purpose: int, step: int) -> torch.Tensor:
    """z = sqrt(-2 log u) (cos, sin)(2 pi v), (len(indices), count); one Philox is set to each row's key."""
    words = -(-count // 2)
    bits, raw = np.random.Philox(key=0), np.empty((len(indices), words), dtype=np.uint64)
    state = bits.state
    state["state"]["counter"][:] = (0, 0, step % _WORD, purpose)
    state["state"]["key"][0] = seed % _WORD
    for row, index in enumerate(indices):
        state["state"]["key"][1] = index % _WORD
        bits.state = state
        raw[row] = bits.random_raw(words)
    uniform = torch.from_numpy(raw.view(np.uint32).astype(np.float32))
    radius, angle = uniform[:, :words], uniform[:, words:]
    radius.add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
    angle.mul_(2.0**-31 * math.pi)
    out = torch.empty_like(uniform)
    torch.cos(angle, out=out[:, :words]).mul_(radius)
    torch.sin(angle, out=out[:, words:]).mul_(radius)
    return out[:, :count]


def torch_seed(seed: int, purpose: str, step: int = 0) -> int:
    """A seed for torch's own generators (dropout masks), drawn from the stream: 32 bits, so not for streams that must never meet."""
    return int(generator(seed, purpose, 0, step).integers(2**32))
