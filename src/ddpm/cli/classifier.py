"""`ddpm classifier`: train the noisy classifier of a run, which `ddpm sample --guidance-kind classifier` follows."""

from __future__ import annotations

import argparse
import shlex

from ddpm.config import Layer, Parser, add_flags, flags_layer, resolve, to_dict
from ddpm.errors import ConfigError
from ddpm.training.config import FAMILIES, ClassifierConfig

HELP = """Train a classifier of a run's noisy data, on the run's own data, and keep it in RUN/classifier/.

  ddpm classifier runs/digits
  ddpm classifier runs/photos --steps 5000 --data photos/ --size 64 --crop centre     also for a run that learned no classes
  ddpm sample runs/digits --guidance-kind classifier --guidance 2
"""


def add(parser: Parser) -> None:
    """The command's arguments."""
    parser.add_argument("run_folder", metavar="RUN", help="run folder, or one of its step folders")
    add_flags(parser, ClassifierConfig, FAMILIES)


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Train, and end with what to do next."""
    flags = flags_layer(args, extra, args.parser, ClassifierConfig, FAMILIES)
    problems = resolve(ClassifierConfig, [flags], FAMILIES).problems()  # told before torch is imported
    if problems:
        raise ConfigError.of(problems)
    from ddpm.data import open_data
    from ddpm.training.classifier import run_data, train_classifier
    from ddpm.training.state import open_run

    own = Layer("the run", {"data": to_dict(run_data(open_run(args.run_folder)))})
    config = resolve(ClassifierConfig, [own, flags], FAMILIES)
    named = "data" in flags.values.get("data", {})  # then they need not be the run's own
    finished = train_classifier(args.run_folder, config, data=open_data(config.data) if named else None)
    for ratio, share in finished.accuracy.items():
        print(f"held-out accuracy at noise/signal {ratio:.3g}: {100 * share:.1f} %")
    print(f"classifier: {finished.folder}")
    print(f"next: ddpm sample {shlex.quote(str(args.run_folder))} --guidance-kind classifier --guidance 2")
    return 0
