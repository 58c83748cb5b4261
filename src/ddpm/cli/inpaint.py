"""`ddpm inpaint`: fills the part of a sample that a mask marks, in several ways that fit the rest."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ddpm.cli.interpolate import condition
from ddpm.cli.prompting import Prompting
from ddpm.config import Parser, add_flags, check, flags_layer, resolve, setting
from ddpm.errors import ConfigError, DiskError
from ddpm.evaluation.drawing.kept import free_folder
from ddpm.evaluation.drawing.starting import refuse_cascades, refuse_image_models

if TYPE_CHECKING:
    import torch

    from ddpm.denoiser import Denoiser
    from ddpm.sampling import Sampler

HELP = """Fill the white part of a mask in ways that fit the rest of a picture; the rest is kept exactly.

  ddpm inpaint runs/photos --image broken.png --mask hole.png
  ddpm inpaint runs/digits --image digits:900 --mask lower_half.png --n 16 --class 7
  ddpm inpaint runs/photos --image broken.png --mask hole.png --method repaint --resamples 10
  ddpm inpaint runs/signals --image x.npy:3 --mask missing.npy    arrays in the data's units; 1 is to be filled

The picture and the mask have the size of the model's samples. docs/inverse.md compares the methods.
"""
OWN = {"jump": "repaint", "resamples": "repaint", "scale": "dps", "iterations": "moment"}


@dataclass(frozen=True, kw_only=True)
class InpaintConfig:
    """What is filled, how, and where it goes."""

    image: str = setting(help="the picture, or anything --data reads with :ROW behind it", group="what")
    mask: str = setting(help="a picture of the same size, white where it is to be filled; or a .npy array, 1 where it is", group="what")
    n: int = setting(8, "fillings", low=1, high=100_000, group="what")
    seed: int = setting(0, "filling i depends on (seed, i) alone", low=0, high=2**63 - 1, group="what")
    ask: Prompting = setting(Prompting(), "", flat=True)
    label: str | None = setting(None, "class of what is shown; none: the model is not told one", flag="class", group="what")
    method: Literal["moment", "repaint", "dps", "pigdm", "project"] = setting(
        "moment",
        "moment, pigdm, dps: follow the network's gradient; repaint: replace what is known and walk back and forth; project: replace",
        group="how",
    )
    steps: int | None = setting(None, "instants visited; none: 50, or a shorter chain's own", low=1, high=1_000_000, group="how")
    jump: int | None = setting(None, "of repaint: steps it goes back; none: 5", low=1, high=1_000_000, group="how")
    resamples: int | None = setting(None, "of repaint: how often it walks each stretch; none: 5", low=1, high=1000, group="how")
    scale: float | None = setting(None, "of dps: strength; none: 3", above=0.0, high=1000.0, group="how")
    iterations: int | None = setting(None, "of moment: conjugate gradients a step; none: 3", low=1, high=1000, group="how")
    clip: Literal["auto", "off", "static", "dynamic"] = setting(
        "auto", "keep predictions in the data's range; auto: for pictures and other levels", group="how"
    )
    weights: str = setting("ema", "ema: the averaged weights; raw: the last ones; ema-0.100: a certain average", group="how")
    step: int | None = setting(None, "training step of the checkpoint; none: the newest", low=0, group="how")
    batch: int = setting(256, "fillings drawn at once", low=1, high=1_000_000, group="how")
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "where to compute", group="how")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting("auto", "of the network", group="how")
    out: str | None = setting(None, "folder; none: samples/ in the run folder", group="output")

    def __post_init__(self) -> None:
        idle = [name for name, method in OWN.items() if method != self.method and getattr(self, name) is not None]
        check(self, [f"{name}: says nothing to --method {self.method}; it belongs to --method {OWN[name]}" for name in idle])


def add(parser: Parser) -> None:
    """The command's arguments."""
    parser.add_argument("run_folder", metavar="RUN", help="run folder, or one of its step folders")
    add_flags(parser, InpaintConfig, {})


def chosen(config: InpaintConfig, model: Denoiser, values: torch.Tensor, known: torch.Tensor) -> tuple[Denoiser, Sampler]:
    """The denoiser and the sampler of a method; values (*D) in the space diffused in."""
    from ddpm.guidance import DPS, Mask, MomentMatching, PiGDM, Projection
    from ddpm.sampling import Ancestral, RePaint

    if config.method == "repaint":
        return model, RePaint(values=values, known=known, jump=config.jump or 5, resamples=config.resamples or 5)
    mask = Mask(known)
    if config.method == "moment":
        guided = MomentMatching(model, mask, values, iterations=config.iterations or 3)
    elif config.method == "dps":
        guided = DPS(model, mask, values, scale=config.scale or 3.0)
    else:
        guided = PiGDM(model, mask, values) if config.method == "pigdm" else Projection(model, mask, values)
    return guided.to(values.device), Ancestral()


def _write(filled: Any, image: Any, fill: Any, codec: Any, folder: Path) -> list[Path]:
    """filled.npz; where they are pictures also one PNG each, and grid.png: what was given, with the hole grey, then the fillings."""
    import numpy as np

    from ddpm.data.export import as_pictures, grid, save_npz, save_picture, save_pngs
    from ddpm.training.preview import limits

    low, high = limits(codec)
    written = [save_npz(filled, None, folder / "filled.npz")]
    if filled.ndim == 4 and filled.shape[1] in (1, 3):
        save_pngs(filled, (low, high), folder)
        written.append(folder)
    holed = np.where(fill, (low + high) / 2, image)[None]
    pictures = as_pictures(np.concatenate([holed, filled[:99]]))
    if pictures is not None:
        columns = len(pictures) if len(pictures) <= 9 else None
        written.append(save_picture(grid(pictures, (low, high), columns=columns), folder / "grid.png"))
    return written


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Load, read picture and mask, fill, write."""
    config = resolve(InpaintConfig, [flags_layer(args, extra, args.parser, InpaintConfig, {})], {})
    import numpy as np
    import torch

    from ddpm.data.mask import read_mask, refuse_other_size
    from ddpm.data.names import is_picture
    from ddpm.data.single_sample import read_one
    from ddpm.sampling import sample
    from ddpm.training.machine import choose
    from ddpm.training.state import load_with_card

    loaded, document = load_with_card(args.run_folder, step=config.step, weights=config.weights)
    machine = choose(config.device, config.precision, None, sum(p.numel() for p in loaded.parameters()))
    model = loaded.to(machine.device)
    refuse_image_models(args.run_folder, document["cond"]["image"])
    if model.autoencoder is not None:
        raise ConfigError(f"{args.run_folder}: diffuses in latents, where no pixel is known or unknown by itself; use a model of pixels")
    refuse_cascades(args.run_folder, model, "nothing says what it looked like smaller; use a model that is no cascade")
    cond = condition(config.label, document["classes"], document["cond_dropout"])
    cond = config.ask.beside(cond, model, document, config.n)
    cond = {key: value.to(machine.device) for key, value in cond.items()} if cond else None
    path = Path(config.image).expanduser()
    if path.is_file() and is_picture(path.name):
        refuse_other_size(path, model.shape)
    image = read_one(config.image, model.shape, model.codec)
    fill = read_mask(Path(config.mask).expanduser(), model.shape)
    values = model.codec.encode(torch.from_numpy(image[None]))[0].to(torch.float32).to(machine.device)
    denoiser, sampler = chosen(config, model, values, torch.from_numpy(~fill).to(machine.device))
    steps = config.steps or min(50, model.process.schedule.T or 50)
    home = Path(args.run_folder).resolve().parent if (Path(args.run_folder) / "manifest.json").is_file() else Path(args.run_folder)
    folder = free_folder(Path(config.out) if config.out else None, home / "samples" / "filled")
    drawn = sample(
        denoiser, config.n, steps=steps, sampler=sampler, seed=config.seed, cond=cond, clip=config.clip, batch=config.batch,
        autocast=machine.autocast,
    ).cpu().numpy()  # fmt: skip
    filled = np.where(fill, drawn, image).astype(drawn.dtype)  # what is known comes back as it was given, not as it was rounded
    try:
        written = _write(filled, image, fill, model.codec, folder)
    except OSError as error:
        raise DiskError(f"--out: {folder} cannot be written ({error.strerror}); name another folder") from error
    how = f"{config.method}, {sampler.calls(steps)} steps, seed {config.seed}"
    print(f"{config.n} fillings of {fill.mean():.0%} of {config.image} by {how}")
    for place in written:
        print(f"  {shlex.quote(str(place))}")
    return 0
