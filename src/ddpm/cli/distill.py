"""`ddpm distill`: from a trained model to one that needs few steps, with its quality before and after."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm.config import Layer, Parser, add_flags, flags_layer, resolve
from ddpm.distillation import FAMILIES, DistillConfig, distill, kept_teacher, student_folder
from ddpm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ddpm.denoiser import Denoiser
    from ddpm.metrics import Estimate
    from ddpm.process import Grid
    from ddpm.sampling import Sampler

HELP = """Distil a trained model into a student that draws in a few steps, or one. The student is a run like any other.

  ddpm distill runs/digits --method progressive --steps 4        half the steps four times, from 64 down to 4: four runs
  ddpm distill runs/digits --method consistency                  one step, or as many as sampling is asked for
  ddpm distill runs/digits --method consistency --steps 2        made for two, and better at it; draws in two steps alone
  ddpm distill runs/digits --method consistency --method.source data    a method's own settings; --help-all lists them
  ddpm distill runs/digits --method matching --steps 1           the teacher's density, without its trajectories
  ddpm distill runs/digits --method guidance                     guidance in one call; ddpm sample STUDENT --guidance 2
  ddpm sample runs/digits-progressive4                           knows its own sampler and steps

The same command again resumes. At the end student and teacher are scored, at equal numbers of network calls where both can.
"""
BEST = "dpm++2m"  # the solver of the teacher that students are put beside, with DDIM


def add(parser: Parser) -> None:
    """The command's arguments."""
    parser.add_argument("run_folder", metavar="RUN", help="run folder of the teacher, or one of its step folders")
    add_flags(parser, DistillConfig, FAMILIES)
    parser.add_argument("--score", type=int, default=1000, metavar="N", help="samples scored at the end; 0: none (default: 1000)")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Train the student, score it, and end with what to do next."""
    flags = flags_layer(args, extra, args.parser, DistillConfig, FAMILIES)
    config = resolve(DistillConfig, [Layer("", {}), flags], FAMILIES)
    if args.score and args.score < 40:
        raise ConfigError(f"score: got {args.score}, allowed 0 or at least 40")
    finished = distill(args.run_folder, config, command=shlex.join(["ddpm", *sys.argv[1:]]))
    if finished.code:
        return finished.code
    folder = shlex.quote(str(student_folder(args.run_folder, config)))
    if args.score:
        compare(kept_teacher(args.run_folder, config), finished.denoiser, config, args.score)
    print(f"next: ddpm sample {folder} --n 64 --seed 1")
    return 0


def ways(teacher: Denoiser, student: Denoiser, steps: int) -> Iterator[tuple[str, Denoiser, int | None, Sampler | None, Grid | None]]:
    """What is drawn and scored: the student, the teacher at as many steps, and the teacher with many."""
    from ddpm.denoiser import NetworkDenoiser
    from ddpm.guidance import ClassifierFree, Told
    from ddpm.sampling import DDIM, PRESETS, usual_steps

    solver = next(preset.value for preset in PRESETS if preset.name == BEST)
    if student.meaning == "mean":
        assert isinstance(student, NetworkDenoiser) and student.student is not None
        usual = usual_steps(student)
        for scale in (scale for scale in (1.0, 2.0, 3.0) if scale <= student.student.guidance):
            yield f"student, guidance {scale:g}", Told(student, scale), None, None, None
            if scale != 1.0:  # a guided step of the teacher is two calls
                yield f"student, guidance {scale:g}, {2 * usual}", Told(student, scale), 2 * usual, None, None
            yield f"teacher, guidance {scale:g}", ClassifierFree(teacher, scale), None, None, None
        return
    several = (steps,) if student.times else tuple(dict.fromkeys((1, 2, steps)))
    for count in several:
        yield f"student, {count}", student, count, None, None
        yield f"teacher, DDIM, {count}", teacher, count, DDIM(), None
        if isinstance(teacher, ClassifierFree) and count > 1 and count // 2 not in several:  # a step of it is two calls
            yield f"teacher, DDIM, {count // 2}", teacher, count // 2, DDIM(), None
        if count > 1:
            yield f"teacher, {BEST}, {count}", teacher, count, solver, None
    yield f"teacher, DDIM, {usual_steps(teacher)}", teacher, None, DDIM(), None


def calls(denoiser: Denoiser, sampler: Sampler | None, steps: int | None, grid: Grid | None) -> int:
    """Network calls a sample; under classifier-free guidance both halves count."""
    from ddpm.guidance import ClassifierFree
    from ddpm.sampling import Sampler
    from ddpm.sampling.usual import way

    walk = way(denoiser, sampler, steps, grid)
    assert isinstance(walk.sampler, Sampler)
    return walk.sampler.calls(walk.steps) * (2 if isinstance(denoiser, ClassifierFree) and denoiser.scale != 1.0 else 1)


def compare(run: Path, student: Denoiser, config: DistillConfig, n: int) -> None:
    """The Frechet distance of each way to the training data, by the encoder of the data."""
    from ddpm.cli.evaluate import notice
    from ddpm.data import open_data
    from ddpm.evaluation.extractors import Learned
    from ddpm.evaluation.report import Evaluator
    from ddpm.guidance import ClassifierFree
    from ddpm.sampling import sample
    from ddpm.sampling.walk import device_of
    from ddpm.training.classifier import run_data
    from ddpm.training.given import with_given
    from ddpm.training.state import load, open_run
    from ddpm.training.tokens import told_by

    device = device_of(student)
    loaded = load(run).to(device)
    data = told_by(with_given(open_data(run_data(open_run(run))), loaded.given), loaded)
    evaluator = Evaluator(data, Learned.of(data, device=device, say=notice), say=notice)
    cond = evaluator.conditions(n, config.seed, loaded.conditions, device)
    teacher = ClassifierFree(loaded, config.method.guidance) if config.method.guidance != 1.0 else loaded
    real = evaluator.real(n)
    print(f"{'steps':<28} {'calls':>5} {'Frechet distance':>24}   ({n:,} samples, an encoder trained on the data)")
    found: list[Estimate] = []
    for name, one, steps, sampler, grid in ways(teacher, student, len(student.times) or config.steps or 4):
        drawn = sample(one, n, steps=steps, sampler=sampler, grid=grid, cond=cond, seed=config.seed).cpu()
        found.append(evaluator.frechet(drawn))
        print(f"{name:<28} {calls(one, sampler, steps, grid):>5} {found[-1]!s:>24}", flush=True)
    if real is not None:
        print(f"{'real data, unseen':<28} {'':>5} {beside(real.estimates['frechet'], found[-1]):>24}")


def beside(one: Estimate, other: Estimate) -> str:
    """One in words, where it is corrected for the number of samples as the other is: otherwise they do not compare."""
    return str(one) if math.isnan(one.low) == math.isnan(other.low) else "too few are held out"
