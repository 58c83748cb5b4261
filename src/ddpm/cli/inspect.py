"""`ddpm inspect`: what is in a data set, before training on it."""

from __future__ import annotations

import argparse
import json

from ddpm.config import Layer, Parser, add_flags, flags_layer, resolve
from ddpm.data.settings import DataSettings

HELP = """Show the data card of a data set: shape, units, range, classes, duplicates, what cannot be read.

  ddpm inspect photos/              a folder; also .zip, .tar(.gz/.xz), .npy, .npz, .safetensors, digits, hf:NAME
  ddpm inspect photos/ --size 64 --crop centre
  ddpm inspect digits --json
"""


def add(parser: Parser) -> None:
    """The command's arguments."""
    parser.add_argument("path", metavar="DATA", nargs="?", default=None, help="the data; digits when left out")
    add_flags(parser, DataSettings, {})
    parser.add_argument("--json", action="store_true", help="print the card as JSON")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Read everything and print the card."""
    layers = [flags_layer(args, extra, args.parser, DataSettings, {})]
    if args.path is not None:
        layers.append(Layer("DATA", {"data": args.path}))
    settings = resolve(DataSettings, layers)
    from ddpm.config import to_dict
    from ddpm.data import describe, open_data

    card = open_data(settings).card
    print(json.dumps(to_dict(card), indent=1) if args.json else describe(card))
    return 0
