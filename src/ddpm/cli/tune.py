"""`ddpm tune`: find the sampler and the instants that suit a trained model best at a number of network calls."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ddpm.cli.prompting import Prompting
from ddpm.config import Parser, add_flags, check, flags_layer, resolve, setting
from ddpm.evaluation.drawing.guiding import Guiding
from ddpm.evaluation.drawing.settled import guiding_key

if TYPE_CHECKING:
    from ddpm.evaluation import Tuned

HELP = """Find the sampler and the noise levels that suit a trained model best at a number of network calls.

  ddpm tune runs/digits                       at 10 calls; `ddpm sample runs/digits` uses the result from then on
  ddpm tune runs/digits --nfe 20 --guidance 2
  ddpm tune runs/digits --nfe 5 --n 128 --budget 1000000

Walks from the same noise are compared with those of a sampler of many calls. Half of the starts are never looked at by the search: the
errors reported are theirs. Kept in RUN/sampling.json, an entry for each --nfe and guidance.
"""
SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """For how many calls, on how many starts, at what cost."""

    nfe: int = setting(10, "network calls for each sample", low=1, high=1_000, group="what")
    guide: Guiding = setting(Guiding(), "", flat=True)
    classes: tuple[str, ...] | None = setting(None, "class names the starts are dealt over; none: all", group="what")
    vector: tuple[str, ...] | None = setting(None, "the vector condition, where the model has one: see ddpm sample", group="what")
    ask: Prompting = setting(Prompting(), "", flat=True)
    n: int = setting(64, "starts it is tuned on; as many again are held out", low=2, high=100_000, group="how")
    budget: int = setting(300_000, "network calls in all, a sample each; what the search leaves is not used", low=1, group="how")
    reference: int = setting(200, "network calls of the reference; doubled until it has converged", low=2, high=100_000, group="how")
    seed: int = setting(0, "of the starts", low=0, high=2**63 - 1, group="how")
    weights: str = setting("ema", "ema: the averaged weights; raw: the last ones; ema-0.100: a certain average", group="how")
    step: int | None = setting(None, "training step of the checkpoint; none: the newest", low=0, group="how")
    clip: Literal["auto", "off", "static", "dynamic"] = setting("auto", "as in ddpm sample", group="how")
    batch: int = setting(256, "samples drawn at once", low=1, high=1_000_000, group="how")
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "where to compute", group="how")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "fp32", "of the network; in less, rounding hides the small differences the search goes by", group="how"
    )

    def __post_init__(self) -> None:
        check(self)


def add(parser: Parser) -> None:
    """The command's arguments."""
    parser.add_argument("run_folder", metavar="RUN", help="run folder, or one of its step folders")
    add_flags(parser, TuneConfig)


def table(tuned: Tuned) -> str:
    """The best pairs of the first stage, then the winner beside the defaults on held-out starts."""
    from ddpm.evaluation.tuning.stored import name_of

    lines = [f"{'sampler':<14} {'grid':<14} {'error':>9}   tried on parametrised grids, the best {min(SHOWN, len(tuned.trials))}"]
    lines += [f"{trial.sampler:<14} {trial.grid:<14} {trial.error:9.5f}" for trial in tuned.trials[:SHOWN]]
    lines.append(f"on {tuned.starts} starts that the search did not see, at {tuned.nfe} calls:")
    lines.append(f"{name_of(tuned.sampler):<14} {'tuned':<14} {tuned.error:9.5f}")
    lines += [f"{name:<14} {'usual':<14} {error:9.5f}   {error / tuned.error:.1f} times" for name, error in tuned.defaults.items()]
    lines.append(f"instants: {', '.join(f'{t:.4g}' for t in tuned.at)}")
    if tuned.interval is not None:
        lines.append(f"guidance is left out where sigma/alpha is outside {tuned.interval[0]:.4g} to {tuned.interval[1]:.4g}, at no loss")
    if tuned.reference_error is not None and tuned.reference_error > 0.2 * tuned.error:
        lines.append(f"the reference itself is off by about {tuned.reference_error:.2g}: raise --reference, and --budget with it")
    return "\n".join(lines)


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Load, search, write."""
    config = resolve(TuneConfig, [flags_layer(args, extra, args.parser, TuneConfig)])
    import torch

    from ddpm.cli.given import Givens
    from ddpm.cli.sample import SampleConfig, conditions
    from ddpm.denoiser.student import refusal
    from ddpm.errors import ConfigError
    from ddpm.evaluation import cost_of, save_tuned, tune
    from ddpm.random import generator
    from ddpm.training.machine import choose
    from ddpm.training.state import load_with_card

    loaded, document = load_with_card(args.run_folder, step=config.step, weights=config.weights)
    machine = choose(config.device, config.precision, None, sum(p.numel() for p in loaded.parameters()))
    model = loaded.to(machine.device)
    if model.meaning != "mean":
        raise ConfigError(f"{args.run_folder}: {refusal(model.meaning)}; there is nothing to tune")
    config.guide.check_model(document)
    guided, names = config.guide.guided(model, document, args.run_folder, config.weights)
    cond = (
        conditions(
            SampleConfig(n=2 * config.n, classes=config.classes, vector=config.vector), names, document["vector"], document.get("tags", ())
        )
        or {}
    )
    cond |= config.ask.told(model, document, 2 * config.n, guided=config.guide.active)[0]
    dealt = Givens().deal(2 * config.n, model, document, args.run_folder)
    cond = dealt.cond(cond, named=config.classes is not None) if dealt else cond
    order = torch.from_numpy(generator(config.seed, "order").permutation(2 * config.n))  # every class among the first few starts
    cond = {key: value[order].to(machine.device) for key, value in cond.items()} if cond else None
    length = model.process.schedule.T
    reference = min(config.reference, length or config.reference)
    cost = cost_of(guided, config.nfe, n=config.n, reference_steps=reference, budget=config.budget)
    print(f"{cost.least:,} to {max(cost):,} network calls, a sample each", flush=True)
    tuned = tune(
        guided, config.nfe, cond=cond, n=config.n, seed=config.seed, reference_steps=reference, budget=config.budget, clip=config.clip,
        batch=config.batch, autocast=machine.autocast, say=lambda line: print(line, flush=True),
    )  # fmt: skip
    print(table(tuned))
    kept = replace(tuned, trials=())
    path = save_tuned(args.run_folder, kept, guiding=guiding_key(config.guide), weights=config.weights, step=config.step)
    print(f"  {shlex.quote(str(path))}")
    return 0
