"""What a network is told beside x: the noise level and the conditions, embedded as one vector per sample."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm.errors import ConfigError
from ddpm.networks.blocks import dense, start
from ddpm.networks.config import CondSpec
from ddpm.networks.tokens import Context, TokenInput

Cond = Mapping[str, Tensor]
GUIDED = 100.0  # readings of the sinusoidal embedding for each unit of the guidance scale
NOISY = 1000.0  # and for each unit of the noise on an enlarged sample


def sinusoidal(c_noise: Tensor, dim: int) -> Tensor:
    """Sines, then cosines, of the noise level at dim/2 frequencies from 1 down to 1/10000.

    out[:, i] = sin(c f_i), out[:, dim/2 + i] = cos(c f_i), f_i = 10000^(-i / (dim/2 - 1)); c_noise (B,) of any range, dim even and >= 4,
    returns (B, dim) in c_noise's precision, at least float32.

    Reference: Vaswani et al. 2017, arXiv 1706.03762, section 3.5; with the frequencies of Ho et al. 2020, arXiv 2006.11239 (dim/2 - 1).
    """
    half = dim // 2
    c_noise = c_noise.to(torch.promote_types(c_noise.dtype, torch.float32))
    steps = torch.arange(half, dtype=c_noise.dtype, device=c_noise.device)
    angles = c_noise[:, None] * torch.exp(steps * (-math.log(10000) / (half - 1)))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Embedding(nn.Module):
    """The noise level, class and vector of each sample as one vector: e = W1 swish(W0 sin(c_noise)) + class row + vector's two layers.

    Row `classes` of the class table, and `null_vector`, are learned and stand for "no condition". Where there is an augmentation a, W2 a is
    added to W0 sin(c_noise), without a bias, so that a = 0 says nothing; so are waves of a guidance scale, whose weights begin at zero:
    a network without them becomes one with them and says the same. Waves of the noise on an enlarged sample are added likewise, and what
    tokens say on average (`TokenInput`). Returns (B, width).

    Reference: augmentation: Karras et al., 2022, arXiv:2206.00364, appendix F.2; guidance scale: Meng et al., 2022, arXiv:2210.03142,
    section 3.1; noise on an enlarged sample: Ho et al., 2022, arXiv:2106.15282, section 3.
    """

    def __init__(self, dim: int, width: int, cond: CondSpec) -> None:
        super().__init__()
        self.dim, self.spec = dim, cond
        self.time_in = dense(dim, width)
        self.time_out = dense(width, width)
        if cond.classes:
            self.classes = nn.Embedding(cond.classes + 1, width)
        if cond.vector:
            self.vector_in = dense(cond.vector, width)
            self.vector_out = dense(width, width)
            self.null_vector = nn.Parameter(torch.randn(width))
        if cond.augment:
            self.augment = start(nn.Linear(cond.augment, width, bias=False), zero=False)
        if cond.guidance:
            self.guidance = start(nn.Linear(dim, width, bias=False), zero=True)
        if cond.low:
            self.low = start(nn.Linear(dim, width, bias=False), zero=False)
        if cond.tokens:
            self.tokens = TokenInput(cond.tokens, width)

    def context(self, cond: Cond | None, batch: int) -> Context | None:
        """The tokens of the condition, read once for the embedding and every attention; None for a network that takes none."""
        if not self.spec.tokens:
            return None
        cond = cond or {}
        given = cond.get("tokens")
        if given is None:
            named(cond, "tokens", (batch, 0, self.spec.tokens))
        return self.tokens(given, cond.get("null"), batch)

    def forward(self, c_noise: Tensor, cond: Cond | None, context: Context | None = None) -> Tensor:
        """c_noise (B,), cond as CondSpec says, context as `context` gives it; returns (B, width). Raises ConfigError for a missing or
        misshapen condition.
        """
        batch = c_noise.shape[0]
        cond = cond or {}
        null = cond.get("null")
        if null is not None and (null.dtype != torch.bool or null.shape != (batch,)):
            raise ConfigError(
                f'cond["null"]: got {null.dtype} {tuple(null.shape)}; it must be bool ({batch},), true where a sample is unconditional'
            )
        wave = sinusoidal(c_noise, self.dim).to(self.time_in.weight.dtype)
        hidden = self.time_in(wave)
        if self.spec.augment and (how := optional(cond, "augment", (batch, self.spec.augment))) is not None:
            hidden = hidden + self.augment(how.to(self.augment.weight.dtype))
        if self.spec.guidance and (scale := optional(cond, "guidance", (batch,))) is not None:
            hidden = hidden + self.guidance(self._strength(scale).to(self.guidance.weight.dtype))
        if self.spec.low and (noise := optional(cond, "low_noise", (batch,))) is not None:
            hidden = hidden + self.low(sinusoidal(NOISY * noise, self.dim).to(self.low.weight.dtype))
        total = self.time_out(F.silu(hidden))
        if self.spec.classes:
            total = total + self._class(named(cond, "class", (batch,)), null, batch)
        if self.spec.vector:
            total = total + self._vector(named(cond, "vector", (batch, self.spec.vector)), null)
        if context is not None:
            total = total + self.tokens.pooled(context)
        return total

    def _strength(self, scale: Tensor) -> Tensor:
        """The guidance scale, 1 (none) giving zeros: differences of the waves of `GUIDED` (scale - 1), (B, dim)."""
        return sinusoidal(GUIDED * (scale - 1.0), self.dim) - sinusoidal(torch.zeros_like(scale), self.dim)

    def _class(self, ids: Tensor | None, null: Tensor | None, batch: int) -> Tensor:
        if ids is None:
            return self.classes.weight[-1].expand(batch, -1)
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise ConfigError(f'cond["class"]: got {ids.dtype}; it must hold whole numbers 0..{self.spec.classes - 1} (int64)')
        return self.classes(ids if null is None else torch.where(null, self.spec.classes, ids))

    def _vector(self, vector: Tensor | None, null: Tensor | None) -> Tensor:
        if vector is None:
            return self.null_vector
        embedded = self.vector_out(F.silu(self.vector_in(vector.to(self.vector_in.weight.dtype))))
        return embedded if null is None else torch.where(null[:, None], self.null_vector.to(embedded.dtype), embedded)


def named(cond: Cond, key: str, shape: tuple[int, ...]) -> Tensor | None:
    """The condition `key`, its shape checked; None (unconditional) where it is left out beside a `null` mask; else ConfigError."""
    if cond.get(key) is None and "null" not in cond:
        raise ConfigError(
            f'cond["{key}"]: this network is conditioned on it and got {sorted(cond) or "nothing"}; pass it with shape {shape}, '
            f'or cond["null"] with shape ({shape[0]},), true, for an unconditional prediction'
        )
    return optional(cond, key, shape)


def optional(cond: Cond, key: str, shape: tuple[int, ...]) -> Tensor | None:
    """The condition `key`, its shape checked; None where it is left out."""
    value = cond.get(key)
    if value is not None and tuple(value.shape) != shape:
        raise ConfigError(f'cond["{key}"]: got shape {tuple(value.shape)}; this network and this batch need {shape}')
    return value


def with_fields(x: Tensor, cond: Cond | None, spec: CondSpec) -> Tensor:
    """x (B, C, *axes) with what is laid beside it: the condition image, then the earlier prediction of x0, zeros where there is none, then
    an enlarged sample, likewise, and the mask, ones where there is none.
    """
    wide = with_image(x, cond, spec.image)
    for key in (key for key, wanted in (("x0", spec.x0), ("low", spec.low)) if wanted):
        before = optional(cond or {}, key, tuple(x.shape))
        wide = torch.cat([wide, torch.zeros_like(x) if before is None else before.to(x.dtype)], dim=1)
    if spec.mask:
        shape = (len(x), spec.mask, *x.shape[2:])
        there = optional(cond or {}, "mask", shape)
        wide = torch.cat([wide, x.new_ones(shape) if there is None else there.to(x.dtype)], dim=1)
    return wide


def with_image(x: Tensor, cond: Cond | None, channels: int) -> Tensor:
    """x (B, C, *axes) with the condition image (B, channels, *axes) concatenated as further channels; zeros where `null` is true."""
    if not channels:
        return x
    cond = cond or {}
    image = named(cond, "image", (x.shape[0], channels, *x.shape[2:]))
    if image is None:
        return torch.cat([x, x.new_zeros(x.shape[0], channels, *x.shape[2:])], dim=1)
    image = image.to(x.dtype)
    if (null := cond.get("null")) is not None:
        image = torch.where(null.view(-1, *[1] * (x.ndim - 1)), image.new_zeros(()), image)
    return torch.cat([x, image], dim=1)
