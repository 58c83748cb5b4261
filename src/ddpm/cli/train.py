"""`ddpm train`: from data to a trained model; the same command again resumes it."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ddpm.cli.launch import GRACE, inside, launch, speaks
from ddpm.config import Layer, Parser, Typed, add_flags, flags_layer, read_file, resolve
from ddpm.data.settings import DataSettings
from ddpm.errors import ConfigError
from ddpm.shortage import smaller_batch
from ddpm.training.config import FAMILIES, TrainConfig
from ddpm.training.recipes import names, recipe

if TYPE_CHECKING:
    from ddpm.denoiser import NetworkDenoiser
    from ddpm.training.run import Finished

HELP = """Train a diffusion model. The same command again resumes where it stopped; a larger --steps continues a finished run.

  ddpm train                                            the bundled digits, a first run in minutes
  ddpm train --data photos/ --size 64 --crop centre     a folder of pictures; sub-folders are classes
  ddpm train --data cifar10.tar.xz --recipe cifar10-ho  Ho's CIFAR-10 network and settings
  ddpm train --data march.grib --recipe forecast        fields of the next hours, given the past ones
  ddpm train --schedule linear --parameterization eps   any piece by name; --help-all lists their own settings
  ddpm train --config my.toml --steps 50000             settings from files, flags win
  ddpm train --data photos/ --size 64 --processes 4     on four devices of this machine; torchrun ... -m ddpm train for more
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
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="processes on this machine, one for each device")
    parser.add_argument("--restarts", type=int, default=0, metavar="N", help="of several processes: times to start anew after a failure")
    parser.add_argument("--grace", type=int, default=GRACE, metavar="SECONDS", help="of several: time to save after a request to stop")


def data_named(layers: Sequence[Layer]) -> object:
    """Which data the layers ask for, before anything is checked."""
    for layer in reversed(layers):
        table = layer.values.get("data")
        if isinstance(table, Mapping) and "data" in table:
            return table["data"].value if isinstance(table["data"], Typed) else table["data"]
    return DataSettings().data


def layers(args: argparse.Namespace, extra: list[str]) -> list[Layer]:
    """What was said: recipe < files < flags."""
    flags = flags_layer(args, extra, args.parser, TrainConfig, FAMILIES)
    stack = [*map(read_file, args.config), flags]
    name = args.recipe
    if name == "auto":
        name = "digits" if data_named(stack) == "digits" else "none"
    if name != "none":
        stack.insert(0, Layer(f"recipe {name}", recipe(name)))
    return stack


def settings(args: argparse.Namespace, extra: list[str]) -> TrainConfig:
    """Defaults < recipe < files < flags."""
    return resolve(TrainConfig, layers(args, extra), FAMILIES)


def next_command(run: str, denoiser: NetworkDenoiser, data: DataSettings) -> str:
    """What to type now: sampling, with the condition it needs."""
    if data.fields.past:
        return f"ddpm forecast {run} --data {shlex.quote(data.data)} --start held-out --score"
    asked = " --vector NUMBER,..." if "vector" in denoiser.conditions else ""
    if denoiser.text is not None:
        asked += " --like PICTURE" if denoiser.text.kind == "picture" else ' --prompt "TEXT"'
    asked += " --given held-out" if "image" in denoiser.conditions else ""
    return f"ddpm sample {run} --n 64 --seed 1{asked}"


def foretold(finished: Finished, config: TrainConfig, before: str | None, seconds: float) -> None:
    """Say how well the run's plan foretold what this call did; `before`: the newest checkpoint when it began."""
    from ddpm.errors import DDPMError
    from ddpm.evaluation.planning.record import happened
    from ddpm.training.checkpoints.checkpoint import latest_name
    from ddpm.training.memory import peak_memory

    first, last = ((name or "").removeprefix("step-") for name in (before, latest_name(finished.run)))
    device = next(tensor.device.type for tensor in finished.denoiser.parameters())
    try:
        line = happened(finished.run, config, int(first or 0), int(last or 0), seconds, peak_memory(device))
    except (DDPMError, ValueError) as error:  # a finished run does not fail over its plan
        line = str(error)
    if line:
        print(line)


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Train, and end with what to do next."""
    config = settings(args, extra)
    low = {"processes": 1, "restarts": 0, "grace": 0}
    wrong = {name: getattr(args, name) for name, least in low.items() if getattr(args, name) < least}
    if wrong:
        raise ConfigError.of([f"{name}: got {value}; allowed whole numbers >= {low[name]}" for name, value in wrong.items()])
    if args.processes > 1 and not inside():
        from ddpm.training.run import run_folder

        return launch(sys.argv[1:], run_folder(config), args.processes, args.restarts, args.grace)
    from ddpm.training.checkpoints.checkpoint import latest_name
    from ddpm.training.run import run_folder, train

    command = shlex.join(["ddpm", *sys.argv[1:]])
    before, began = latest_name(run_folder(config)), time.monotonic()
    with smaller_batch(config.batch, config.accumulate):
        finished = train(config, command=command)
    if speaks() and (finished.run / "plan.json").is_file():
        foretold(finished, config, before, time.monotonic() - began)
    if not finished.code and speaks():
        pictures = sorted((finished.run / "samples").glob("step-*"))
        if pictures and pictures[-1].stem == latest_name(finished.run):
            print(f"samples: {pictures[-1]}")
        print(f"model card: {finished.run / 'README.md'}")
        print(f"next: {next_command(shlex.quote(str(finished.run)), finished.denoiser, config.data)}")
    return finished.code
