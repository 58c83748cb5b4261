"""`ddpm evaluate`: draw many samples of a run, score them, and write a report."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm.config import Parser, add_flags, flags_layer, resolve
from ddpm.errors import ConfigError
from ddpm.evaluation.drawing.ready import FAMILIES
from ddpm.evaluation.settings import EvaluateConfig

if TYPE_CHECKING:
    from ddpm.evaluation.run import Evaluated

HELP = """Score a trained model: samples in bulk, distances with error bars beside those of real data, and one page that shows it all.

  ddpm evaluate runs/digits                          10,000 samples; RUN/report/report.html and report.json
  ddpm evaluate runs/cifar --weights-file pt_inception-2015-12-05-6726825d.pth      50,000 samples: the Frechet Inception distance
  ddpm evaluate runs/cifar --weights-file FILE.pth --reference cifar10.npz      against another tool's statistics
  ddpm evaluate runs/cifar --samples pictures.zip    samples of any tool, scored as those of the run; pictures-report/
  ddpm evaluate --samples pictures.zip --data photos.zip --size 64       without a run
  ddpm compare runs/a runs/b                         which is better, and whether by more than chance

Published FID compares with the uncorrected distance of 50,000 samples.
Stopped and started again, it continues. Flags of ddpm sample say how samples are drawn.
"""


def add(parser: Parser) -> None:
    """The command's arguments."""
    parser.add_argument("run_folder", metavar="RUN", nargs="?", help="run folder, or one of its step folders")
    parser.add_argument("--samples", metavar="PATH", help="score these instead of drawing: a folder, an archive, an .npz, by whatever tool")
    add_flags(parser, EvaluateConfig, FAMILIES)


def notice(line: str) -> None:
    """For people, not for pipes."""
    print(f"ddpm evaluate: {line}", file=sys.stderr)


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Load, draw, score, write."""
    typed = flags_layer(args, extra, args.parser, EvaluateConfig, FAMILIES)
    if problems := resolve(EvaluateConfig, [typed], FAMILIES).problems():
        raise ConfigError.of(problems)
    run, samples = args.run_folder or "", args.samples
    if samples is None and not run:
        raise ConfigError("RUN: name a run folder, or samples that are there with --samples")
    if samples is None and Path(run).is_file():
        raise ConfigError(f"RUN: {run} is a file, no run folder; samples it may hold are scored by --samples {run} --data PATH")
    from ddpm.evaluation import evaluate, evaluate_samples

    try:
        if samples is None:
            done = evaluate(run, typed=typed, say=notice)
        else:
            done = evaluate_samples(samples, run=run or None, typed=typed, say=notice)
    except KeyboardInterrupt:
        return 130
    if done is not None:
        show(done)
    return 0


def show(done: Evaluated) -> None:
    """The scores on the terminal, and where the report is."""
    found, real, report = done.scores, done.real, done.report
    print(f"{report['n']:,} samples {done.made}; extractor {done.extractor}")
    print(f"{'score':<22} {'samples':>28} {'real data, unseen':>28}")
    for name, one in found.estimates.items():
        print(f"{name:<22} {one!s:>28} {'' if real is None else str(real.estimates.get(name, '')):>28}")
    if found.copies is not None:
        print(f"{'copies':<22} {100 * found.copies.copies:>26.2f} % {f'{100 * found.copies.chance:.2g} % by chance':>28}")
    for line in report["warnings"]:
        notice(line)
    for name in ("report.json", "report.html"):
        print(f"  {shlex.quote(str(done.folder / name))}")
