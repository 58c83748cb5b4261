"""Training a self-conditioned denoiser: its first prediction is shown to it as what it said before."""

from __future__ import annotations

import torch
from torch import Tensor

from ddpm.denoiser.denoiser import Cond, Denoiser
from ddpm.denoiser.parameterization import Prediction
from ddpm.process import At


class Twice(Denoiser):
    """D(x, at, x0 = sg(D(x, at).x0)): two calls at the same x and instant, gradients through the second alone.

    For losses. `sample` needs no second call: it feeds back what the step before said.

    Reference: Chen, Zhang, Hinton, 2022, arXiv:2208.04202, algorithm 1.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.take_after(denoiser)
        self.self_condition = False  # it shows itself what it said

    def forward(self, x: Tensor, at: At, cond: Cond = None) -> Prediction:
        """The second prediction."""
        with torch.no_grad():
            first = self.denoiser(x, at, cond).x0
        torch.clear_autocast_cache()  # older versions of torch keep the weights cast above, which have no gradients
        return self.denoiser(x, at, {**(cond or {}), "x0": first})

    def residual(self, at: At) -> Tensor:
        """The denoiser's moment."""
        return self.denoiser.residual(at)
