"""`ddpm likelihood`: how probable data are under a trained model, sample by sample."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ddpm.config import Layer, Parser, add_flags, check, flags_layer, resolve, setting, to_dict
from ddpm.data.settings import DataSettings
from ddpm.errors import ConfigError, DataError, DiskError

if TYPE_CHECKING:
    import torch

    from ddpm.data import Dataset
    from ddpm.denoiser import NetworkDenoiser
    from ddpm.likelihood import Scores

HELP = """Bits per dimension of data under a trained model, or their log-density where they are continuous, by up to three routes.

  ddpm likelihood runs/digits                            100 of the run's own held-out samples, all routes
  ddpm likelihood runs/digits --route bound --curve      the T-step bound with its rate-distortion curve
  ddpm likelihood runs/digits --data other.npz --out scores.csv     scores of other data, to tell what is unusual
  ddpm likelihood runs/digits --route flow --dequantise uniform --n 20
"""
ABOUT = {
    "bound": "bound on -log P of the chain that ancestral sampling walks",
    "continuous": "bound on -log P of its limit of infinitely many steps",
    "flow": "-log P of the probability flow",
}


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig:
    """What is scored, and how."""

    data: DataSettings = setting(DataSettings(), "", flat=True, group="data")
    n: int | None = setting(100, "samples scored, drawn from the data by the seed; none: all", low=1, group="what")
    conditional: bool = setting(True, "given the classes and vectors that come with the data, where the model knows them", group="what")
    route: Literal["all", "bound", "continuous", "flow"] = setting("all", "which likelihood", group="how")
    terms: int | None = setting(64, "bound: steps of the chain evaluated, one at random in each stratum; none: all", low=2, group="how")
    variance: Literal["auto", "small", "large", "learned", "analytic"] = setting(
        "auto", "bound: reverse variance; auto: learned, else analytic, else large, as far as the model has them", group="how"
    )
    curve: bool = setting(False, "bound: print rate and distortion from step T down", group="how")
    levels: int = setting(32, "continuous: noise levels evaluated for each sample", low=2, group="how")
    dequantise: Literal["auto", "none", "noise", "uniform", "variational"] = setting(
        "auto", "flow: how levels become points; auto: noise for levels, none for continuous data", group="how"
    )
    probes: int | None = setting(None, "flow: probes of the trace; 0: exact; none: exact up to 16 entries, else 1", low=0, group="how")
    tolerance: float = setting(1e-3, "flow: error allowed in a step of the solver", above=0.0, high=0.1, group="how")
    entry: float | None = setting(
        None,
        "continuous, flow: time at which data meet the model; none: the first trained, or noise of half a level",
        above=0.0,
        below=1.0,
        group="how",
    )
    draws: int = setting(2, "bound, flow: independent repetitions, for the error bars", low=1, high=10_000, group="how")
    seed: int = setting(0, "which samples, and all noise", low=0, high=2**63 - 1, group="how")
    weights: str = setting("ema", "ema: the averaged weights; raw: the last ones; ema-0.100: a certain average", group="how")
    step: int | None = setting(None, "training step of the checkpoint; none: the newest", low=0, group="how")
    batch: int = setting(100, "samples scored at once", low=1, high=1_000_000, group="how")
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "where to compute", group="how")
    out: str | None = setting(None, "file for the score of every sample, .csv or .npz", group="output")

    def __post_init__(self) -> None:
        wrong = self.out is not None and Path(self.out).suffix not in (".csv", ".npz")
        check(self, [f"out: got {self.out}, must end in .csv or .npz"] if wrong else [])

    def problems(self) -> list[str]:
        """What the nested settings have to say; found before torch is imported."""
        return self.data.problems()


def add(parser: Parser) -> None:
    """The command's arguments."""
    parser.add_argument("run_folder", metavar="RUN", help="run folder, or one of its step folders")
    add_flags(parser, LikelihoodConfig, {})


def card_of(run: str) -> Any:
    """The data card the run folder holds, or None."""
    import json

    from ddpm.config import from_dict
    from ddpm.denoiser import Card

    folder = Path(run)
    path = (folder.resolve().parent if (folder / "manifest.json").is_file() else folder) / "data_card.json"
    return from_dict(Card, json.loads(path.read_text(encoding="utf-8")), where=str(path)) if path.is_file() else None


def rows_to_score(dataset: Dataset, run: str, named: bool, config: LikelihoodConfig) -> tuple[Any, str]:
    """Which rows, and what they are: the held-out ones of the run's own data, all of other data.

    DataError where the run's own are not there and no others are named.
    """
    import numpy as np

    from ddpm.random import generator

    before = card_of(run)
    own = before is not None and before.fingerprint == dataset.card.fingerprint
    if not own and not named:
        raise DataError(
            f"{dataset.card.name}: not the data this run was trained on, which were perhaps given in Python; name what to score with --data"
        )
    rows, kind = np.arange(len(dataset)), "of the run's own, most of them trained on," if own else ""
    if own and before is not None and before.held_out == dataset.card.held_out > 0:  # which, with the data, decides the split
        rows, kind = dataset.held_rows, "held out,"
    if config.n is not None and config.n < len(rows):
        rows = np.sort(generator(config.seed, "order").choice(rows, config.n, replace=False))
    return rows, kind


def check_samples(dataset: Dataset, raw: Any, model: NetworkDenoiser) -> None:
    """DataError for samples that are not of the model's kind: another shape, or levels it does not know."""
    import numpy as np

    if tuple(dataset.card.shape) != model.data_shape:
        raise DataError(f"{dataset.card.name}: samples of shape {tuple(dataset.card.shape)}, the model was trained on {model.data_shape}")
    bins = model.codec.bins
    if bins is not None and (raw.min() < bins[0] or raw.max() > bins[1] or bool((raw != np.round(raw)).any())):
        raise DataError(
            f"{dataset.card.name}: values from {raw.min():g} to {raw.max():g}; the model knows the whole numbers {bins[0]:g} to {bins[1]:g}"
        )


def condition(
    dataset: Dataset, values: dict[str, Any], model: NetworkDenoiser, document: dict[str, Any], asked: bool
) -> tuple[dict[str, torch.Tensor] | None, str]:
    """The condition of the rows, and what to say of it; DataError where the model cannot do without one that is missing."""
    import torch

    known = {"class": document["classes"], "vector": document["vector"]}
    have = {"class": list(dataset.card.classes), "vector": list(dataset.card.vector)}
    given = [key for key in ("class", "vector") if asked and key in values and known[key][: len(have[key])] == have[key] != []]
    if "image" in model.conditions:
        if "image" not in values:
            raise DataError(f"{dataset.card.name}: this model needs a condition image beside each sample, these data have none")
        given.append("image")
    missing = sorted(set(model.conditions) - set(given))
    if missing and document["cond_dropout"] == 0.0:
        raise DataError(
            f"{dataset.card.name}: the data lack the model's {', '.join(missing)}, "
            "and it was trained with --cond-dropout 0, so it knows no answer without"
        )
    if missing:  # hidden together, as they were in training
        given = [key for key in given if key == "image"]
    cond = {key: torch.from_numpy(values[key]) for key in given}
    if missing and cond:
        cond["null"] = torch.ones(len(values["image"]), dtype=torch.bool)
    words = {"class": "classes", "vector": "vectors", "image": "images"}
    return cond or None, "given their " + " and ".join(words[key] for key in given) if given else "unconditional"


def _batches(x0: torch.Tensor, cond: dict[str, torch.Tensor] | None, size: int, route: str) -> Iterator[tuple[int, Any, Any]]:
    for begin in range(0, len(x0), size):
        if sys.stderr.isatty():
            print(f"\r{route}: {begin}/{len(x0)} ", end="", file=sys.stderr, flush=True)
        some = {key: value[begin : begin + size] for key, value in cond.items()} if cond else None
        yield begin, x0[begin : begin + size], some


def _joined(parts: list[Scores]) -> Scores:
    import torch

    return type(parts[0])(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def variance_of(config: LikelihoodConfig, model: NetworkDenoiser) -> Any:
    """The reverse variance of the bound."""
    if config.variance != "auto":
        return config.variance
    return "learned" if model.learned_variance else "analytic" if model.residuals is not None else "large"


def score(
    model: NetworkDenoiser, x0: torch.Tensor, cond: dict[str, torch.Tensor] | None, config: LikelihoodConfig
) -> tuple[dict[str, Scores], Any]:
    """The scores of every route asked for, and the terms of the bound (of the last batch's steps, all samples) or None."""
    import torch

    from ddpm.likelihood import Terms, continuous, discrete, fit, flow
    from ddpm.sampling import Adaptive

    found: dict[str, Scores] = {}
    terms = None
    chain = model.process.schedule.T is not None
    if config.route == "bound" or (config.route == "all" and chain):
        kind = variance_of(config, model)
        parts = [
            discrete(model, x, c, variance=kind, terms=config.terms, draws=config.draws, seed=config.seed, first=begin)
            for begin, x, c in _batches(x0, cond, config.batch, "bound")
        ]
        found["bound"] = _joined([part.scores for part in parts])
        nats, prior, distortion = (torch.cat([getattr(part, key) for part in parts]) for key in ("nats", "prior", "distortion"))
        terms = Terms(parts[0].steps, parts[0].weight, nats, prior, distortion, found["bound"])
    if config.route in ("all", "continuous"):
        found["continuous"] = _joined(
            [
                continuous(model, x, c, entry=config.entry, draws=config.levels, seed=config.seed, first=begin)
                for begin, x, c in _batches(x0, cond, config.batch, "continuous")
            ]
        )
    if config.route in ("all", "flow"):
        way: Any = None if config.dequantise == "auto" else config.dequantise
        if way == "variational":
            way = fit(model, x0, cond, seed=config.seed)
        solver = Adaptive(rtol=config.tolerance, atol=config.tolerance)
        options: dict[str, Any] = {"dequantise": way, "entry": config.entry, "probes": config.probes, "draws": config.draws}
        found["flow"] = _joined(
            [
                flow(model, x, c, solver=solver, seed=config.seed, first=begin, **options)
                for begin, x, c in _batches(x0, cond, config.batch, "flow")
            ]
        )
    return found, terms


def table(found: dict[str, Scores], entries: int, levels: bool) -> str:
    """The routes' means with their error bars."""
    unit = "bits/dim" if levels else "nats"
    lines = [f"{'route':<11} {unit:>9} {'+/- data':>9} {'+/- noise':>9} {'calls':>6}  what it is"]
    for name, scores in found.items():
        mean, spread, noise = (scores.bits_per_dim(entries) if levels else scores).mean()
        shown = [f"{value:9.4f}" if math.isfinite(value) else f"{'-':>9}" for value in (mean, spread, noise)]
        about = ABOUT[name] if levels else ABOUT[name].replace("log P", "log p")
        lines.append(f"{name:<11} {' '.join(shown)} {scores.calls.double().mean().item():6.0f}  {about}")
    lines.append("+/- data: standard error of the mean over the samples; +/- noise: the part that more draws would remove")
    return "\n".join(lines)


def curve(terms: Any, entries: int, codec: Any) -> str:
    """Rate and distortion at about ten steps, from T down."""
    steps, rate, distortion = terms.curve()
    picked = sorted({round(i * (len(steps) - 1) / 10) for i in range(11)}, reverse=True)
    lines = [f"{'step':>6} {'rate, bits/dim':>15} {'RMSE, own units':>16}"]
    lines += [f"{int(steps[i]):>6} {float(rate[i]) / entries / math.log(2):15.5f} {float(distortion[i]):16.5f}" for i in picked]
    return "\n".join(lines)


def write(path: Path, rows: Any, found: dict[str, Scores]) -> None:
    """Row number, nats and their standard error by each route, for every sample."""
    import numpy as np

    columns = {"row": np.asarray(rows)}
    for name, scores in found.items():
        columns |= {f"{name}_nats": scores.nats.numpy(), f"{name}_error": scores.error.numpy()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npz":
            np.savez(path, allow_pickle=False, **columns)
        else:
            lines = [",".join(columns), *(",".join(f"{value:.8g}" for value in line) for line in zip(*columns.values(), strict=True))]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise DiskError(f"--out: {path} cannot be written ({error.strerror}); name another file") from error


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Load, score, show."""
    flags = flags_layer(args, extra, args.parser, LikelihoodConfig, {})
    problems = resolve(LikelihoodConfig, [flags], {}).problems()  # told before torch is imported
    if problems:
        raise ConfigError.of(problems)
    from ddpm.cli.starting import refuse_cascades
    from ddpm.data import open_data
    from ddpm.training.classifier import run_data
    from ddpm.training.feed import encoded
    from ddpm.training.machine import choose
    from ddpm.training.state import load_with_card, open_run

    own = Layer("the run", {"data": to_dict(run_data(open_run(args.run_folder)))})
    config = resolve(LikelihoodConfig, [own, flags], {})
    model, document = load_with_card(args.run_folder, step=config.step, weights=config.weights)
    if model.autoencoder is not None:
        raise ConfigError(
            f"{args.run_folder}: diffuses in latents; what it gives a probability are those, not the data, and its decoder gives none"
        )
    refuse_cascades(args.run_folder, model, "it gives samples a probability once smaller ones are given, and none without")
    machine = choose(config.device, "fp32", None, sum(p.numel() for p in model.parameters()))
    dataset = open_data(config.data)
    rows, kind = rows_to_score(dataset, args.run_folder, "data" in flags.values.get("data", {}), config)
    raw, values = dataset.batch(rows)
    check_samples(dataset, raw, model)
    cond, words = condition(dataset, values, model, document, config.conditional)
    model, x0 = model.to(machine.device), encoded(model.codec, raw, machine.device)
    cond = {key: value.to(machine.device) for key, value in cond.items()} if cond else None
    found, terms = score(model, x0, cond, config)
    if sys.stderr.isatty():
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr)
    entries, bins = x0[0].numel(), model.codec.bins
    measure = f"levels {bins[0]:g} to {bins[1]:g}" if bins else "continuous: -log density in the data's own units, of a whole sample"
    print(f"{len(rows)} samples of {dataset.card.name} {tuple(model.shape)}, {kind + ' ' if kind else ''}{words}; {measure}")
    chain = f", bound with variance {variance_of(config, model)}" if terms is not None else ""
    print(f"{document['weights']}, seed {config.seed}{chain}")
    print(table(found, entries, bins is not None))
    if terms is not None and bins is not None:
        unit = entries * math.log(2)
        print(f"bound = rate {terms.rate / unit:.4f} + distortion {terms.decoding / unit:.4f} bits/dim")
    if terms is not None and config.curve:
        print(curve(terms, entries, model.codec))
    if config.out is not None:
        write(Path(config.out), rows, found)
        print(f"scores: {config.out}")
    return 0
