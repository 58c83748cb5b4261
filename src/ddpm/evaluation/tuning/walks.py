"""Walks of one sampler from fixed starts over any instants, and how far their ends are from those of a reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.denoiser import Cond, Denoiser
from ddpm.errors import ConfigError
from ddpm.process import Grid, Process
from ddpm.sampling import Sampler, sample
from ddpm.sampling.clip import Clip

FIRST = 2**40  # number of the first start: far from the samples anybody draws


class BudgetSpent(Exception):
    """The next walk would go over the budget."""


@dataclass(frozen=True, kw_only=True)
class Free(Grid):
    """Instants as they are: the search has put them on knots where there are any."""

    at: tuple[float, ...]

    def __post_init__(self) -> None:
        """Nothing to check: the search made them."""

    def times(self, process: Process, steps: int) -> Tensor:
        """The instants."""
        return torch.tensor(self.at, dtype=torch.float64)


class Walks:
    """Walks of a denoiser from starts `FIRST` + i, counted in calls of it: n samples of a plan of k calls are n k.

    cond: (starts, ...) tensors, or None. limit: calls allowed; `BudgetSpent` beyond. clip, batch, dtype, autocast: as `ddpm.sample`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        cond: Cond,
        seed: int,
        limit: float,
        *,
        clip: Clip,
        batch: int,
        dtype: torch.dtype,
        autocast: torch.dtype | None,
    ) -> None:
        self.denoiser, self.cond, self.seed, self.limit, self.spent = denoiser, cond, seed, limit, 0
        self.clip: Clip = clip
        self.batch, self.dtype, self.autocast = batch, dtype, autocast

    def ends(self, sampler: Sampler, grid: Grid | None, steps: int, which: range, denoiser: Denoiser | None = None) -> Tensor:
        """Where the walks from these starts end, (len(which), *D) in the space diffused in, float64."""
        calls = len(which) * sampler.calls(steps)
        if self.spent + calls > self.limit:
            raise BudgetSpent
        self.spent += calls
        cond = {key: value[which.start : which.stop] for key, value in self.cond.items()} if self.cond else None
        ends = sample(
            denoiser or self.denoiser, len(which), steps=steps, sampler=sampler, grid=grid, seed=self.seed, first=FIRST + which.start,
            cond=cond, clip=self.clip, batch=self.batch, decode=False, dtype=self.dtype, autocast=self.autocast,
        )  # fmt: skip
        return ends.to(device="cpu", dtype=torch.float64)

    def apart(
        self, sampler: Sampler, grid: Grid | None, steps: int, which: range, truth: Tensor, denoiser: Denoiser | None = None
    ) -> float:
        """Root mean square, per entry, of the distance to the reference's ends (all starts, *D); infinite where a walk does not stay finite
        or the sampler refuses these instants.
        """
        try:
            return rms(self.ends(sampler, grid, steps, which, denoiser) - truth[which.start : which.stop])
        except ConfigError:
            return float("inf")


def rms(gap: Tensor) -> float:
    """Root mean square of all entries; infinite where one is not finite."""
    value = gap.square().mean().sqrt().item()
    return value if value == value else float("inf")
