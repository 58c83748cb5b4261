"""Grids: the instants 1 >= t_1 > ... > t_steps > 0 at which a sampler calls the network. Every plan then ends at `Process.clean`."""

# torch leaves the functions of torch.special and torch.linalg and Tensor.tolist untyped; their results are annotated here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float64

from ddpm.config import check, setting
from ddpm.errors import ConfigError
from ddpm.process.process import Process
from ddpm.process.schedule import EDM, VE

if TYPE_CHECKING:
    import torch
else:
    from ddpm.lazy import torch

LOG_SNR_RANGE = (-14.0, 14.0)  # where grids in log-SNR stop when the schedule itself goes on to infinity


@dataclass(frozen=True, kw_only=True)
class Grid(ABC):
    """Where a sampler stops: `times(process, steps)` is float64 on the host, strictly decreasing, within [process.schedule.first, 1]."""

    def __post_init__(self) -> None:
        check(self)

    @abstractmethod
    def times(self, process: Process, steps: int) -> Float64[torch.Tensor, "{steps}"]:
        """The instants of `steps` network calls. Raises ConfigError where there are not that many."""


def _on_chain(process: Process, times: torch.Tensor, name: str) -> torch.Tensor:
    """Rounded to the knots of a chain (a network is called only at instants it was trained at); refused when knots repeat."""
    length, steps = process.schedule.T, len(times)
    if length is None:
        return times
    knots = (times * length).round().clamp(1, length)
    distinct: torch.Tensor = knots.unique()
    if len(distinct) < steps:
        raise ConfigError(
            f"steps: got {steps} on the {name} grid, whose instants fall together on this chain of {length}; "
            "use fewer steps or the trailing grid"
        )
    return knots / length


def _checked(process: Process, steps: int) -> None:
    length = process.schedule.T
    if steps < 1 or (length is not None and steps > length):
        raise ConfigError(f"steps: got {steps}, allowed 1 to {length or 'any number'}: the chain has {length or 'no'} steps")


@dataclass(frozen=True, kw_only=True)
class Full(Grid):
    """Every step of the chain: t = 1, (T-1)/T, ..., 1/T. Reference: Ho et al., 2020, arXiv:2006.11239, algorithm 2."""

    def times(self, process: Process, steps: int) -> Float64[torch.Tensor, "{steps}"]:
        """T/T, ..., 1/T; `steps` must be T."""
        if process.schedule.T != steps:
            raise ConfigError(
                f"steps: got {steps} on the full grid of a chain of {process.schedule.T}; give exactly that many, or another grid"
            )
        return torch.arange(steps, 0, -1, dtype=torch.float64) / steps


@dataclass(frozen=True, kw_only=True)
class Trailing(Grid):
    """t = k/steps, k = steps..1, rounded to the chain: begins at t = 1, all steps equal.

    Reference: Lin et al., 2023, arXiv:2305.08891, table 2.
    """

    def times(self, process: Process, steps: int) -> Float64[torch.Tensor, "{steps}"]:
        """1, ..., 1/steps."""
        _checked(process, steps)
        return _on_chain(process, torch.arange(steps, 0, -1, dtype=torch.float64) / steps, "trailing")


@dataclass(frozen=True, kw_only=True)
class Uniform(Grid):
    """Evenly from 1 down to the least noisy instant trained on, both included ("linspace").

    Reference: Nichol, Dhariwal, 2021, arXiv:2102.09672, section 4.
    """

    def times(self, process: Process, steps: int) -> Float64[torch.Tensor, "{steps}"]:
        """linspace(1, first, steps)."""
        _checked(process, steps)
        return _on_chain(process, torch.linspace(1.0, process.schedule.first, steps, dtype=torch.float64), "uniform")


@dataclass(frozen=True, kw_only=True)
class Leading(Grid):
    """first + k (T // steps)/T, k = steps-1..0: the first of each group of steps, so it begins below t = 1.

    Reference: Song et al., 2020, arXiv:2010.02502, appendix D.2, "linear".
    """

    def times(self, process: Process, steps: int) -> Float64[torch.Tensor, "{steps}"]:
        """first + k/steps with whole strides on a chain."""
        _checked(process, steps)
        length = process.schedule.T
        stride = (length // steps) / length if length else (1.0 - process.schedule.first) / steps
        return _on_chain(process, process.schedule.first + stride * torch.arange(steps - 1, -1, -1, dtype=torch.float64), "leading")


@dataclass(frozen=True, kw_only=True)
class Quadratic(Grid):
    """Evenly in sqrt(t) from `start` down to the first instant: finer near the data.

    Reference: Song, Meng, Ermon, 2020, arXiv:2010.02502, appendix D.2 (where start is 0.8; here 1 by default, the whole range).
    """

    start: float = setting(1.0, "where the grid begins", above=0.0, high=1.0)

    def times(self, process: Process, steps: int) -> Float64[torch.Tensor, "{steps}"]:
        """linspace(sqrt(start), sqrt(first), steps)^2."""
        _checked(process, steps)
        return _on_chain(
            process, torch.linspace(self.start**0.5, process.schedule.first**0.5, steps, dtype=torch.float64) ** 2, "quadratic"
        )


def log_snr_ends(process: Process) -> tuple[float, float]:
    """log-SNR at t = 1 and at the first instant, each kept within -14..14."""
    low, high = LOG_SNR_RANGE
    return max(process.log_snr(1.0).item(), low), min(process.log_snr(process.schedule.first).item(), high)


def _from_log_snr(process: Process, log_snr: torch.Tensor, name: str) -> torch.Tensor:
    """Instants of the wanted log-SNRs with both ends exact, on the chain where there is one."""
    times = process.time_of(log_snr)
    times[0] = 1.0
    if len(times) > 1 and log_snr[-1] >= process.log_snr(process.schedule.first):
        times[-1] = process.schedule.first
    return _on_chain(process, times, name)


@dataclass(frozen=True, kw_only=True)
class LogSNR(Grid):
    """Evenly in log-SNR over the whole range (within -14..14). Reference: Lu et al., 2022, arXiv:2206.00927, section 3.4."""

    def times(self, process: Process, steps: int) -> Float64[torch.Tensor, "{steps}"]:
        """time_of(linspace(log_snr(1), log_snr(first), steps))."""
        _checked(process, steps)
        return _from_log_snr(process, torch.linspace(*log_snr_ends(process), steps, dtype=torch.float64), "log-SNR")


@dataclass(frozen=True, kw_only=True)
class Karras(Grid):
    """Evenly in (sigma/alpha)^(1/rho). Reference: Karras et al., 2022, arXiv:2206.00364, eq. 5."""

    rho: float = setting(7.0, "larger: shorter steps near the data", above=0.0)

    def times(self, process: Process, steps: int) -> Float64[torch.Tensor, "{steps}"]:
        """(sigma_max^(1/rho) + i/(steps-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho in sigma/alpha."""
        _checked(process, steps)
        noisy, clean = (torch.tensor(-end / 2 / self.rho, dtype=torch.float64).exp().item() for end in log_snr_ends(process))
        return _from_log_snr(process, -2 * self.rho * torch.linspace(noisy, clean, steps, dtype=torch.float64).log(), "Karras")


@dataclass(frozen=True, kw_only=True)
class Level(Grid):
    """Trailing in the level u = sigma/(alpha + sigma): u = u(1) shift v / (1 + (shift - 1) v), v = k/steps, k = steps..1.

    On the straight schedule the trailing grid itself, shift > 1 spending more steps on noise. Reference: Esser et al., 2024,
    arXiv:2403.03206, eq. 23 (the shift).
    """

    shift: float = setting(1.0, "larger: more steps at high noise", above=0.0)

    def times(self, process: Process, steps: int) -> Float64[torch.Tensor, "{steps}"]:
        """time_of the levels, the last not below the first instant trained on."""
        _checked(process, steps)
        end = float(process.at(1.0).level)
        least = float(process.at(process.schedule.first).level) / end
        v = torch.linspace(1.0, max(1.0 / steps, least / (self.shift - (self.shift - 1.0) * least)), steps, dtype=torch.float64)
        u = end * self.shift * v / (1.0 + (self.shift - 1.0) * v)
        return _from_log_snr(process, 2.0 * ((1.0 - u) / u).log(), "level")


@dataclass(frozen=True, kw_only=True)
class Listed(Grid):
    """Instants given one by one, as a tuned grid is."""

    at: tuple[float, ...] = setting((), "strictly decreasing instants in (0, 1]")

    def __post_init__(self) -> None:
        falls = all(a > b for a, b in zip(self.at, self.at[1:], strict=False)) and all(0 < t <= 1 for t in self.at) and self.at
        check(self, [] if falls else [f"at: got {self.at}, must be strictly decreasing instants in (0, 1]"])

    def times(self, process: Process, steps: int) -> Float64[torch.Tensor, "{steps}"]:
        """The listed instants, rounded to the knots of a chain; `steps` must be their number."""
        if steps != len(self.at):
            raise ConfigError(f"steps: got {steps}, but the grid lists {len(self.at)} instants")
        least = process.schedule.first
        if process.schedule.T is not None and self.at[-1] < 0.5 * least:
            raise ConfigError(f"at: got {self.at[-1]:g}, below the chain's least noisy instant {least:g}; end the list there or above")
        return _on_chain(process, torch.tensor(self.at, dtype=torch.float64), "listed")


@dataclass(frozen=True, kw_only=True)
class Below(Grid):
    """Another grid squeezed into [first, begin]: for a walk that starts from data perturbed to t = begin instead of from noise.

    t -> first + (t - first) (begin - first)/(1 - first). On a chain rounded to different knots, of which round(begin T) lie below.
    """

    base: Grid | None = setting(None, "grid that is squeezed; none: what suits the schedule")
    begin: float = setting(0.5, "t where it begins", above=0.0, high=1.0)

    def times(self, process: Process, steps: int) -> Float64[torch.Tensor, "{steps}"]:
        """The base's instants, squeezed; ConfigError where fewer than `steps` lie below `begin`."""
        times = (self.base or default_grid(process, steps)).times(process, steps)
        first = process.schedule.first
        if self.begin < first or (self.begin == first and steps > 1):
            raise ConfigError(f"begin: got {self.begin} for {steps} steps, must lie above {first:g}, the least noisy instant trained on")
        squeezed = times if first == 1.0 else first + (times - first) * ((self.begin - first) / (1.0 - first))
        return squeezed if process.schedule.T is None else self._apart(squeezed, process.schedule.T)

    def _apart(self, times: torch.Tensor, length: int) -> torch.Tensor:
        """Rounded to knots; those that fall together are moved down, or up where the chain ends."""
        knots: list[int] = (times * length).round().clamp(min=1).int().tolist()
        steps = len(knots)
        if round(self.begin * length) < steps:
            raise ConfigError(
                f"steps: got {steps}, but this chain of {length} has {round(self.begin * length)} below t = {self.begin:g}; take fewer"
            )
        for i in range(1, steps):
            knots[i] = min(knots[i], knots[i - 1] - 1)
        return torch.tensor([max(knot, steps - i) for i, knot in enumerate(knots)], dtype=torch.float64) / length


def default_grid(process: Process, steps: int) -> Grid:
    """The grid a reader of the schedule's paper expects: full or trailing on a chain, Karras where alpha = 1, else trailing."""
    if process.schedule.T == steps:
        return Full()
    return Karras() if isinstance(process.schedule, VE | EDM) else Trailing()
