"""Our side of `samplers.py`: the samplers by name, and the grids each of them is tried on. A new sampler is one more line."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from sampler_worlds import LINEAR, World, walk
from torch import Tensor

from ddpm.errors import ConfigError
from ddpm.process import Grid, Karras, Leading, Level, LogSNR, Quadratic, Trailing, Uniform
from ddpm.sampling import DDIM, PRESETS, Ancestral, EulerMaruyama, Multistep, Restart, Sampler

_NAMES = {preset.name: preset.value for preset in PRESETS}


def preset(name: str) -> Sampler:
    """The sampler of that name."""
    value = _NAMES[name]
    assert isinstance(value, Sampler)
    return value


ODE: dict[str, Sampler] = {
    "DDIM": DDIM(),
    **{name: preset(name) for name in ("dpm++2m", "dpm++3m", "dpm++2s", "dpm-solver-2", "dpm-solver-3", "heun", "edm")},
    **{name: preset(name) for name in ("unipc", "unipc-bh1", "deis", "ipndm", "lms", "adams")},
    "adams of order 2": Multistep(prediction="flow", variable="level", order=2, rule="exact", corrector=True),
}
TUNED = ("dpm++2m", "unipc", "adams", "adams of order 2")

STOCHASTIC: dict[str, Sampler] = {
    "Ancestral small": Ancestral(variance="small"),
    "Ancestral large": Ancestral(variance="large"),
    "Ancestral analytic": Ancestral(variance="analytic"),
    "DDIM eta=0.5": DDIM(eta=0.5),
    "Euler-Maruyama": EulerMaruyama(),
    **{name: preset(name) for name in ("edm-churn", "sde-dpm++2m", "sde-dpm++3m", "sa-solver", "pc")},
    "sa-solver tau=0.5": Multistep(order=3, corrector=True, noise=0.5),
    "sa-solver tau=0.3": Multistep(order=3, corrector=True, noise=0.3),
    "Restart": Restart(repeats=1, inner=2),
}


def _family(grid: Grid, steps: int) -> Tensor:
    return grid.times(LINEAR, steps)


GRIDS: dict[str, Callable[[int], Tensor]] = {
    "trailing": partial(_family, Trailing()),
    "uniform": partial(_family, Uniform()),
    "leading": partial(_family, Leading()),
    "quadratic": partial(_family, Quadratic()),
    "log-SNR": partial(_family, LogSNR()),
    "Karras": partial(_family, Karras()),
    "Karras rho=14": partial(_family, Karras(rho=14.0)),
    "level": partial(_family, Level()),
    "level, shift 0.5": partial(_family, Level(shift=0.5)),
    "level, shift 2": partial(_family, Level(shift=2.0)),
}


def tuned_start(world: World, sampler: Sampler, steps: int) -> Tensor:
    """The instants a fit begins with: the best of the grids above."""
    scored: list[tuple[float, Tensor]] = []
    for times in GRIDS.values():
        try:
            error = world.rms(walk(world, sampler, times(steps)))
            scored.append((error if math.isfinite(error) else math.inf, times(steps)))
        except ConfigError:
            continue
    return min(scored, key=lambda one: one[0])[1]
