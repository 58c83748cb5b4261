"""`ddpm autoencode`: train the autoencoder whose latents a model is to be trained in, or take one there is, and say what it loses."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm.config import Parser, add_flags, flags_layer, resolve
from ddpm.config.flags import walk
from ddpm.errors import ConfigError
from ddpm.training.config import FAMILIES, AutoencodeConfig

if TYPE_CHECKING:
    from ddpm.config import Layer
    from ddpm.data.dataset import Dataset
    from ddpm.training.autoencoder import Through

READ = {"data", "out", "device", "threads"}  # of the settings, where nothing is trained
HELP = """Train an autoencoder: samples become latents, smaller along each axis, and come back.

  ddpm autoencode --data photos/ --size 128 --crop centre --out runs/photos-autoencoder
  ddpm autoencode --data photos/ --size 128 --crop centre --out runs/codes --network.codes 512      latents rounded to a codebook
  ddpm autoencode --data photos/ --size 128 --crop centre --network.mults 1,2,4,4                   8 times smaller along each axis
  ddpm autoencode --measure vae/ --data photos/ --size 128 --crop centre --out runs/vae     trains nothing: what an AutoencoderKL loses

The same command resumes. Afterwards what is lost is measured on held-out samples, and written to report.json and reconstructions.png.
"""


def add(parser: Parser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "--frechet", choices=("own", "raw", "none"), default="own",
        help="what their distance is measured on: own: an encoder trained on the data; raw: their entries; none: no distance",
    )  # fmt: skip
    parser.add_argument(
        "--measure", metavar="FOLDER", default=None,
        help="train nothing: say what the autoencoder there, ours or an AutoencoderKL of diffusers, loses of the data",
    )  # fmt: skip
    add_flags(parser, AutoencodeConfig, FAMILIES)


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Train, measure, and end with what was written."""
    typed = flags_layer(args, extra, args.parser, AutoencodeConfig, FAMILIES)
    config = resolve(AutoencodeConfig, [typed], FAMILIES)
    if problems := config.problems():  # told before torch is imported
        raise ConfigError.of(problems)
    if args.measure is not None:
        _check_measure(args.measure, config, typed)
    from ddpm.data import open_data
    from ddpm.training.autoencoder import Through, train_autoencoder
    from ddpm.training.latents import load_through
    from ddpm.training.machine import choose

    dataset = open_data(config.data)
    if args.measure is None:
        finished = train_autoencoder(config, data=dataset)
        if finished.code:
            return finished.code
        through = Through(finished.autoencoder, finished.codec)
    else:
        through = load_through(args.measure, dataset)
        count = sum(parameter.numel() for parameter in through.autoencoder.parameters())
        through.autoencoder.to(choose(config.device, "fp32", config.threads, count).device)
    for line in _measured(through, dataset, args.frechet, Path(config.out), args.measure or config.out):
        print(line)
    return 0


def _typed(path: tuple[str, ...], values: Mapping[str, Any]) -> bool:
    """Whether there is a value under these keys, each within the last."""
    return path[0] in values and (len(path) == 1 or _typed(path[1:], values[path[0]]))


def _check_measure(folder: str, config: AutoencodeConfig, typed: Layer) -> None:
    """ConfigError for flags that only training reads, and for an --out whose report is another autoencoder's."""
    told = [flag.option for flag in walk(AutoencodeConfig, FAMILIES) if flag.path[0] not in READ and _typed(flag.path, typed.values)]
    found = [f"{option}: only training reads it, and --measure trains nothing; leave it out" for option in told]
    home = Path(config.out)
    if (home / "latest").is_file() and home.resolve() != Path(folder).resolve():
        found.append(f"out: {home} holds an autoencoder with a report of its own; name another folder by --out")
    if found:
        raise ConfigError.of(found)


def _measured(through: Through, dataset: Dataset, how: str, folder: Path, home: str) -> list[str]:
    """Write report.json and reconstructions.png; what they say, in lines. home: where the autoencoder is."""
    from ddpm.evaluation.extractors import Learned, Raw
    from ddpm.evaluation.reconstruction import reconstruction
    from ddpm.training.checkpoints.storage import replace_text

    def say(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    device = next(through.autoencoder.parameters()).device
    extractor = None if how == "none" else Raw(dataset.card) if how == "raw" else Learned.of(dataset, device=device, say=say)
    found = reconstruction(through.autoencoder, through.codec, dataset, extractor, say)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.json"
    replace_text(path, json.dumps(found, indent=1) + "\n")
    small = "x".join(map(str, found["latent_shape"]))
    lines = [
        f"{found['samples']} samples ({found['rows']}) through latents {small}, {found['smaller']:.3g} times fewer numbers: "
        f"PSNR {found['psnr']:.2f} dB, SSIM {found['ssim']:.4f}"
    ]
    if found["smaller"] <= 1.0:
        lines.append("note: the latents are as many numbers as the sample; fewer --network.latent channels, or one more of --network.mults")
    if "frechet" in found:
        lines.append(
            f"Frechet distance of the reconstructions from their originals {found['frechet']:.4g}, of one half of the originals from the "
            f"other {found['frechet_halves']:.4g} (extractor {found['extractor']})"
        )
    if "codes_used" in found:
        lines.append(f"{found['codes_used']} of {found['codes']} codes used")
    return [*lines, f"autoencoder: {home}", *map(str, [path, *_pictures(through, dataset, folder)])]


def _pictures(through: Through, dataset: Dataset, folder: Path) -> list[Path]:
    """Originals and reconstructions in turns, where the samples are pictures."""
    import numpy as np

    from ddpm.data.export import as_pictures, grid, save_picture
    from ddpm.evaluation.reconstruction import reconstructed, shown_rows
    from ddpm.training.preview import limits

    raw, _ = dataset.batch(shown_rows(dataset)[1][:16])
    reconstructions, _ = reconstructed(through.autoencoder, through.codec, raw)
    pairs = np.stack([raw, reconstructions.numpy()], axis=1).reshape(-1, *raw.shape[1:])
    pictures = as_pictures(pairs)
    return [] if pictures is None else [save_picture(grid(pictures, limits(through.codec), columns=8), folder / "reconstructions.png")]
