"""The sampler's contract: `plan` once in float64, then `step` row by row.

A row holds two instants and a few numbers; a step combines them with the model's prediction and knows no schedule, no index and no
prediction type.
"""

# torch leaves the functions of torch.special and torch.linalg and Tensor.tolist untyped; their results are annotated here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ddpm.config import check
from ddpm.errors import ConfigError
from ddpm.process import At, Process

if TYPE_CHECKING:
    import torch

    from ddpm.denoiser import Model, Prediction
else:
    from ddpm.lazy import torch

State = tuple["torch.Tensor", ...]  # fixed in number and size: what a multistep method remembers


class Row(NamedTuple):
    """One step: from `now` to `next`, with the method's coefficients and the further instants it calls at, all () on the device."""

    now: At
    next: At
    coefficients: tuple[torch.Tensor, ...]
    stages: tuple[At, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A table in float64 on the host: instants (rows + 1, the last `clean`), coefficients (rows, K), and of each stage instants (rows,).

    Instants may rise where a method goes back up to more noise. A row without some stage has NaN there and is handed fewer.
    """

    instants: At
    coefficients: torch.Tensor
    stages: tuple[At, ...] = ()

    def __len__(self) -> int:
        return len(self.coefficients)

    def called(self) -> torch.Tensor:
        """log-SNR of every instant the model may be called at, stages included."""
        every = torch.cat([self.instants_now.log_snr, *(stage.log_snr for stage in self.stages)])
        return every[~every.isnan()]

    def levels(self) -> list[tuple[float, float]]:
        """The least and the most sigma/alpha of each row's instants, where it may call the model and where it goes."""
        at = self.instants.ratio
        spread = torch.stack([at[:-1], at[1:], *(stage.ratio for stage in self.stages)])
        least: list[float] = spread.amin(0).tolist()
        most: list[float] = spread.amax(0).tolist()
        return list(zip(least, most, strict=True))

    def rows(self, like: torch.Tensor) -> list[Row]:
        """The table in x's precision on x's device, moved in one copy, a row a step."""
        columns = [level[:-1] for level in self.instants] + [level[1:] for level in self.instants]
        columns += [level for stage in self.stages for level in stage]
        head, width = len(columns), self.coefficients.shape[1]
        present: list[list[bool]] = torch.stack([~stage.t.isnan() for stage in (self.instants_now, *self.stages)], 1).tolist()
        table = torch.cat([torch.stack(columns, 1), self.coefficients], 1).to(dtype=like.dtype).to(device=like.device)
        rows: list[Row] = []
        for line, there in zip(table.unbind(), present, strict=True):
            cells = line.unbind()
            stages = tuple(At(*cells[6 + 3 * i : 9 + 3 * i]) for i, is_there in enumerate(there[1:]) if is_there)
            rows.append(Row(At(*cells[:3]), At(*cells[3:6]), cells[head : head + width], stages))
        return rows

    @property
    def instants_now(self) -> At:
        """Where each row begins."""
        return At(*(level[:-1] for level in self.instants))


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """A sampling method. Members write `plan` and `step`; everything the process knows is put into the plan."""

    def __post_init__(self) -> None:
        check(self)

    @property
    def convergence(self) -> int:
        """Order at which its end point approaches the probability flow's; 1 for stochastic methods, whose law does."""
        return 1

    def reads(self, meaning: str) -> bool:
        """Whether it walks models of this meaning (`Student`): of a mean, as everything must that solves an ODE or SDE."""
        return meaning == "mean"

    @property
    def least(self) -> int:
        """The fewest steps a plan may have."""
        return 1

    @property
    @abstractmethod
    def draws(self) -> int:
        """How many unit normals for each sample a step wants: z is None for 0, (B, *D) for 1, (draws, B, *D) for more."""

    @property
    def stochastic(self) -> bool:
        """Whether a step wants unit normals z."""
        return self.draws > 0

    @abstractmethod
    def plan(self, model: Model, times: torch.Tensor) -> Plan:
        """The table for these instants (steps,), strictly decreasing, ending at `clean`."""

    def init(self, x: torch.Tensor) -> State:
        """What is remembered at the start: nothing, unless a method says so."""
        return ()

    @abstractmethod
    def step(self, model: Model, x: torch.Tensor, row: Row, state: State, z: torch.Tensor | None) -> tuple[torch.Tensor, State, Prediction]:
        """x at `row.now` -> x at `row.next`."""

    def rows(self, steps: int) -> int:
        """Rows of the plan of a grid of `steps` instants."""
        return steps

    def calls(self, steps: int) -> int:
        """Network calls of a plan of `steps`."""
        return steps


def steps_for(sampler: Sampler, calls: int) -> int:
    """The most steps whose network calls stay within `calls`; ConfigError where not even the fewest steps do."""
    steps = max((n for n in range(1, calls + 1) if sampler.calls(n) <= calls), default=0)
    if steps < sampler.least:
        needed = sampler.calls(sampler.least)
        from ddpm.sampling.presets import name_of

        name = name_of(sampler)
        raise ConfigError(f"nfe: got {calls}, {name} needs at least {needed} network calls; allow more, or name another sampler")
    return steps


def instants(process: Process, times: torch.Tensor) -> At:
    """The instants of `times` followed by `clean`, float64 (steps + 1,). ConfigError unless times fall strictly within (0, 1]."""
    times = times.to(dtype=torch.float64, device="cpu")
    if not len(times) or not bool((times.diff() < 0).all()) or times[-1] <= 0 or times[0] > 1:
        given: list[float] = times[:8].tolist()
        raise ConfigError(f"times: got {[round(t, 6) for t in given]}..., must fall strictly from at most 1 to above 0")
    at = process.at(times)
    return At(*(torch.cat([level, end[None]]) for level, end in zip(at, process.clean, strict=True)))


def pairs(at: At) -> tuple[At, At]:
    """(s, t): the next and the present instants of every row."""
    return At(*(level[1:] for level in at)), At(*(level[:-1] for level in at))
