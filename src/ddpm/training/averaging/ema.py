"""The average of the weights that samples are drawn from, with a length that fits any run: a share of the steps so far."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ddpm.training.distributed.parallel import is_part, like, local


def spread(gamma: float) -> float:
    """Standard deviation of the profile t^gamma over [0, 1]: sqrt(gamma+1) / ((gamma+2) sqrt(gamma+3)); the inverse of `exponent`.

    Reference: Karras et al., 2024, arXiv:2312.02696, eq. 123.
    """
    return math.sqrt((gamma + 1.0) / (gamma + 3.0)) / (gamma + 2.0)


def exponent(width: float) -> float:
    """gamma of the profile t^gamma whose standard deviation is `width` (relative to the run): sqrt(gamma+1) / ((gamma+2) sqrt(gamma+3)) =
    width.

    width in (0, 0.28). Reference: Karras et al., 2024, arXiv:2312.02696, eq. 123 and algorithm 2 (appendix C).
    """
    roots = np.roots([1.0, 7.0, 16.0 - width**-2, 12.0 - width**-2])
    return float(roots[np.isreal(roots)].real.max())


def name_of(width: float) -> str:
    """What a checkpoint calls the average of this width: "ema-0.050"."""
    return f"ema-{width:.3f}"


class PowerEMA:
    """Average of the weights with profile t^gamma: after step k, w <- beta w + (1 - beta) theta, beta = (1 - 1/k)^(gamma + 1).

    beta is 0 at the first step, so the starting weights are forgotten at once and a short run does not sample noise.

    Reference: Karras et al., 2024, arXiv:2312.02696, eqs. 2 and 127.
    """

    def __init__(self, module: nn.Module, width: float) -> None:
        self.width, self.gamma = width, exponent(width)
        self.weights = {name: tensor.detach().clone() for name, tensor in module.named_parameters()}

    @property
    def name(self) -> str:
        """What the checkpoint calls this average."""
        return name_of(self.width)

    @torch.no_grad()
    def update(self, module: nn.Module, steps_done: int) -> None:
        """Take in the weights after `steps_done` >= 1 steps."""
        beta = (1.0 - 1.0 / steps_done) ** (self.gamma + 1.0)
        live = dict(module.named_parameters())
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            [local(weight) for weight in self.weights.values()], [local(live[name].detach()) for name in self.weights], 1.0 - beta
        )

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over saved averages; names and shapes have been checked against the module."""
        for name, tensor in self.weights.items():
            tensor.copy_(like(tensors[name], tensor))


class swapped:
    """Within the block the module has the averaged weights; after it, its own again."""

    def __init__(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        self.module, self.weights = module, weights

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.module.named_parameters():
            if is_part(parameter):  # FSDP keeps its own views of the memory: the numbers change places
                one, other = local(parameter), local(self.held[name])
                kept = one.clone()
                one.copy_(other)
                other.copy_(kept)
            else:
                parameter.data, self.held[name] = self.held[name], parameter.data

    def __enter__(self) -> nn.Module:
        self.held = dict(self.weights)
        self._swap()
        return self.module

    def __exit__(self, *_: object) -> None:
        self._swap()
