"""What is taken where nobody says: the sampler, the number of steps and the grid that suit a denoiser, distilled or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ddpm.config import from_dict
from ddpm.denoiser.student import refusal
from ddpm.errors import ConfigError
from ddpm.process import GRIDS, Grid, Listed, default_grid
from ddpm.sampling.adaptive import Adaptive
from ddpm.sampling.consistency import Consistency
from ddpm.sampling.ddim import DDIM
from ddpm.sampling.presets import name_of
from ddpm.sampling.sampler import Sampler

if TYPE_CHECKING:
    from ddpm.denoiser import Denoiser

STEPS = 50


class Way(NamedTuple):
    """How a denoiser is walked."""

    sampler: Sampler | Adaptive
    steps: int
    grid: Grid


def named(sampler: Sampler | Adaptive | str | None, grid: Grid | str | None) -> tuple[Sampler | Adaptive | None, Grid | None]:
    """Both as objects: "dpm++2m" and "karras" as the command line has them. ConfigError for names there are none of."""
    if isinstance(sampler, str):
        from ddpm.sampling import PRESETS, SAMPLERS

        sampler = from_dict(Sampler, {"name": sampler}, {Sampler: (*SAMPLERS, Consistency, *PRESETS)}, "sampler")
    return sampler, from_dict(Grid, {"name": grid}, {Grid: GRIDS}, "grid") if isinstance(grid, str) else grid


def usual_sampler(denoiser: Denoiser) -> Sampler:
    """DDIM, which a student that jumps between its instants is made for too; `Consistency` for a map."""
    return Consistency() if denoiser.meaning == "map" else DDIM()


def usual_steps(denoiser: Denoiser, fallback: int = STEPS) -> int:
    """As many as a student was made for, one for a map, else the fallback, or a shorter chain's own."""
    length = denoiser.process.schedule.T
    return len(denoiser.times) or (1 if denoiser.meaning == "map" else min(fallback, length or fallback))


def way(denoiser: Denoiser, sampler: Sampler | Adaptive | str | None, steps: int | None, grid: Grid | str | None) -> Way:
    """The way asked for, completed by what suits; ConfigError where the denoiser cannot be walked so."""
    sampler, grid = named(sampler, grid)
    chosen = sampler or usual_sampler(denoiser)
    if isinstance(chosen, Sampler) and not chosen.reads(denoiser.meaning):
        if denoiser.meaning == "mean":
            raise ConfigError(f"sampler {type(chosen).__name__}: is for distilled models, and this one predicts a mean; use another")
        raise ConfigError(f"sampler {name_of(chosen)}: {refusal(denoiser.meaning, walk=True)}")
    count = steps if steps is not None else usual_steps(denoiser)
    if denoiser.times and (count != len(denoiser.times) or not (grid is None or grid == Listed(at=denoiser.times))):
        raise ConfigError(
            f"steps: got {count}{'' if grid is None else f' on {type(grid).__name__}'}; this model was distilled for its own "
            f"{len(denoiser.times)}, leave steps and grid out"
        )
    return Way(chosen, count, grid or (Listed(at=denoiser.times) if denoiser.times else default_grid(denoiser.process, count)))
