"""`ddpm autoencode`: train the autoencoder whose latents a model is to be trained in, and say what it loses."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from ddpm.config import Parser, add_flags, flags_layer, resolve
from ddpm.errors import ConfigError
from ddpm.training.config import FAMILIES, AutoencodeConfig

if TYPE_CHECKING:
    from pathlib import Path

    from ddpm.data.dataset import Dataset
    from ddpm.training.autoencoder import TrainedAutoencoder

HELP = """Train an autoencoder: samples become latents, smaller along each axis, and come back.

  ddpm autoencode --data photos/ --size 128 --crop centre --out runs/photos-autoencoder
  ddpm autoencode --data photos/ --size 128 --crop centre --out runs/codes --network.codes 512      latents rounded to a codebook
  ddpm autoencode --data photos/ --size 128 --crop centre --network.mults 1,2,4,4                   8 times smaller along each axis

The same command resumes. Afterwards what is lost is measured on held-out samples, and written to report.json and copies.png.
"""


def add(parser: Parser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "--frechet", choices=("own", "raw", "none"), default="own",
        help="what the distance of the copies is measured on: own: an encoder trained on the data; raw: their entries; none: no distance",
    )  # fmt: skip
    add_flags(parser, AutoencodeConfig, FAMILIES)


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Train, measure, and end with what was written."""
    config = resolve(AutoencodeConfig, [flags_layer(args, extra, args.parser, AutoencodeConfig, FAMILIES)], FAMILIES)
    if problems := config.problems():  # told before torch is imported
        raise ConfigError.of(problems)
    from ddpm.data import open_data
    from ddpm.training.autoencoder import train_autoencoder

    dataset = open_data(config.data)
    finished = train_autoencoder(config, data=dataset)
    if finished.code:
        return finished.code
    for line in _measured(finished, dataset, args.frechet):
        print(line)
    return 0


def _measured(finished: TrainedAutoencoder, dataset: Dataset, how: str) -> list[str]:
    """Write report.json and copies.png; what they say, in lines."""
    from ddpm.evaluation.extractors import Learned, Raw
    from ddpm.evaluation.reconstruction import reconstruction
    from ddpm.training.checkpoints.storage import replace_text

    def say(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    extractor = None if how == "none" else Raw(dataset.card) if how == "raw" else Learned.of(dataset, say=say)
    found = reconstruction(finished.autoencoder, finished.codec, dataset, extractor, say)
    path = finished.folder / "report.json"
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
            f"Frechet distance of the copies from their originals {found['frechet']:.4g}, of one half of the originals from the other "
            f"{found['frechet_halves']:.4g} (extractor {found['extractor']})"
        )
    if "codes_used" in found:
        lines.append(f"{found['codes_used']} of {finished.autoencoder.config.codes} codes used")
    return [*lines, f"autoencoder: {finished.folder}", *map(str, [path, *_pictures(finished, dataset)])]


def _pictures(finished: TrainedAutoencoder, dataset: Dataset) -> list[Path]:
    """Originals and copies in turns, where the samples are pictures."""
    import numpy as np

    from ddpm.data.export import as_pictures, grid, save_picture
    from ddpm.evaluation.reconstruction import copied, shown_rows
    from ddpm.training.preview import limits

    raw, _ = dataset.batch(shown_rows(dataset)[1][:16])
    copies, _ = copied(finished.autoencoder, finished.codec, raw)
    pairs = np.stack([raw, copies.numpy()], axis=1).reshape(-1, *raw.shape[1:])
    pictures = as_pictures(pairs)
    return [] if pictures is None else [save_picture(grid(pictures, limits(finished.codec), columns=8), finished.folder / "copies.png")]
