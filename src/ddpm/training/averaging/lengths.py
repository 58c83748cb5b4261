"""Lengths of the weight average compared after training, by the held-out loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from ddpm.errors import CheckpointError
from ddpm.training.averaging.ema import name_of
from ddpm.training.averaging.posthoc import LIMIT, Profile, combine, fit, within_reach
from ddpm.training.averaging.snapshots import kept
from ddpm.training.checkpoints.checkpoint import Checkpoint


class Scored(NamedTuple):
    """The held-out loss of a set of weights, and how far off its profile is, a share of its norm: 0 where tracked, None for no average."""

    loss: float
    error: float | None


class Lengths:
    """The averages that can be made for a checkpoint from what its run kept; each is scored once.

    module: what the weights go into; `loss` measures it as it is then. scores: all results so far, by name.
    """

    def __init__(self, saved: Checkpoint, module: nn.Module, loss: Callable[[], float], notice: Callable[[str], None]) -> None:
        self.saved, self.module, self.loss = saved, module, loss
        self.held = kept(saved, [name for name, _ in module.named_parameters()], notice)
        self.end = int(saved.document("state")["good_steps"])
        self.scores: dict[str, Scored] = {}

    @property
    def tracked(self) -> list[float]:
        """The lengths that were tracked, in the order of the run's settings."""
        return [one.profile.width for one in self.held if one.profile.end == self.end]

    def reach(self) -> tuple[float, float]:
        """The shortest and the longest length that can be made; CheckpointError where none but those tracked can."""
        profiles = [one.profile for one in self.held]
        found = within_reach(profiles, self.end) if len({profile.end for profile in profiles}) > 1 else None
        if found is None:
            names = ", ".join(name_of(width) for width in self.tracked) or "none"
            raise CheckpointError(
                f"{self.saved.path.parent} kept too few snapshots up to step {self.saved.step} to make another average than those tracked "
                f"({names}). Train with --ema 0.05,0.1 and --snapshots N, N about a thirtieth of the steps; "
                "a tracked one is used with ddpm sample --weights NAME"
            )
        return found

    def make(self, length: float) -> tuple[dict[str, Tensor], float]:
        """The parameters of an average, and how far off its profile is; CheckpointError where that is too far."""
        wanted = Profile(self.end, length)
        same = next((one for one in self.held if one.profile.end == self.end and name_of(one.profile.width) == name_of(length)), None)
        if same is not None:
            return same.read(), 0.0
        low, high = self.reach()
        found = fit([one.profile for one in self.held], wanted)
        if found.error > LIMIT:
            raise CheckpointError(
                f"length {length:g} cannot be made from these snapshots, its profile would be off by {100 * found.error:.0f} %; "
                f"{low:.3f} to {high:.3f} can. More snapshots (a smaller --snapshots) and two lengths (--ema 0.05,0.1) reach further"
            )
        return combine([one.read for one in self.held], found.coefficients), found.error

    def score(self, length: float) -> float:
        """The held-out loss of an average; three decimals of the length count."""
        name = name_of(length)
        if name not in self.scores:
            parameters, error = self.make(length)
            self._measure(name, parameters, error)
        return self.scores[name].loss

    def score_raw(self) -> float:
        """The held-out loss of the last weights."""
        self._measure("raw", {}, None)
        return self.scores["raw"].loss

    def _measure(self, name: str, parameters: Mapping[str, Tensor], error: float | None) -> None:
        self.module.load_state_dict({**self.saved.tensors("model"), **parameters})
        self.scores[name] = Scored(self.loss(), error)
