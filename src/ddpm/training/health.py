"""Non-finite numbers: found before they touch anything, traced to where they came from, and not for ever."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddpm.errors import NonFiniteError
from ddpm.training.feed import Batch

PATIENCE = 10  # steps in a row that may be skipped


def cause(module: nn.Module, batch: Batch, loss: Tensor) -> str:
    """Where the first NaN or infinity of a step is: the batch, the weights, the loss or the gradient, with names and rows."""

    def bad(tensor: Tensor) -> bool:
        return not bool(torch.isfinite(tensor).all())

    if bad(batch.x0):
        rows = batch.rows[(~torch.isfinite(batch.x0).flatten(1).all(1)).cpu().numpy()]
        return f"the batch: data rows {rows[:8].tolist()}"
    weights = [name for name, parameter in module.named_parameters() if bad(parameter.detach())]
    if weights:
        return f"the weights: {', '.join(weights[:3])}"
    if bad(loss):
        rows = batch.rows[(~torch.isfinite(loss)).cpu().numpy()]
        return f"the loss of data rows {rows[:8].tolist()}"
    gradients = [name for name, parameter in module.named_parameters() if parameter.grad is not None and bad(parameter.grad)]
    return f"the gradient of {', '.join(gradients[:3])}" if gradients else "the norm of the gradient, which overflowed"


class Health:
    """Counts skipped steps; ends the run after ten in a row."""

    def __init__(self) -> None:
        self.skipped, self.total, self.since = 0, 0, 0

    def good(self) -> None:
        """A step went through."""
        self.skipped = 0

    def skip(self, step: int, where: str, last_good: str) -> str:
        """A step was skipped with nothing changed; returns what to say. NonFiniteError at the tenth in a row."""
        self.since = self.since if self.skipped else step
        self.skipped, self.total = self.skipped + 1, self.total + 1
        if self.skipped >= PATIENCE:
            raise NonFiniteError(
                f"loss or gradient not finite since step {self.since}: {PATIENCE} steps in a row were skipped; it came from {where}. "
                f"{last_good}. Try a smaller --lr, --precision fp32, or look at the data"
            )
        return f"step {step}: not finite in {where}; the step was skipped, nothing changed"
