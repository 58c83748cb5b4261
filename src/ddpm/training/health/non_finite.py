"""Non-finite numbers: found before they touch anything, traced to where they came from, and not for ever."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ddpm.data.dataset import Dataset, Rows
from ddpm.errors import NonFiniteError
from ddpm.training.distributed.parallel import local
from ddpm.training.feed import Batch
from ddpm.training.health.trace import bad_gradients, trace

PATIENCE = 10  # steps in a row that may be skipped
OVERFLOW = "the norm of the gradient, which overflowed"  # where no rank finds a source
EVERYWHERE = ("the weights",)  # how a source begins that is the same on every rank


def told_rows(rows: Rows, dataset: Dataset) -> str:
    """Rows of the data for a message, with the files they were read from where those are known."""
    names = [name for name in map(dataset.name, rows[:3].tolist()) if name is not None]
    more = ", ..." if len(names) < len(rows) else ""
    return f"data rows {rows[:8].tolist()}" + (f" ({', '.join(names)}{more})" if names else "")


def cause(
    module: nn.Module, batch: Batch, loss: Tensor, dataset: Dataset, again: Callable[[], Tensor], *, whole: bool = True
) -> str | None:
    """Where the first NaN or infinity of a pass is: the batch, the weights, the loss or the gradient, with names and rows; None where
    this pass has none.

    again: the losses (B,) of the pass once more. whole: the parameters are; of sharded ones each rank runs the pass, and no gradient.
    """

    def bad(tensor: Tensor) -> bool:
        return not bool(torch.isfinite(local(tensor)).all())  # this rank's part: the others look at theirs

    place, losses = ("", loss) if whole else trace(module, again)
    if bad(batch.x0):
        rows = batch.rows[(~torch.isfinite(batch.x0).flatten(1).all(1)).cpu().numpy()]
        return f"the batch: {told_rows(rows, dataset)}"
    weights = [name for name, parameter in module.named_parameters() if bad(parameter.detach())]
    if weights:
        return f"the weights: {', '.join(weights[:3])}"
    if whole:
        place, losses = trace(module, again)
    if bad(loss):
        rows = batch.rows[(~torch.isfinite(loss)).cpu().numpy()]
        return f"the loss of {told_rows(rows, dataset)}: {place}"
    gradients = bad_gradients(module, losses) if whole and losses.requires_grad else []
    return f"the gradient of {', '.join(gradients[:3])}" if gradients else None


class Health:
    """Counts skipped steps; ends the run after ten in a row."""

    def __init__(self) -> None:
        self.skipped, self.total, self.since = 0, 0, 0

    def good(self) -> None:
        """A step went through."""
        self.skipped = 0

    def skip(self, step: int, where: str, left: str) -> str:
        """A step was skipped with nothing changed; returns what to say. NonFiniteError at the tenth in a row; left: what is left."""
        self.since = self.since if self.skipped else step
        self.skipped, self.total = self.skipped + 1, self.total + 1
        if self.skipped >= PATIENCE:
            raise NonFiniteError(
                f"loss or gradient not finite since step {self.since}: {PATIENCE} steps in a row were skipped; it came from {where}; "
                f"{left}. Try a smaller --lr, --precision fp32, or look at the data"
            )
        return f"step {step}: not finite in {where}; the step was skipped, nothing changed"
