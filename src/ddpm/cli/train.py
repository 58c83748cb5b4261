"""`ddpm train`: from data to a trained model; the same command again resumes it."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ddpm.config import Layer, Parser, Typed, add_flags, flags_layer, read_file, resolve
from ddpm.data.settings import DataSettings
from ddpm.training.config import FAMILIES, TrainConfig
from ddpm.training.recipes import names, recipe

if TYPE_CHECKING:
    from ddpm.denoiser import NetworkDenoiser

HELP = """Train a diffusion model. The same command again resumes where it stopped; a larger --steps continues a finished run.

  ddpm train                                            the bundled digits, a first run in minutes
  ddpm train --data photos/ --size 64 --crop centre     a folder of pictures; sub-folders are classes
  ddpm train --data cifar10.tar.xz --recipe cifar10-ho  Ho's CIFAR-10 network and settings
  ddpm train --schedule linear --parameterization eps   any piece by name; --help-all lists their own settings
  ddpm train --config my.toml --steps 50000             settings from files, flags win
"""


def add(parser: Parser) -> None:
    """The command's arguments."""
    add_flags(parser, TrainConfig, FAMILIES)
    parser.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="TOML file of settings; may be given several times, later ones win"
    )
    parser.add_argument(
        "--recipe", default="auto", metavar="NAME", help=f"settings to start from: {', '.join(names())}, none; auto: digits for the digits"
    )


def data_named(layers: Sequence[Layer]) -> object:
    """Which data the layers ask for, before anything is checked."""
    for layer in reversed(layers):
        table = layer.values.get("data")
        if isinstance(table, Mapping) and "data" in table:
            return table["data"].value if isinstance(table["data"], Typed) else table["data"]
    return DataSettings().data


def settings(args: argparse.Namespace, extra: list[str]) -> TrainConfig:
    """Defaults < recipe < files < flags."""
    flags = flags_layer(args, extra, args.parser, TrainConfig, FAMILIES)
    layers = [*map(read_file, args.config), flags]
    name = args.recipe
    if name == "auto":
        name = "digits" if data_named(layers) == "digits" else "none"
    if name != "none":
        layers.insert(0, Layer(f"recipe {name}", recipe(name)))
    return resolve(TrainConfig, layers, FAMILIES)


def next_command(run: str, denoiser: NetworkDenoiser) -> str:
    """What to type now: sampling, with the condition it needs."""
    if "image" in denoiser.conditions:
        return f'in Python: ddpm.sample(ddpm.load("{run}"), n, cond={{"image": images}})'
    vector = " --vector NUMBER,..." if "vector" in denoiser.conditions else ""
    return f"ddpm sample {run} --n 64 --seed 1{vector}"


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Train, and end with what to do next."""
    config = settings(args, extra)
    from ddpm.training.checkpoint import latest_name
    from ddpm.training.run import train

    command = shlex.join(["ddpm", *sys.argv[1:]])
    finished = train(config, command=command)
    if not finished.code:
        pictures = sorted((finished.run / "samples").glob("step-*"))
        if pictures and pictures[-1].stem == latest_name(finished.run):
            print(f"samples: {pictures[-1]}")
        print(f"model card: {finished.run / 'README.md'}")
        print(f"next: {next_command(shlex.quote(str(finished.run)), finished.denoiser)}")
    return finished.code
