"""The loss of a classifier of noisy data."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from ddpm.objective.losses import Draws
from ddpm.objective.times import UniformTimes
from ddpm.process import At, Process


def noisy_cross_entropy(logits: Callable[[Tensor, At], Tensor], process: Process, x0: Tensor, label: Tensor, draws: Draws) -> Tensor:
    """-log p(label | x_t) in nats, (B,), at instants uniform in t; x0 (B, *D) in the space diffused in, label (B,), logits (B, K).

    Reference: Dhariwal, Nichol, 2021, arXiv:2105.05233, section 4 and appendix H (noise distributed as for the diffusion model).
    """
    t, _ = UniformTimes().draw(draws.u, process)
    at = process.at(t, like=x0)
    return F.cross_entropy(logits(process.perturb(x0, draws.eps, at), at), label, reduction="none")
