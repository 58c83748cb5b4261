"""`ddpm sample`: pictures, arrays and films from a trained model.

It needs no flag but the run, unless the model is conditioned on vectors.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ddpm.cli.given import Dealt, Givens, masks
from ddpm.cli.output import Output, output_format
from ddpm.cli.prompting import Prompting, quoted
from ddpm.config import Parser, add_flags, flags_layer, resolve, setting
from ddpm.errors import ConfigError, DiskError
from ddpm.evaluation.drawing.kept import Drawn, rank
from ddpm.evaluation.drawing.ready import FAMILIES, How, ready, shown
from ddpm.evaluation.drawing.starting import Starting

if TYPE_CHECKING:
    import torch

    from ddpm.denoiser import Codec
    from ddpm.denoiser.fields import Fields
    from ddpm.evaluation.drawing.ready import Ready

FAR = 10.0  # deviations
HELP = """Draw samples from a trained model, with the settings it was trained with.

  ddpm sample runs/digits                            64 samples: a grid, and what --format says
  ddpm sample runs/digits --classes 3,7 --guidance 2 --n 20
  ddpm sample runs/scenes --prompts prompts.txt --guidance 2 --n 16     told in words; or --prompt "a three above a seven"
  ddpm sample runs/digits --sampler ancestral --steps 1000
  ddpm sample runs/digits --format npz --n 10000 --out samples/      stopped, the same command continues
  torchrun --nproc-per-node 4 -m ddpm sample runs/digits --n 50000   each process draws its share, the result is the same
  ddpm sample runs/digits --film                     the denoising as an animation
  ddpm sample runs/faces-4x --given small.png --n 16           of a model trained with --given small: what it may have been
  ddpm sample runs/digits --from drawing.png --strength 0.5    variations of a picture
"""


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What is drawn, how, and where it goes."""

    n: int = setting(64, "samples in all, dealt evenly over the classes", low=1, high=100_000_000, group="what")
    seed: int = setting(0, "sample i depends on (seed, i) alone", low=0, high=2**63 - 1, group="what")
    classes: tuple[str, ...] | None = setting(None, "class names to draw, such as 3,7; none: all in turn", group="what")
    vector: tuple[str, ...] | None = setting(
        None,
        "the vector condition, where the model has one: a number for each entry, as NAME=NUMBER or in order; or names alone, such as tags: "
        "1 for these, 0 for the others",
        group="what",
    )
    given: Givens = setting(Givens(), "", flat=True)
    ask: Prompting = setting(Prompting(), "", flat=True)
    start: Starting = setting(Starting(), "", flat=True)
    how: How = setting(How(), "", flat=True)
    out: str | None = setting(None, "folder; none: samples/ in the run folder", group="output")
    format: Literal["auto", "png", "npz", "zip", "shards", "nc", "zarr"] = setting(
        "auto",
        "png: single pictures; zip: the same in one file; npz: one array file in the data's units; shards: tar files as WebDataset reads "
        "them; nc, zarr: fields on their grid; auto: png for what is a picture, nc for fields, else npz",
        group="output",
    )
    shard: int = setting(10_000, "samples of a shard", low=1, high=10_000_000, group="output")
    film: bool = setting(False, "also write a strip and an animation of the denoising", group="output")


def add(parser: Parser) -> None:
    """The command's arguments."""
    parser.add_argument("run_folder", metavar="RUN", help="run folder, or one of its step folders")
    add_flags(parser, SampleConfig, FAMILIES)


def conditions(config: SampleConfig, names: list[str], vector: list[str], tags: Sequence[str] = ()) -> dict[str, torch.Tensor] | None:
    """The condition of each of the n samples: the classes dealt evenly, in order of class; ConfigError for what the model does not know."""
    import torch

    if config.classes is not None and not names:
        raise ConfigError("--classes: this model was trained without classes")
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
    if vector or config.vector is not None:
        cond["vector"] = torch.tensor(vector_of(config.vector, vector, tags)).expand(config.n, -1)
    return cond or None


def vector_of(given: tuple[str, ...] | None, names: list[str], tags: Sequence[str]) -> list[float]:
    """The entries of the vector condition that a person wrote; names alone, of a vector of tags, are 1 and all others 0. ConfigError for
    another number of them, or names it does not have.
    """
    needed = f"this model takes {len(names)}: {', '.join(names[:20]) or 'none'}{' ...' if len(names) > 20 else ''}"
    if given is None:
        raise ConfigError(f"--vector: got nothing, {needed}")
    pairs = [text.rpartition("=") for text in given]
    if all(not equals and text not in names for _, equals, text in pairs):  # numbers in order
        written = list(zip(names, given, strict=False))
        if len(given) != len(names):
            raise ConfigError(f"--vector: got {len(given)} numbers, {needed}")
    elif set(tags) == set(names) and all(not equals for _, equals, _ in pairs):
        written = [(name, "0") for name in names if name not in given] + [(name, "1") for name in given]
    else:
        written = [(name, number) for name, _, number in pairs]
        if len({name for name, _ in written}) != len(written) or len(written) != len(names):
            raise ConfigError(f"--vector: got {', '.join(given)}; each entry once, {needed}")
    unknown = [name for name, _ in written if name not in names]
    if unknown:
        raise ConfigError(f"--vector: got {', '.join(unknown)}; {needed}")
    try:
        numbers = {name: float(number) for name, number in written}
    except ValueError:
        raise ConfigError(f"--vector: got {', '.join(given)}; {needed}, and each is a finite number") from None
    if not all(map(math.isfinite, numbers.values())):
        raise ConfigError(f"--vector: got {', '.join(given)}; {needed}, and each is a finite number")
    return [numbers[name] for name in names]


def far_off(vector: Sequence[float], names: Sequence[str], codec: Codec | None) -> list[str]:
    """Entries of the vector condition that are `FAR` deviations or more from the training data's mean, in words."""
    if codec is None:
        return []
    entries = list(zip(names, vector, codec.shift, codec.scale, strict=True))
    return [
        f"--vector: {name}={value:g} is {abs(value - mean) / std:.3g} deviations from the training data's {mean:g}; few or none lie there"
        for name, value, mean, std in entries
        if abs(value - mean) >= FAR * std
    ]


def described(document: Mapping[str, Any], run: str) -> Fields | None:
    """What config.json says of the fields a model draws, None where it draws none; ConfigError for one that draws increments."""
    from ddpm.config import from_dict
    from ddpm.denoiser.fields import Fields

    if not document.get("fields"):
        return None
    about = from_dict(Fields, document["fields"], where="config.json")
    if about.past:
        raise ConfigError(f"{run}: forecasts fields from those before them; use ddpm forecast {run} --data FILE")
    return about


def film(ready: Ready, config: SampleConfig, cond: dict[str, torch.Tensor] | None, folder: Path, start: torch.Tensor | None) -> list[Path]:
    """Walk up to 36 samples once more and keep the frames."""
    from ddpm.data.export import as_pictures, grid, save_film
    from ddpm.sampling import trajectory
    from ddpm.training.preview import limits

    how, codec = ready.how, ready.model.codec
    count = min(config.n, 36)
    indices = [i * config.n // count for i in range(count)]  # evenly among the samples, so that every class is seen
    frames = []
    walk = trajectory(
        ready.guided, count, steps=ready.steps, sampler=how.sampler, grid=ready.grid, seed=config.seed, indices=indices,
        start=None if start is None else start[indices], cond={key: value[indices] for key, value in cond.items()} if cond else None,
        clip=how.clip, clip_quantile=how.clip_quantile, autocast=ready.machine.autocast, compiled=ready.compiled,
    )  # fmt: skip
    for frame in walk:
        if frame.step % max(1, ready.steps // 60) == 0 or float(frame.at.sigma) == 0.0:
            pictures = as_pictures(codec.decode(frame.x).cpu().numpy())
            assert pictures is not None  # `output_format` has seen to it
            frames.append(grid(pictures, limits(codec), width=360))
    return save_film(frames, folder)


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Load, draw, write."""
    typed = flags_layer(args, extra, args.parser, SampleConfig, FAMILIES)
    config = resolve(SampleConfig, [typed], FAMILIES)
    import torch

    drawing = ready(args.run_folder, config.how, typed, config.start)
    model, document = drawing.model, drawing.document
    fields = described(document, args.run_folder)
    kind = output_format(config, model.shape, fields is not None)
    if kind in ("nc", "zarr"):
        from ddpm.data.field_files import check_libraries

        check_libraries(f".{kind}", "--format")
    told, texts = config.ask.told(model, document, config.n, guided=config.how.guide.active)
    cond = {**(conditions(config, drawing.names, document["vector"], document.get("tags", ())) or {}), **told} or None
    for line in far_off(cond["vector"][0].tolist(), document["vector"], model.vector_codec) if cond and "vector" in cond else ():
        print(f"ddpm sample: {line}", file=sys.stderr)
    cond = config.start.told(cond, config.classes, document["cond_dropout"])
    dealt: Dealt | None = config.given.deal(config.n, model, document, args.run_folder)
    cond = dealt.cond(cond, named=config.classes is not None) if dealt else cond
    if (texts or dealt) and cond and "class" in cond and config.classes is None and (dealt is None or dealt.classes is None):
        cond["class"] = torch.arange(config.n) % len(drawing.names)  # prompts and pictures are dealt in blocks: classes go round in each
    if document["cond"].get("mask") and not (cond and "mask" in cond):
        cond = {**(cond or {}), "mask": masks(config.n, model, args.run_folder)}
    cond = {key: value.to(drawing.machine.device) for key, value in cond.items()} if cond else None
    home = Path(args.run_folder).resolve().parent if (Path(args.run_folder) / "manifest.json").is_file() else Path(args.run_folder)
    usual = home / "samples" / f"seed-{config.seed}"  # never inside a checkpoint
    start = config.start.tensor(model, config.n, drawing.steps, drawing.grid, config.seed)
    begun = None if start is None else hashlib.sha256(start.cpu().numpy().tobytes()).hexdigest()
    best, config = config.how.step == "best", replace(config, how=drawing.how)
    call = [repr(config), drawing.steps, document["sha256"], begun]
    call += [hashlib.sha256(value.cpu().numpy().tobytes()).hexdigest() for _, value in sorted((cond or {}).items())]
    drawn = Drawn.open(Path(config.out) if config.out else None, usual, call)
    labels = cond["class"].cpu().numpy() if cond and "class" in cond else None
    images = None if dealt is None else dealt.shown(model)
    shown_beside = None if dealt is None or images is None else (images, dealt.which.numpy())
    output = Output(config, drawn.folder, labels, drawing.names, model.codec, texts, shown_beside, fields)
    output.mask = cond["mask"].cpu().numpy() if cond and "mask" in cond else None
    try:
        with drawing.executing():
            draw_all(drawing, config, drawn, output, cond, start)
            if rank()[0]:
                return 0
            drawn.wait(config.n)
            written = output.all(drawn)
            if config.film:
                written += film(drawing, config, cond, drawn.folder, start)
        about = {"seed": config.seed, "how": drawing.told(config.seed), "model": document["sha256"], "n": config.n}
        about |= {"prompts": list(dict.fromkeys(texts))} if texts else {}
        written.append(drawn.describe(about))
        drawn.end()
    except KeyboardInterrupt:
        print(f"ddpm sample: interrupted: {drawn.left(config.n)}", file=sys.stderr)
        return 130
    except OSError as error:
        raise DiskError(f"--out: {drawn.folder} cannot be written ({error.strerror}); name another folder") from error
    what = f"variations of {config.start.source} from t = {config.start.begin:g}" if start is not None else "samples"
    from_step = f" of step {document['step']}" if best else ""
    print(f"{config.n} {what}{from_step}{quoted(texts)} by {drawing.told(config.seed)}{drawing.chosen}")
    for path in written:
        print(f"  {shlex.quote(str(path))}")
    return 0


def draw_all(
    drawing: Ready, config: SampleConfig, drawn: Drawn, output: Output, cond: dict[str, torch.Tensor] | None, start: torch.Tensor | None
) -> None:
    """Every batch that is not there yet; of many processes each takes its share."""
    size, (mine, of) = config.how.batch, rank()
    batches = -(-config.n // size)
    for number in range(mine, batches, of):
        first = number * size
        if drawn.has(first):
            continue
        part = slice(first, min(first + size, config.n))

        def progress(done: int, total: int, number: int = number) -> None:
            shown(number * total + done, batches * total)

        made = drawing.draw(
            first, part.stop - first, config.seed, {key: value[part] for key, value in cond.items()} if cond else None,
            None if start is None else start[part], progress,
        ).numpy()  # fmt: skip
        drawn.begin()  # not before: what cannot be drawn leaves no folder
        output.batch(first, made)
        drawn.add(first, made)
