"""How the commands draw from a trained model: the flags that say it, and the model made ready by them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ddpm.config import Families, Layer, check, setting
from ddpm.errors import ConfigError, DataError
from ddpm.evaluation.drawing.guiding import Guiding
from ddpm.evaluation.drawing.kept import Drawn, rank
from ddpm.evaluation.drawing.settled import AUTO, asked_for_auto, settle, typed_of
from ddpm.evaluation.drawing.starting import Starting
from ddpm.process import GRIDS, Full, Grid, Listed
from ddpm.sampling import DDIM, PRESETS, SAMPLERS, Consistency, Sampler, way
from ddpm.sampling.presets import name_of
from ddpm.shortage import smaller_batch

if TYPE_CHECKING:
    import torch

    from ddpm.denoiser import Codec, Cond, Denoiser, LatentCodec, NetworkDenoiser
    from ddpm.training.machine import Machine

FAMILIES: Families = {Sampler: (*SAMPLERS, Consistency, *PRESETS, AUTO), Grid: GRIDS}


@dataclass(frozen=True, kw_only=True)
class How:
    """The way from noise to samples, and what computes it."""

    guide: Guiding = setting(Guiding(), "", flat=True)
    sampler: Sampler = setting(
        DDIM(),
        "method; without the flag what ddpm tune found for this run is used; auto: that, or a good choice where nothing was tuned",
        group="how",
    )
    steps: int | None = setting(
        None, "steps; none: what was tuned or distilled, else 50, or a shorter chain's own", low=1, high=1_000_000, group="how"
    )
    nfe: int | None = setting(
        None, "network calls for each sample, instead of --steps: some samplers make several a step", low=1, high=1_000_000, group="how"
    )
    grid: Grid | None = setting(None, "which noise levels are visited; none: what suits the schedule", group="how")
    clip: Literal["auto", "off", "static", "dynamic"] = setting(
        "auto", "keep predictions in the data's range; auto: for pictures and other levels", group="how"
    )
    clip_quantile: float = setting(
        0.995, "of |x0|: what clip dynamic clips to, then scales back into the range", above=0.0, high=1.0, group="how"
    )
    tile: int | None = setting(
        None,
        "of a model in latents: decode tiles of so many along each axis, which overlap, so that memory does not grow with the picture; "
        "none: all at once",
        low=8,
        high=65_536,
        group="how",
    )
    weights: str = setting("ema", "ema: the averaged weights; raw: the last ones; ema-0.100: a certain average", group="how")
    step: int | Literal["best"] | None = setting(
        None, "training step of the checkpoint; best: that of lowest held-out loss; none: the newest", low=0, group="how"
    )
    batch: int = setting(256, "samples drawn at once", low=1, high=1_000_000, group="how")
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "where to compute", group="how")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting("auto", "of the network", group="how")
    compile: Literal["none", "default", "reduce-overhead", "max-autotune"] = setting(
        "none", "torch.compile: default: whole steps; other modes: the network; pays for many samples on an accelerator", group="how"
    )

    def __post_init__(self) -> None:
        both = self.nfe is not None and self.steps is not None
        check(self, ["nfe: says the same as steps in network calls; give one of the two"] if both else [])


class Ready(NamedTuple):
    """A model that can be drawn from: alone and as guided, the names of its classes, its description, and the way decided in every part."""

    model: NetworkDenoiser
    guided: Denoiser
    names: list[str]
    document: Mapping[str, Any]
    machine: Machine
    how: How
    steps: int
    grid: Grid | None
    chosen: str  # where the way comes from, for the last line

    @property
    def compiled(self) -> bool:
        """Whether whole steps are translated; CUDA graphs, of the other modes, hold the network alone."""
        return self.how.compile == "default"

    @contextmanager
    def executing(self) -> Generator[None]:
        """Within this context samples are drawn: the network laid out or compiled, a shortage of memory explained."""
        from ddpm.training.machine import executed

        with smaller_batch(self.how.batch), executed(self.model.network, self.how.compile, self.machine.device):
            yield

    def draw(
        self,
        first: int,
        size: int,
        seed: int,
        cond: Cond,
        start: torch.Tensor | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> torch.Tensor:
        """Samples first .. first + size - 1 of this seed, in the data's units, on the host."""
        from ddpm.sampling import sample

        how = self.how
        x = sample(
            self.guided, size, steps=self.steps, sampler=how.sampler, grid=self.grid, seed=seed, first=first, cond=cond, clip=how.clip,
            clip_quantile=how.clip_quantile, batch=size, start=start, autocast=self.machine.autocast,
            compiled=self.compiled, progress=progress, decode=False,
        )  # fmt: skip
        bad = int((~x.flatten(1).isfinite()).any(1).sum())  # levels of data cannot say so any more
        if bad:
            raise DataError(
                f"samples: {bad} of {size} are not finite ({name_of(how.sampler)}, {self.steps} steps); other clipping or more steps may "
                "help; where all are, the weights may be broken: look at the log of the run, or take an earlier --step"
            )
        return self.model.codec.decode(x).cpu()

    def told(self, seed: int) -> str:
        """Sampler, steps, seed and the rest, in words."""
        clip = self.how.clip if self.how.clip != "auto" else ("static" if self.model.codec.discrete else "off")
        way = f"{name_of(self.how.sampler)}, {self.steps} steps, seed {seed}, clip {clip}"
        tiles = f", decoded in tiles of {self.how.tile}" if self.how.tile else ""
        return f"{way}{tiles}, {self.document['weights']}{self.how.guide.told}"


def ready(run: str, how: How, typed: Layer, start: Starting | None = None) -> Ready:
    """Load the run's model and settle how it is walked; ConfigError, CheckpointError for what does not fit or is not there."""
    from ddpm.training.machine import choose
    from ddpm.training.state import load_with_card

    start = start or Starting()
    loaded, document = load_with_card(run, step=how.step, weights=how.weights)
    machine = choose(how.device, how.precision, None, sum(p.numel() for p in loaded.parameters()))
    model: NetworkDenoiser = loaded.to(machine.device)
    if how.tile is not None:
        model.codec = _tiling(model.codec, how.tile)
    how = replace(how, step=document["step"]) if how.step == "best" else how
    if model.meaning != "mean":
        return _distilled(model, document, machine, how, typed, start)
    how, chosen = settle(how, start, typed, run, model.process)
    length = model.process.schedule.T
    steps = how.steps or (len(how.grid.at) if isinstance(how.grid, Listed) else None)
    steps = steps or (length if isinstance(how.grid, Full) and length else min(50, start.knots(length) or 50))
    how.guide.check_model(document)
    guided, names = how.guide.guided(model, document, run, how.weights)
    return Ready(model, guided, names, document, machine, how, steps, start.grid(how.grid), chosen)


def _tiling(codec: Codec, tile: int) -> LatentCodec:
    """The codec that decodes in tiles; ConfigError for one that has nothing to decode."""
    from ddpm.denoiser import LatentCodec

    if not isinstance(codec, LatentCodec):
        raise ConfigError(f"tile: got {tile}, but this model draws samples as they are, without an autoencoder; leave --tile out")
    return replace(codec, tile=tile)


def _distilled(model: NetworkDenoiser, document: Mapping[str, Any], machine: Machine, how: How, typed: Layer, start: Starting) -> Ready:
    """As `ready`, of a student that is no mean: it knows its sampler, and its steps where it was made for some."""
    if start.source is not None:
        raise ConfigError("from: this model was distilled to begin from noise; take variations with the teacher")
    if how.guide.active and (how.guide.kind != "cfg" or not model.guided):
        way_out = "distil the teacher again with --method.guidance, or by the method guidance, whose student takes a scale"
        raise ConfigError(f"--guidance: a student's guidance is settled when it is made; {way_out}")
    named = "sampler" in typed_of(typed) and not asked_for_auto(typed)
    steps = how.steps if how.steps is not None else how.nfe
    steps = len(how.grid.at) if steps is None and isinstance(how.grid, Listed) else steps
    sampler, steps, grid = way(model, how.sampler if named else None, steps, how.grid)
    assert isinstance(sampler, Sampler)  # flags name no other
    guided, names = how.guide.guided(model, document, "", how.weights)
    return Ready(model, guided, names, document, machine, replace(how, sampler=sampler, nfe=None), steps, grid, ", as it was distilled")


def shown(done: int, total: int, what: str = "sampling") -> None:
    """Progress on a terminal, a hundred times at most."""
    if sys.stderr.isatty() and (done % max(1, total // 100) == 0 or done == total):
        print(f"\r{what} {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def draw(
    drawing: Ready, seed: int, n: int, cond: Cond, drawn: Drawn | None = None, embed: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> torch.Tensor:
    """n samples, on the host; kept in `drawn` batch by batch, where what was drawn before is taken from, and shared by all processes.

    embed: makes features of samples, which are kept beside them: each process those of what it drew.
    """
    import torch

    size, (mine, of) = drawing.how.batch, rank() if drawn else (0, 1)
    parts: list[torch.Tensor] = []
    with drawing.executing():
        for first in range(mine * size, n, of * size):
            if drawn is None or not drawn.has(first):
                part = slice(first, min(first + size, n))
                some = {key: value[part] for key, value in cond.items()} if cond else None
                parts.append(drawing.draw(first, part.stop - first, seed, some))
                if drawn is not None:
                    drawn.begin()
                    made = parts.pop()
                    drawn.add(first, made.numpy(), None if embed is None else embed(made).numpy())
            shown(min(first + size, n), n)
    if drawn is None:
        return torch.cat(parts)
    if mine:
        return torch.empty(0)
    drawn.wait(n)
    return torch.from_numpy(drawn.all())
