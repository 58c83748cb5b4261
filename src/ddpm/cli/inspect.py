"""`ddpm inspect`: what is in a data set, before training on it; and what a trained model makes of its conditions."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm.config import Layer, Parser, add_flags, flags_layer, resolve
from ddpm.data.settings import DataSettings

if TYPE_CHECKING:
    from ddpm.training.health.condition_use import ConditionUse

HELP = """Show the data card of a data set: shape, units, range, classes, duplicates, what cannot be read; or of a run, what its model
is and whether it uses each of its conditions.

  ddpm inspect photos/              a folder; also .zip, .tar(.gz/.xz), .npy, .npz, .safetensors, digits, hf:NAME
  ddpm inspect photos/ --size 64 --crop centre
  ddpm inspect digits --json
  ddpm inspect runs/digits          held-out loss by noise level: with the own condition, with it hidden, and with another sample's
"""


LEVELS = ("log-SNR", "own", "hidden", "another's", "own saves")


def is_run(path: Path) -> bool:
    """Whether a folder is one that `ddpm train` makes, or a checkpoint in it."""
    here = all((path / name).is_file() for name in ("manifest.json", "config.json"))  # a checkpoint; other folders have manifests too
    return path.is_dir() and (here or (path / "latest").is_file() or any(path.glob("step-*/manifest.json")))


def add(parser: Parser) -> None:
    """The command's arguments."""
    parser.add_argument("path", metavar="DATA", nargs="?", default=None, help="the data, or a run folder; digits when left out")
    add_flags(parser, DataSettings, {})
    parser.add_argument("--json", action="store_true", help="print the card as JSON")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Read everything and print the card."""
    layers = [flags_layer(args, extra, args.parser, DataSettings, {})]
    if args.path is not None:
        layers.append(Layer("DATA", {"data": args.path}))
    if args.path is not None and is_run(Path(args.path)):
        return _run(args.path, flags_layer(args, extra, args.parser, DataSettings, {}), args.json)
    settings = resolve(DataSettings, layers)
    from ddpm.config import to_dict
    from ddpm.data import describe, open_data

    card = open_data(settings).card
    print(json.dumps(to_dict(card), indent=1) if args.json else describe(card))
    return 0


def _run(run: str, typed: Layer, as_json: bool) -> int:
    """The model of a run, and what conditions are worth to it."""
    from ddpm.config import to_dict
    from ddpm.data import open_data
    from ddpm.errors import DataError
    from ddpm.evaluation.scored import card_of
    from ddpm.training.classifier import run_data
    from ddpm.training.health.condition_use import DEAF, condition_use
    from ddpm.training.latents import card_fingerprint, diffused
    from ddpm.training.state import load_with_card, open_run

    saved = open_run(run)
    settings = resolve(DataSettings, [Layer("the run", to_dict(run_data(saved))), typed])
    model, document = load_with_card(run)
    found: ConditionUse | None = None
    about = facts(run, saved.step, model, document)
    if not as_json:
        print("\n".join(f"{key:<{max(map(len, about))}}  {value}" for key, value in about.items()), flush=True)
    if model.meaning == "mean" and model.conditions:
        opened = open_data(settings)
        own = card_of(run)
        if own is not None and (own.fingerprint, own.held_out) != (card_fingerprint(opened, model), opened.card.held_out):
            raise DataError(
                f"{opened.card.name}: not the data, or not the split, that {run} was trained on; name those with --data. What conditions "
                "were worth at each evaluation is in the run's metrics.jsonl (condition_gain)"
            )
        data = diffused(opened, model)
        found = condition_use(model.eval(), data, model.conditions, hidden=document["cond_dropout"] > 0.0)
    if as_json:
        print(json.dumps({**about, "condition": None if found is None else _numbers(found)}, indent=1))
        return 0
    if found is not None:
        print(f"\nheld-out |eps - eps_hat|^2 per entry, with the own condition, with it hidden, with another sample's\n{table(found)}")
        for key in found.keys:
            print(f"{'WARNING: ' * (key in found.ignored)}{found.words(key)}")
        if found.deaf:
            print(f"WARNING: {DEAF}")
    elif model.conditions:
        print("\nwhat its conditions are worth was not measured: nothing is held out, or it is a student, which predicts no mean")
    return 0


def _numbers(found: ConditionUse) -> dict[str, Any]:
    """What conditions are worth, for JSON: all together, and under "keys" each by itself."""
    keys = {key: {**one._asdict(), "used": one.used} for key, one in found.keys.items()}
    return {"own": found.own, "hidden": found.hidden, **found.all._asdict(), "used": found.used, "bins": found.bins, "keys": keys}


def facts(run: str, step: int, model: Any, document: dict[str, Any]) -> dict[str, str]:
    """What the model is, a line each."""
    classes, vector = document["classes"], document["vector"]
    conditions = {
        "class": f"class, {len(classes)}: {', '.join(classes[:10])}{' ...' if len(classes) > 10 else ''}",
        "vector": f"vector, {len(vector)}: {', '.join(vector[:10])}{' ...' if len(vector) > 10 else ''}",
        "image": f"image, {document['cond']['image']} channels" + (f", {document['given']}" if document.get("given") else ""),
    }
    named = [conditions[key] if key in conditions else str(key) for key in sorted(model.conditions)]
    if model.text is not None:
        named = [f"tokens, by {model.text.kind}" if text == "tokens" else text for text in named]
    if document["cond"].get("mask"):
        named.append("a mask of missing entries")
    network, count = document["network"], sum(p.numel() for p in model.network.parameters())
    return {
        "run": f"{run}, step {step}",
        "samples": f"{tuple(model.data_shape)}",
        "network": f"{network.get('own') or network.get('name')}, {count:,} parameters",
        "schedule": str(document["schedule"].get("name")),
        "prediction": str(document["parameterization"].get("name")),
        "conditions": "; ".join(named) or "none",
        "hidden": f"{document['cond_dropout']:.0%} of the samples in training" if model.conditions else "-",
    }


def table(found: ConditionUse) -> str:
    """The losses by log-SNR bin and altogether."""
    rows: list[tuple[str, ...]] = [LEVELS]
    for name, (own, hidden, other) in [*found.bins.items(), ("all", (found.own, found.hidden, found.all.other))]:
        share = 1.0 - own / other if other else 0.0
        rows.append((name, f"{own:.4f}", "-" if hidden is None else f"{hidden:.4f}", f"{other:.4f}", f"{share:+.2%}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(LEVELS))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
