"""`ddpm interpolate`: what lies between two samples, according to a trained model."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ddpm.cli.prompting import Prompting
from ddpm.config import Parser, add_flags, check, flags_layer, resolve, setting
from ddpm.errors import ConfigError, DiskError
from ddpm.evaluation.drawing.kept import free_folder
from ddpm.evaluation.drawing.ready import FAMILIES
from ddpm.evaluation.drawing.starting import encoded, refuse_cascades, refuse_image_models
from ddpm.process import Grid
from ddpm.sampling import Sampler

if TYPE_CHECKING:
    import torch

HELP = """Show what lies between two samples: a strip from A to B, and an array file of it in the data's units.

  ddpm interpolate runs/photos a.png b.png             through their noises: the ends are A and B again
  ddpm interpolate runs/digits digits:900 digits:905 --n 10
  ddpm interpolate runs/photos a.png b.png --level 0.4    perturbed to t = 0.4 and mixed there: the ends vary about A and B

A and B are picture files, or anything `ddpm train --data` reads with :ROW behind it.
"""


@dataclass(frozen=True, kw_only=True)
class InterpolateConfig:
    """How many, by which route, and where they go."""

    n: int = setting(8, "samples from A to B, ends included", low=2, high=1000, group="what")
    level: float | None = setting(
        None, "mix A and B perturbed to this t; the larger, the freer; none: through their noises", above=0.0, high=1.0, group="what"
    )
    ask: Prompting = setting(Prompting(), "", flat=True)
    label: str | None = setting(None, "class of all of them; none: the model is not told one", flag="class", group="what")
    seed: int = setting(0, "of the noise of --level and of samplers that add some", low=0, high=2**63 - 1, group="what")
    sampler: Sampler | None = setting(None, "method on the way from noise; none: multistep, second order", group="how")
    steps: int | None = setting(None, "steps each way; none: 100, or a shorter chain's own", low=1, high=1_000_000, group="how")
    grid: Grid | None = setting(None, "which noise levels are visited; none: what suits the schedule", group="how")
    clip: Literal["auto", "off", "static", "dynamic"] = setting(
        "auto", "keep predictions in the data's range; auto: for pictures and other levels", group="how"
    )
    weights: str = setting("ema", "ema: the averaged weights; raw: the last ones; ema-0.100: a certain average", group="how")
    step: int | None = setting(None, "training step of the checkpoint; none: the newest", low=0, group="how")
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "where to compute", group="how")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting("auto", "of the network", group="how")
    out: str | None = setting(None, "folder; none: samples/ in the run folder", group="output")

    def __post_init__(self) -> None:
        fresh = f"sampler: {type(self.sampler).__name__} adds noise and does not come back to A and B; give a --level too"
        check(self, [fresh] if self.level is None and self.sampler is not None and self.sampler.stochastic else [])


def add(parser: Parser) -> None:
    """The command's arguments."""
    parser.add_argument("run_folder", metavar="RUN", help="run folder, or one of its step folders")
    parser.add_argument("first", metavar="A", help="a picture, or DATA:ROW")
    parser.add_argument("second", metavar="B", help="a picture, or DATA:ROW")
    add_flags(parser, InterpolateConfig, FAMILIES)


def condition(label: str | None, names: list[str], dropout: float) -> dict[str, torch.Tensor] | None:
    """The class asked for, (1,); None for none. ConfigError for what the model does not know, or cannot do without."""
    import torch

    if label is None:
        if names and dropout == 0.0:
            raise ConfigError("--class: this model was trained with --cond-dropout 0, so it must be told a class; name one")
        return None
    if label not in names:
        shown = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
        raise ConfigError(f"--class: got {label}; " + (f"this model knows {shown}" if names else "this model knows no classes"))
    return {"class": torch.tensor([names.index(label)])}


def _write(ends: Any, between: Any, codec: Any, folder: Path) -> list[Path]:
    """between.npz, and strip.png (A, the samples, B) where they can be seen."""
    import numpy as np

    from ddpm.data.export import as_pictures, grid, save_npz, save_picture
    from ddpm.training.preview import limits

    written = [save_npz(between, None, folder / "between.npz")]
    pictures = as_pictures(np.concatenate([ends[:1], between, ends[1:]]))
    if pictures is not None:
        written.append(save_picture(grid(pictures, limits(codec), columns=len(pictures), width=960), folder / "strip.png"))
    return written


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Load, read A and B, walk, write."""
    config = resolve(InterpolateConfig, [flags_layer(args, extra, args.parser, InterpolateConfig, FAMILIES)], FAMILIES)
    import torch

    from ddpm.sampling import interpolate
    from ddpm.training.machine import choose
    from ddpm.training.state import load_with_card

    loaded, document = load_with_card(args.run_folder, step=config.step, weights=config.weights)
    machine = choose(config.device, config.precision, None, sum(p.numel() for p in loaded.parameters()))
    model = loaded.to(machine.device)
    refuse_image_models(args.run_folder, document["cond"]["image"])
    refuse_cascades(args.run_folder, model, "its latents go with one smaller sample each; interpolate with the smaller model")
    cond = condition(config.label, document["classes"], document["cond_dropout"])
    cond = config.ask.beside(cond, model, document, 1)
    cond = {key: value.to(machine.device) for key, value in cond.items()} if cond else None
    a, b = encoded(args.first, model), encoded(args.second, model)
    length = model.process.schedule.T
    available = length if length is None or config.level is None else max(1, round(config.level * length))
    steps = config.steps or min(100, available or 100)
    home = Path(args.run_folder).resolve().parent if (Path(args.run_folder) / "manifest.json").is_file() else Path(args.run_folder)
    folder = free_folder(Path(config.out) if config.out else None, home / "samples" / "between")
    drawn = interpolate(
        model, a, b, config.n, level=config.level, steps=steps, sampler=config.sampler, grid=config.grid, seed=config.seed, cond=cond,
        clip=config.clip, autocast=machine.autocast,
    )  # fmt: skip
    ends, between = (model.codec.decode(x).cpu().numpy() for x in (torch.stack([a, b]), drawn))
    try:
        written = _write(ends, between, model.codec, folder)
    except OSError as error:
        raise DiskError(f"--out: {folder} cannot be written ({error.strerror}); name another folder") from error
    route = "through their noises" if config.level is None else f"at t = {config.level:g}"
    print(f"{config.n} samples between {args.first} and {args.second} {route}, {steps} steps each way")
    for path in written:
        print(f"  {shlex.quote(str(path))}")
    return 0
