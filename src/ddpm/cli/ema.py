"""`ddpm ema`: choose the length of the weight average after training."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ddpm.config import Layer, Parser, add_flags, check, flags_layer, resolve, setting, to_dict
from ddpm.data.settings import DataSettings
from ddpm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ddpm.data import Dataset
    from ddpm.denoiser import NetworkDenoiser
    from ddpm.training.averaging.lengths import Lengths, Scored
    from ddpm.training.checkpoints.checkpoint import Checkpoint

HELP = """Find the length of the weight average (EMA) that suits a trained model best, from snapshots kept during training.

  ddpm train --ema 0.05,0.1 --snapshots 30 --out runs/mine    two averages, kept every 30 steps
  ddpm ema runs/mine                                 search; `ddpm sample runs/mine` uses the best from then on
  ddpm ema runs/mine --length 0.03,0.08,0.15         the best of these and of those tracked
  ddpm ema runs/mine --length 0.08 --no-write        only show how good it is

A length is a share of the training so far. Each is put together from the snapshots, and scored by the loss on held-out data, always the
same samples and noise. The best is kept in RUN/ema and belongs to the step it was made for; remove the folder to go back.
"""


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Which lengths, and how they are compared."""

    length: tuple[float, ...] | Literal["auto"] = setting(
        "auto", "lengths to compare, as shares of the training; auto: search", above=0.0, below=0.28, group="what"
    )
    step: int | None = setting(None, "training step of the checkpoint; none: the newest", low=0, group="what")
    write: bool = setting(True, "keep the best as what ddpm sample uses", group="what")
    data: DataSettings = setting(DataSettings(), "", flat=True, group="data", inherits="the run")
    n: int = setting(1024, "held-out samples, at most", low=1, high=10_000_000, group="how")
    batch: int = setting(256, "samples scored at once", low=1, high=1_000_000, group="how")
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "where to compute", group="how")

    def __post_init__(self) -> None:
        lengths = self.length if isinstance(self.length, tuple) else (0.05,)
        problems = [] if lengths else ["length: empty; give lengths such as 0.05,0.1, or auto"]
        finer = [f"{length:g}" for length in lengths if round(length, 3) != length]
        check(self, [*problems, *([f"length: got {', '.join(finer)}; allowed: up to three decimals"] if finer else [])])

    def problems(self) -> list[str]:
        """What the nested settings have to say; found before torch is imported."""
        return self.data.problems()


def add(parser: Parser) -> None:
    """The command's arguments."""
    parser.add_argument("run_folder", metavar="RUN", help="run folder, or one of its step folders")
    add_flags(parser, EmaConfig)


def own_data(config: DataSettings, saved: Checkpoint, model: NetworkDenoiser) -> Dataset:
    """The data the run was trained on, as it diffuses them, with the rows it held out; DataError for others."""
    from ddpm.data import open_data
    from ddpm.training.latents import diffused
    from ddpm.training.same_data import read_card

    dataset = diffused(open_data(config), model)
    card, before = dataset.card, read_card(saved.path.parent)
    if before is not None and (before.fingerprint, before.held_out) != (card.fingerprint, card.held_out):
        raise DataError(
            f"{card.name}: {card.count} samples, {card.held_out} held out, are not the data this run was trained on "
            f"({before.name}: {before.count}, {before.held_out} held out); say where those are with --data"
        )
    if not len(dataset.held_rows):
        raise DataError(f"{card.name}: nothing is held out, so lengths cannot be compared; train with --holdout above 0")
    return dataset


def table(scores: Mapping[str, Scored], best: str, first: str) -> str:
    """Loss of every set of weights, against that of the average used so far, and how far off its profile is."""
    lines = [f"{'weights':<10} {'held-out loss':>13} {'against ' + first:>18} {'profile off by':>15}"]
    for name, (loss, error) in sorted(scores.items()):
        off = "-" if error is None else "tracked" if error == 0.0 else f"{100.0 * error:.2g} %"
        change = f"{100.0 * (loss / scores[first].loss - 1.0):+.2f} %"
        lines.append(f"{name:<10} {loss:13.6f} {change:>18} {off:>15}{'   best' if name == best else ''}")
    return "\n".join(lines)


def compare(config: EmaConfig, lengths: Lengths, low: float, high: float) -> list[str]:
    """Score what was asked for, and the weights there are for comparison; the averages, best first.

    Where two are as good, to the digits shown, the one that was tracked comes first: making another would gain nothing.
    """
    from ddpm.training.averaging.posthoc import search

    for length in lengths.tracked:
        lengths.score(length)
    lengths.score_raw()
    if config.length == "auto":
        search(lengths.score, low, high)
    else:
        for length in config.length:
            lengths.score(length)
    return sorted((name for name in lengths.scores if name != "raw"), key=lambda name: round(lengths.scores[name].loss, 6))


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Load, score, show, write."""
    flags = flags_layer(args, extra, args.parser, EmaConfig)
    asked = resolve(EmaConfig, [flags])
    problems = asked.problems()  # told before torch is imported
    if problems:
        raise ConfigError.of(problems)
    from ddpm.training.averaging.ema import name_of
    from ddpm.training.averaging.lengths import Lengths
    from ddpm.training.averaging.weights import save_chosen
    from ddpm.training.classifier import run_data
    from ddpm.training.held_out import held_out_loss
    from ddpm.training.machine import choose
    from ddpm.training.state import load, open_run

    def notice(line: str) -> None:
        print(f"ddpm ema: {line}", file=sys.stderr)

    def loss() -> float:
        found = held_out_loss(model, dataset, keys, samples=config.n, batch=config.batch)
        assert found is not None  # `own_data` has seen to it
        return found.loss

    saved = open_run(args.run_folder, asked.step, notice)
    config = resolve(EmaConfig, [Layer("the run", {"data": to_dict(run_data(saved))}), flags])
    model = load(saved.path, weights="raw")
    machine = choose(config.device, "fp32", None, sum(p.numel() for p in model.parameters()))
    model = model.to(machine.device)
    lengths = Lengths(saved, model, loss, notice)
    low, high = lengths.reach()
    dataset = own_data(config.data, saved, model)
    keys = model.conditions
    best, first = compare(config, lengths, low, high)[0], name_of(lengths.tracked[0])
    print(f"step {saved.step} of {saved.path.parent}: {len(lengths.held)} averages kept, lengths {low:.3f} to {high:.3f} can be made")
    print(f"loss on {min(config.n, len(dataset.held_rows))} held-out samples of {dataset.card.name}, the same noise for all")
    print(table(lengths.scores, best, first))
    if isinstance(config.length, tuple) and best not in map(name_of, config.length):
        print(f"{best}, which was tracked, is the best of all averages here: no length asked for has a smaller loss")
    if lengths.scores["raw"].loss < lengths.scores[best].loss:
        print("the last weights are better still, as where the learning rate has fallen to 0: --weights raw")
    if config.write:
        length = float(best.removeprefix("ema-"))
        scores = {name: scored.loss for name, scored in lengths.scores.items()}
        path = save_chosen(saved, length, lengths.make(length)[0], {"held_out_loss": scores}, notice)
        print(f"{best} is what ddpm sample {shlex.quote(args.run_folder)} uses from now on (--weights {first}: what it used so far)")
        print(f"  {shlex.quote(str(path))}")
    return 0
