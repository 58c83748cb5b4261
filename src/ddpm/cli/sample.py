"""`ddpm sample`: pictures, arrays and films from a trained model.

It needs no flag but the run, unless the model is conditioned on vectors.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ddpm.cli.drawn import Drawn
from ddpm.cli.guiding import Guiding
from ddpm.cli.shortage import smaller_batch
from ddpm.cli.starting import Starting, refuse_image_models
from ddpm.cli.tuned import AUTO, settle
from ddpm.config import Families, Parser, add_flags, check, flags_layer, resolve, setting
from ddpm.errors import ConfigError, DiskError
from ddpm.process import GRIDS, Full, Grid, Listed
from ddpm.sampling import DDIM, PRESETS, SAMPLERS, Sampler
from ddpm.sampling.presets import name_of

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from ddpm.denoiser import Denoiser, NetworkDenoiser

HELP = """Draw samples from a trained model, with the settings it was trained with.

  ddpm sample runs/digits                            64 samples: a grid, and what --format says
  ddpm sample runs/digits --classes 3,7 --guidance 2 --n 20
  ddpm sample runs/digits --sampler ancestral --steps 1000
  ddpm sample runs/digits --format npz --n 10000 --out samples/
  ddpm sample runs/digits --film                     the denoising as an animation
  ddpm sample runs/digits --from drawing.png --strength 0.5    variations of a picture
"""
FAMILIES: Families = {Sampler: (*SAMPLERS, *PRESETS, AUTO), Grid: GRIDS}


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What is drawn, how, and where it goes."""

    n: int = setting(64, "samples in all, dealt evenly over the classes", low=1, high=100_000_000, group="what")
    seed: int = setting(0, "sample i depends on (seed, i) alone", low=0, high=2**63 - 1, group="what")
    classes: tuple[str, ...] | None = setting(None, "class names to draw, such as 3,7; none: all in turn", group="what")
    vector: tuple[float, ...] | None = setting(None, "the vector condition, where the model has one", group="what")
    guide: Guiding = setting(Guiding(), "", flat=True)
    start: Starting = setting(Starting(), "", flat=True)
    sampler: Sampler = setting(
        DDIM(),
        "method; without the flag what ddpm tune found for this run is used; auto: that, or a good choice where nothing was tuned",
        group="how",
    )
    steps: int | None = setting(None, "steps; none: what was tuned, else 50, or a shorter chain's own", low=1, high=1_000_000, group="how")
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
    weights: str = setting("ema", "ema: the averaged weights; raw: the last ones; ema-0.100: a certain average", group="how")
    step: int | Literal["best"] | None = setting(
        None, "training step of the checkpoint; best: that of lowest held-out loss; none: the newest", low=0, group="how"
    )
    batch: int = setting(256, "samples drawn at once", low=1, high=1_000_000, group="how")
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "where to compute", group="how")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting("auto", "of the network", group="how")
    compile: Literal["none", "default", "reduce-overhead", "max-autotune"] = setting(
        "none", "torch.compile the network, with this mode: pays for many samples on an accelerator", group="how"
    )
    out: str | None = setting(None, "folder; none: samples/ in the run folder", group="output")
    format: Literal["auto", "png", "npz"] = setting(
        "auto", "png: single pictures; npz: one array file in the data's units; auto: png for what is a picture", group="output"
    )
    film: bool = setting(False, "also write a strip and an animation of the denoising", group="output")

    def __post_init__(self) -> None:
        both = self.nfe is not None and self.steps is not None
        check(self, ["nfe: says the same as steps in network calls; give one of the two"] if both else [])


def add(parser: Parser) -> None:
    """The command's arguments."""
    parser.add_argument("run_folder", metavar="RUN", help="run folder, or one of its step folders")
    add_flags(parser, SampleConfig, FAMILIES)


def output_format(config: SampleConfig, shape: tuple[int, ...]) -> Literal["png", "npz"]:
    """What samples of this shape are written as; ConfigError, before anything is drawn, for what they cannot be."""
    picture = len(shape) == 3 and shape[0] in (1, 3)
    if config.format == "png" and not picture:
        raise ConfigError(f"--format png: takes pictures of 1 or 3 channels, these samples are {shape}; use --format npz")
    if config.film and len(shape) not in (3, 4):
        raise ConfigError(f"--film: shows pictures and volumes, these samples are {shape}")
    return "png" if picture and config.format != "npz" else "npz"


def conditions(config: SampleConfig, names: list[str], vector: list[str]) -> dict[str, torch.Tensor] | None:
    """The condition of each of the n samples: the classes dealt evenly, in order of class; ConfigError for what the model does not know."""
    import torch

    if config.classes is not None and not names:
        raise ConfigError("--classes: this model was trained without classes")
    if config.vector is not None and len(config.vector) != len(vector):
        raise ConfigError(f"--vector: got {len(config.vector)} numbers, this model takes {len(vector)}: {', '.join(vector) or 'none'}")
    cond: dict[str, torch.Tensor] = {}
    if names:
        unknown = [name for name in config.classes or () if name not in names]
        if unknown:
            shown = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
            raise ConfigError(f"--classes: got {', '.join(unknown)}; this model knows {shown}")
        wanted = [names.index(name) for name in config.classes] if config.classes else list(range(len(names)))
        cond["class"] = torch.tensor(
            [wanted[i * len(wanted) // config.n] if config.n >= len(wanted) else wanted[i] for i in range(config.n)]
        )
    if vector:
        if config.vector is None:
            raise ConfigError(f"--vector: this model needs {len(vector)} numbers: {', '.join(vector)}")
        cond["vector"] = torch.tensor(config.vector).expand(config.n, -1)
    return cond or None


def film(
    denoiser: Denoiser,
    codec: Any,
    config: SampleConfig,
    steps: int,
    cond: dict[str, torch.Tensor] | None,
    autocast: torch.dtype | None,
    folder: Path,
    grid_walked: Grid | None,
    start: torch.Tensor | None,
) -> list[Path]:
    """Walk up to 36 samples once more and keep the frames."""
    from ddpm.data.export import as_pictures, grid, save_film
    from ddpm.sampling import trajectory
    from ddpm.training.preview import limits

    shown = min(config.n, 36)
    indices = [i * config.n // shown for i in range(shown)]  # evenly among the samples, so that every class is seen
    picked = {key: value[indices] for key, value in cond.items()} if cond else None
    frames = []
    walk = trajectory(
        denoiser,
        shown,
        steps=steps,
        sampler=config.sampler,
        grid=grid_walked,
        seed=config.seed,
        indices=indices,
        start=None if start is None else start[indices],
        cond=picked,
        clip=config.clip,
        clip_quantile=config.clip_quantile,
        autocast=autocast,
    )
    for frame in walk:
        if frame.step % max(1, steps // 60) == 0 or float(frame.at.sigma) == 0.0:
            pictures = as_pictures(codec.decode(frame.x).cpu().numpy())
            assert pictures is not None  # `output_format` has seen to it
            frames.append(grid(pictures, limits(codec), width=360))
    return save_film(frames, folder)


class Output:
    """What a call writes: single pictures batch by batch, the array file and the grid at the end."""

    def __init__(self, config: SampleConfig, folder: Path, labels: NDArray[Any] | None, names: list[str], codec: Any) -> None:
        from ddpm.training.preview import limits

        self.config, self.folder, self.labels, self.limits = config, folder, labels, limits(codec)
        several = labels is not None and len(set(labels.tolist())) > 1
        self.folders = [names[label] for label in labels] if labels is not None and several else None

    def batch(self, first: int, drawn: NDArray[Any]) -> None:
        """Single pictures of the samples that begin with number `first`, where the format asks for them."""
        from ddpm.data.export import save_pngs

        if output_format(self.config, drawn.shape[1:]) == "png":
            inner = None if self.folders is None else self.folders[first : first + len(drawn)]
            save_pngs(drawn, self.limits, self.folder, inner, first)

    def all(self, drawn: NDArray[Any]) -> list[Path]:
        """What is made of all samples; everything that was written."""
        from ddpm.data.export import as_pictures, grid, save_npz, save_picture

        written = [self.folder]
        if output_format(self.config, drawn.shape[1:]) == "npz":
            sides = "x".join(map(str, (len(drawn), *drawn.shape[2:], drawn.shape[1])))
            written = [save_npz(drawn, self.labels, self.folder / f"samples_{sides}.npz")]
        pictures = as_pictures(drawn)
        if pictures is not None:
            shown = pictures[:: max(1, len(pictures) // 100)][:100]
            columns = None
            if self.labels is not None and len(pictures) <= 400 and len(pictures) % len(set(self.labels.tolist())) == 0:
                shown, columns = pictures, len(pictures) // len(set(self.labels.tolist()))
            sheet = grid(shown, self.limits, columns=columns if columns and columns > 1 else None)
            written.append(save_picture(sheet, self.folder / "grid.png"))
        return written


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Load, draw, write."""
    typed = flags_layer(args, extra, args.parser, SampleConfig, FAMILIES)
    config = resolve(SampleConfig, [typed], FAMILIES)
    from ddpm.sampling import sample
    from ddpm.training.machine import choose, executed
    from ddpm.training.state import load_with_card

    loaded, document = load_with_card(args.run_folder, step=config.step, weights=config.weights)
    machine = choose(config.device, config.precision, None, sum(p.numel() for p in loaded.parameters()))
    model: NetworkDenoiser = loaded.to(machine.device)
    output_format(config, model.shape)
    best = config.step == "best"
    config, chosen = settle(replace(config, step=document["step"]) if best else config, typed, args.run_folder, model.process)
    length = model.process.schedule.T
    steps = config.steps or (len(config.grid.at) if isinstance(config.grid, Listed) else None)
    steps = steps or (length if isinstance(config.grid, Full) and length else min(50, config.start.knots(length) or 50))
    refuse_image_models(args.run_folder, document["cond"]["image"])
    config.guide.check_model(document)
    guided, names = config.guide.guided(model, document, args.run_folder, config.weights)
    cond = conditions(config, names, document["vector"])
    cond = config.start.told(cond, config.classes, document["cond_dropout"])
    cond = {key: value.to(machine.device) for key, value in cond.items()} if cond else None
    home = Path(args.run_folder).resolve().parent if (Path(args.run_folder) / "manifest.json").is_file() else Path(args.run_folder)
    usual = home / "samples" / f"seed-{config.seed}"  # never inside a checkpoint
    grid_walked = config.start.grid(config.grid)
    start = config.start.tensor(model, config.n, steps, grid_walked, config.seed)
    call = [repr(config), steps, document["sha256"], None if start is None else hashlib.sha256(start.cpu().numpy().tobytes()).hexdigest()]
    drawn = Drawn.open(Path(config.out) if config.out else None, usual, call)
    labels = cond["class"].cpu().numpy() if cond and "class" in cond else None
    output = Output(config, drawn.folder, labels, names, model.codec)

    def some(first: int, size: int) -> NDArray[Any]:
        part = slice(first, first + size)
        batches = -(-config.n // config.batch)

        def progress(done: int, total: int) -> None:
            done, total = first // config.batch * total + done, batches * total
            if sys.stderr.isatty() and (done % max(1, total // 100) == 0 or done == total):
                print(f"\rsampling {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)

        return sample(
            guided, size, steps=steps, sampler=config.sampler, grid=grid_walked, seed=config.seed, first=first,
            cond={key: value[part] for key, value in cond.items()} if cond else None, clip=config.clip, clip_quantile=config.clip_quantile,
            batch=size, start=None if start is None else start[part], autocast=machine.autocast, progress=progress,
        ).cpu().numpy()  # fmt: skip

    try:
        with smaller_batch(config.batch), executed(model.network, config.compile, machine.device):
            for first in range(drawn.samples, config.n, config.batch):
                made = some(first, min(config.batch, config.n - first))
                drawn.begin()  # not before: what cannot be drawn leaves no folder
                output.batch(first, made)
                drawn.add(first, made)
            written = output.all(drawn.all())
            if config.film:
                written += film(guided, model.codec, config, steps, cond, machine.autocast, drawn.folder, grid_walked, start)
        drawn.end()
    except KeyboardInterrupt:
        print(f"ddpm sample: interrupted: {drawn.left(config.n)}", file=sys.stderr)
        return 130
    except OSError as error:
        raise DiskError(f"--out: {drawn.folder} cannot be written ({error.strerror}); name another folder") from error
    clip = config.clip if config.clip != "auto" else ("static" if model.codec.bins else "off")
    how = f"{name_of(config.sampler)}, {steps} steps, seed {config.seed}, clip {clip}, {document['weights']}{config.guide.told}"
    what = f"variations of {config.start.source} from t = {config.start.begin:g}" if start is not None else "samples"
    from_step = f" of step {document['step']}" if best else ""
    print(f"{config.n} {what}{from_step} by {how}{chosen}")
    for path in written:
        print(f"  {shlex.quote(str(path))}")
    return 0
