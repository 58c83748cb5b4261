"""`ddpm likelihood`: how probable data are under a trained model, sample by sample."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ddpm.config import Layer, Parser, add_flags, check, flags_layer, resolve, setting, to_dict
from ddpm.data.settings import DataSettings
from ddpm.errors import ConfigError, DiskError

if TYPE_CHECKING:
    import torch

    from ddpm.denoiser import NetworkDenoiser
    from ddpm.likelihood import Scores, Terms

HELP = """Bits per dimension of data under a trained model, or their log-density where they are continuous, by up to three routes.

  ddpm likelihood runs/digits                            100 of the run's own held-out samples, all routes
  ddpm likelihood runs/digits --route bound --curve      the T-step bound with its rate-distortion curve
  ddpm likelihood runs/digits --data other.npz --out scores.csv     scores of other data, to tell what is unusual
  ddpm likelihood runs/digits --route flow --dequantise uniform --n 20
  ddpm likelihood runs/photos-latent --n 20 --batch 4    a bound on -log P of pictures, through decoder, latents and encoder
"""
ABOUT = {
    "bound": "bound on -log P of the chain that ancestral sampling walks",
    "continuous": "bound on -log P of its limit of infinitely many steps",
    "flow": "-log P of the probability flow",
}
ABOUT_LATENTS = {
    **dict.fromkeys(ABOUT, "bound on -log P: decoder + its latents - entropy"),
    **{f"{route} latents": about.replace("log P", "log p(z)") for route, about in ABOUT.items()},
    "decoder": "-log P(x|z) of z that the encoder draws",
    "entropy": "of the encoder's q(z|x); of z's units only latents - entropy is free",
}


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig:
    """What is scored, and how."""

    data: DataSettings = setting(DataSettings(), "", flat=True, group="data", inherits="the run")
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
    draws: int = setting(2, "bound, flow, and in latents all: independent repetitions, for the error bars", low=1, high=10_000, group="how")
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


def _batches(x0: torch.Tensor, cond: dict[str, torch.Tensor] | None, size: int, route: str) -> Iterator[tuple[int, Any, Any]]:
    for begin in range(0, len(x0), size):
        if sys.stderr.isatty():
            print(f"\r{route}: {begin}/{len(x0)} ", end="", file=sys.stderr, flush=True)
        some = {key: value[begin : begin + size] for key, value in cond.items()} if cond else None
        yield begin, x0[begin : begin + size], some


def _joined(parts: Sequence[Scores]) -> Scores:
    import torch

    return type(parts[0])(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def variance_of(config: LikelihoodConfig, model: NetworkDenoiser) -> Any:
    """The reverse variance of the bound."""
    if config.variance != "auto":
        return config.variance
    return "learned" if model.learned_variance else "analytic" if model.residuals is not None else "large"


def routes(
    model: NetworkDenoiser, x0: torch.Tensor, cond: dict[str, torch.Tensor] | None, config: LikelihoodConfig
) -> dict[str, Callable[..., Any]]:
    """What scores a batch, by route: (model, x, cond, seed=, first=) -> Scores, or Terms of the bound."""
    from ddpm.likelihood import continuous, discrete, fit, flow
    from ddpm.sampling import Adaptive

    found: dict[str, Callable[..., Any]] = {}
    draws = config.draws if model.autoencoder is None else 1  # each of config.draws latents is scored once
    if config.route == "bound" or (config.route == "all" and model.process.schedule.T is not None):
        found["bound"] = partial(discrete, variance=variance_of(config, model), terms=config.terms, draws=draws)
    if config.route in ("all", "continuous"):
        found["continuous"] = partial(continuous, entry=config.entry, draws=config.levels)
    if config.route in ("all", "flow"):
        way: Any = None if config.dequantise == "auto" else config.dequantise
        if way == "variational":
            way = fit(model, x0, cond, seed=config.seed)
        solver = Adaptive(rtol=config.tolerance, atol=config.tolerance)
        found["flow"] = partial(flow, dequantise=way, entry=config.entry, probes=config.probes, draws=draws, solver=solver)
    return found


def score(
    model: NetworkDenoiser, x0: torch.Tensor, cond: dict[str, torch.Tensor] | None, config: LikelihoodConfig
) -> tuple[dict[str, Scores], Terms | None]:
    """The scores of every route asked for, and the terms of the bound (of the last batch's steps, all samples) or None.

    x0: encoded samples; of a model in latents the samples as they are, whose scores come with those of their terms.
    """
    import torch

    from ddpm.likelihood import Terms, latent_bound

    found: dict[str, Scores] = {}
    shared: dict[str, Scores] = {}
    terms = None
    for name, route in routes(model, x0, cond, config).items():
        call = route
        if model.autoencoder is not None:
            call = partial(latent_bound, density=partial(_bounded, route) if name == "bound" else route, draws=config.draws)
        parts: list[Any] = [call(model, x, c, seed=config.seed, first=begin) for begin, x, c in _batches(x0, cond, config.batch, name)]
        if model.autoencoder is not None:
            found[name], shared["decoder"], found[f"{name} latents"], shared["entropy"] = map(_joined, zip(*parts, strict=True))
        elif name == "bound":
            found[name] = _joined([part.scores for part in parts])
            nats, prior, distortion = (torch.cat([getattr(part, key) for part in parts]) for key in ("nats", "prior", "distortion"))
            terms = Terms(parts[0].steps, parts[0].weight, nats, prior, distortion, found[name])
        else:
            found[name] = _joined(parts)
    return found | shared, terms


def _bounded(chain: Callable[..., Terms], *args: Any, **options: Any) -> Scores:
    return chain(*args, **options).scores


def table(found: dict[str, Scores], entries: int, levels: bool, meant: dict[str, str]) -> str:
    """The routes' means with their error bars, and what is meant by each."""
    unit, width = "bits/dim" if levels else "nats", max(11, *map(len, found))
    lines = [f"{'route':<{width}} {unit:>9} {'+/- data':>9} {'+/- noise':>9} {'calls':>6}  what it is"]
    for name, scores in found.items():
        mean, spread, noise = (scores.bits_per_dim(entries) if levels else scores).mean()
        shown = [f"{value:9.4f}" if math.isfinite(value) else f"{'-':>9}" for value in (mean, spread, noise)]
        about = meant[name] if levels else meant[name].replace("log P", "log p")
        lines.append(f"{name:<{width}} {' '.join(shown)} {scores.calls.double().mean().item():6.0f}  {about}")
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
        key = name.replace(" ", "_")
        columns |= {f"{key}_nats": scores.nats.numpy(), f"{key}_error": scores.error.numpy()}
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
    import torch

    from ddpm.data import open_data
    from ddpm.evaluation.drawing.starting import refuse_cascades
    from ddpm.evaluation.scored import check_samples, condition, rows_to_score
    from ddpm.likelihood.latents import latent_codec
    from ddpm.training.classifier import run_data
    from ddpm.training.feed import encoded
    from ddpm.training.given import with_given
    from ddpm.training.machine import choose
    from ddpm.training.state import load_with_card, open_run
    from ddpm.training.tokens import told_by

    own = Layer("the run", {"data": to_dict(run_data(open_run(args.run_folder)))})
    config = resolve(LikelihoodConfig, [own, flags], {})
    model, document = load_with_card(args.run_folder, step=config.step, weights=config.weights)
    latents = model.autoencoder is not None
    if latents:
        latent_codec(model)  # refuses what gives no bound
        if config.curve:
            raise ConfigError("curve: in latents the chain's rate and distortion are not those of the data; leave --curve out")
    refuse_cascades(args.run_folder, model, "it gives samples a probability once smaller ones are given, and none without")
    machine = choose(config.device, "fp32", None, sum(p.numel() for p in model.parameters()))
    dataset = told_by(with_given(open_data(config.data), model.given), model)
    rows, kind = rows_to_score(dataset, args.run_folder, model, "data" in flags.values.get("data", {}), config.n, config.seed)
    raw, values = dataset.batch(rows)
    check_samples(dataset, raw, model)
    if "mask" in values:
        raise ConfigError(
            f"{dataset.card.name}: entries of its samples are missing, and the bounds count all entries; no likelihood of these"
        )
    cond, words = condition(dataset, values, model, document, config.conditional)
    model = model.to(machine.device)
    x0 = torch.from_numpy(raw) if latents else encoded(model.codec, raw, machine.device)
    cond = {key: value.to(machine.device) for key, value in cond.items()} if cond else None
    found, terms = score(model, x0, cond, config)
    if sys.stderr.isatty():
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr)
    entries, bins = math.prod(model.data_shape), model.codec.bins
    measure = f"levels {bins[0]:g} to {bins[1]:g}" if bins else "continuous: -log density in the data's own units, of a whole sample"
    print(f"{len(rows)} samples of {dataset.card.name} {tuple(model.data_shape)}, {kind + ' ' if kind else ''}{words}; {measure}")
    chain = f", bound with variance {variance_of(config, model)}" if "bound" in found else ""
    scale = f", decoder's Laplace scale {model.autoencoder.scale:.3g} of encoded data" if model.autoencoder is not None else ""
    print(f"{document['weights']}, seed {config.seed}{chain}{scale}")
    print(table(found, entries, bins is not None, ABOUT_LATENTS if latents else ABOUT))
    if terms is not None and bins is not None:
        unit = entries * math.log(2)
        print(f"bound = rate {terms.rate / unit:.4f} + distortion {terms.decoding / unit:.4f} bits/dim")
    if terms is not None and config.curve:
        print(curve(terms, entries, model.codec))
    if config.out is not None:
        write(Path(config.out), rows, found)
        print(f"scores: {config.out}")
    return 0
