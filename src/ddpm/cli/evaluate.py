"""`ddpm evaluate`: draw many samples of a run, score them, and write a report."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ddpm.cli.curves import Points, sweeps
from ddpm.cli.drawing import FAMILIES, How, Ready, draw, ready
from ddpm.cli.drawn import Drawn, rank
from ddpm.config import Layer, Parser, add_flags, check, flags_layer, resolve, setting, to_dict
from ddpm.data.settings import DataSettings
from ddpm.errors import ConfigError, DiskError

if TYPE_CHECKING:
    import torch

    from ddpm.data import Dataset
    from ddpm.denoiser import NetworkDenoiser
    from ddpm.evaluation.extractors import Extractor
    from ddpm.evaluation.report import Evaluator

HELP = """Score a trained model: samples in bulk, distances with error bars beside those of real data, and one page that shows it all.

  ddpm evaluate runs/digits                          10,000 samples; RUN/report/report.html and report.json
  ddpm evaluate runs/cifar --n 50000 --weights-file pt_inception-2015-12-05-6726825d.pth      the Frechet Inception distance
  ddpm evaluate runs/cifar --weights-file FILE.pth --reference cifar10.npz      against another tool's statistics
  ddpm compare runs/a runs/b                         which is better, and whether by more than chance

Stopped and started again, it continues. Flags of ddpm sample say how samples are drawn.
"""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is scored, by what, and how samples are drawn."""

    n: int = setting(10_000, "samples scored; published figures take 50,000", low=40, high=100_000_000, group="what")
    seed: int = setting(0, "sample i depends on (seed, i) alone", low=0, high=2**63 - 1, group="what")
    extractor: Literal["auto", "own", "inception", "dinov2", "clip", "raw"] = setting(
        "auto",
        "what makes vectors of samples; inception: as FID is defined, needs --weights-file; dinov2, clip: by transformers; own: an encoder "
        "trained on the data; raw: the entries; auto: inception where its weights are named, else own",
        group="what",
    )
    weights_file: str | None = setting(
        None, "weights of the extractor: a file; for dinov2 and clip a folder, none: those in the library's cache", group="what"
    )
    reference: str | None = setting(None, "score against another tool's statistics, an .npz with mu and sigma", group="what")
    sweep: int = setting(2000, "samples for each point of the curves; 0: no curves", low=0, high=10_000_000, group="curves")
    nfe_curve: tuple[int, ...] = setting((5, 10, 20, 50), "numbers of network calls", low=1, group="curves")
    guidance_curve: tuple[float, ...] = setting((1.0, 1.5, 2.0, 3.0), "guidance scales, for models with conditions", group="curves")
    likelihood: int = setting(100, "held-out samples whose bits per dimension are bounded; 0: none", low=0, high=10_000_000, group="what")
    data: DataSettings = setting(DataSettings(), "", flat=True, group="data", inherits="the run")
    how: How = setting(How(), "", flat=True)
    out: str | None = setting(None, "folder; none: report in the run folder, or report-2, ...", group="output")

    def __post_init__(self) -> None:
        problems = []
        if self.extractor == "inception" and self.weights_file is None:
            problems.append(
                "extractor: inception needs --weights-file, the network of 2015 as pt_inception-2015-12-05-6726825d.pth holds it, from the "
                "releases of github.com/mseitzer/pytorch-fid or github.com/toshas/torch-fidelity; without it, --extractor own"
            )
        if self.weights_file is not None and self.extractor in ("own", "raw"):
            problems.append(f"weights_file: given, but the extractor is {self.extractor}; leave one of the two out")
        if 0 < self.sweep < 40:
            problems.append(f"sweep: got {self.sweep}, allowed 0 or at least 40")
        check(self, problems)

    def problems(self) -> list[str]:
        """What the nested settings have to say; found before torch is imported."""
        return self.data.problems()


def add(parser: Parser) -> None:
    """The command's arguments."""
    parser.add_argument("run_folder", metavar="RUN", help="run folder, or one of its step folders")
    add_flags(parser, EvaluateConfig, FAMILIES)


def notice(line: str) -> None:
    """For people, not for pipes."""
    print(f"ddpm evaluate: {line}", file=sys.stderr)


def extractor_of(config: EvaluateConfig, dataset: Dataset, device: torch.device) -> Extractor:
    """What was asked for; ConfigError for a missing or foreign weights file, or samples it does not take."""
    from ddpm.evaluation.extractors import Inception, Learned, Pretrained, Raw

    if config.extractor in ("dinov2", "clip"):
        return Pretrained(config.extractor, dataset.card, config.weights_file, device)
    if config.weights_file is not None:
        return Inception(Path(config.weights_file), dataset.card, device)
    return Raw(dataset.card) if config.extractor == "raw" else Learned.of(dataset, say=notice)


def bits(config: EvaluateConfig, model: NetworkDenoiser, dataset: Dataset, keys: frozenset[str]) -> dict[str, Any] | None:
    """The continuous bound of held-out samples; None without any, of a student that predicts no mean, of a stage of a cascade, and in
    latents that give none (see `ddpm.likelihood.latents`).
    """
    import torch

    from ddpm.data.dataset import evenly
    from ddpm.likelihood import continuous, latent_bound
    from ddpm.likelihood.latents import latent_codec
    from ddpm.training.feed import conditions, encoded

    rows = evenly(dataset.held_rows, config.likelihood)  # data may be sorted
    if not len(rows) or model.codec is None or model.meaning != "mean" or model.base is not None:
        return None
    if dataset.card.mask_channels:
        notice("no bits per dimension: of samples of which entries are missing the bound would count these too")
        return None
    if model.autoencoder is not None:
        try:
            latent_codec(model)
        except ConfigError as error:
            notice(f"no bits per dimension: {error}")
            return None
    device = next(model.parameters()).device
    raw, values = dataset.batch(rows)
    parts = []
    for first in range(0, len(rows), 100):
        part = slice(first, first + 100)
        cond = conditions({key: value[part] for key, value in values.items()}, keys, device) or None
        if model.autoencoder is not None:
            parts.append(latent_bound(model, torch.from_numpy(raw[part]), cond, first=first).scores)
        else:
            parts.append(continuous(model, encoded(model.codec, raw[part], device), cond, first=first))
    scores = type(parts[0])(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
    levels = model.codec.bins is not None
    mean, spread, _ = (scores.bits_per_dim(math.prod(model.data_shape)) if levels else scores).mean()
    return {"value": mean, "error": spread, "samples": len(rows), "unit": "bits/dim" if levels else "nats"}


def pictures(samples: torch.Tensor, features: torch.Tensor, evaluator: Evaluator, limits: tuple[float, float]) -> dict[str, Any]:
    """The grid of samples, and samples beside the data nearest to them; none for what is no picture."""
    import numpy as np

    from ddpm.data.export import as_pictures, grid

    seen = as_pictures(samples[:: max(1, len(samples) // 100)][:100].numpy())
    if seen is None:
        return {}
    numbers, train, held = evaluator.neighbours(features)
    rows = [samples[numbers].numpy(), *(evaluator.dataset.batch(np.asarray(chosen))[0] for chosen in (train, held) if chosen)]
    rows.append(np.full_like(rows[0], limits[1]))  # a white gap between the groups
    beside = as_pictures(np.stack(rows, axis=1).reshape(-1, *samples.shape[1:]))
    assert beside is not None
    return {"samples": grid(seen, limits), "neighbours": grid(beside, limits, columns=len(rows) * 3)}


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Load, draw, score, write."""
    typed = flags_layer(args, extra, args.parser, EvaluateConfig, FAMILIES)
    asked = resolve(EvaluateConfig, [typed], FAMILIES)
    if problems := asked.problems():
        raise ConfigError.of(problems)
    from ddpm.cli.scored import card_of, check_samples
    from ddpm.data import open_data
    from ddpm.evaluation.extractors.extractor import digest
    from ddpm.evaluation.reference import foreign_statistics
    from ddpm.evaluation.report import Evaluator
    from ddpm.training.classifier import home_of, run_data
    from ddpm.training.given import with_given
    from ddpm.training.latents import diffused
    from ddpm.training.state import open_run
    from ddpm.training.tokens import told_by

    saved = open_run(args.run_folder)
    config = resolve(EvaluateConfig, [Layer("the run", {"data": to_dict(run_data(saved))}), typed], FAMILIES)
    drawing = ready(args.run_folder, config.how, typed)
    config = replace(config, how=drawing.how)
    dataset = told_by(with_given(open_data(config.data), drawing.model.given), drawing.model)
    if drawing.model.text is not None and "tokens" not in dataset.cond:
        notice(f"{dataset.card.name}: has no captions, so samples are drawn, and losses measured, without any")
    check_samples(dataset, dataset.batch(dataset.train_rows[:256])[0], drawing.model)
    before, card = card_of(args.run_folder), diffused(dataset, drawing.model).card
    if before is not None and (before.fingerprint, before.held_out) != (card.fingerprint, card.held_out):
        notice(f"{dataset.card.name}: not the data, or not the split, of this run; what is said of copies is about these data")
    extractor = extractor_of(config, dataset, drawing.machine.device)
    statistics = None if config.reference is None else foreign_statistics(Path(config.reference), extractor.dim)
    evaluator = Evaluator(dataset, extractor, statistics, notice)
    protocol = evaluator.train.protocol
    if statistics is not None:
        protocol = protocol._replace(rows=f"statistics {digest(statistics.mean, statistics.cov)}")
    call = [repr(config), drawing.steps, drawing.document["sha256"], list(protocol), "features kept"]
    drawn = Drawn.open(Path(config.out) if config.out else None, home_of(args.run_folder) / "report", call, featured=True)
    try:
        return _report(args.run_folder, config, typed, drawing, evaluator, drawn, protocol._asdict())
    except KeyboardInterrupt:
        notice(f"interrupted: {drawn.left(config.n)}")
        return 130
    except OSError as error:
        raise DiskError(f"--out: {drawn.folder} cannot be written ({error.strerror}); name another folder") from error


def _report(
    run: str, config: EvaluateConfig, typed: Layer, drawing: Ready, evaluator: Evaluator, drawn: Drawn, protocol: dict[str, str]
) -> int:
    import torch

    import ddpm
    from ddpm.evaluation.report import write_report
    from ddpm.evaluation.report.page import page
    from ddpm.training.checkpoints.storage import replace_text
    from ddpm.training.preview import limits

    keys = drawing.model.conditions
    cond = evaluator.conditions(config.n, config.seed, keys, drawing.machine.device)
    samples = draw(drawing, config.seed, config.n, cond, drawn, evaluator.extractor.features)
    if rank()[0]:
        return 0
    found, features = evaluator.scores(samples, torch.from_numpy(drawn.features()))
    real = evaluator.real(config.n)
    curves = sweeps(config, run, typed, drawing, evaluator, Points(drawn.folder), notice)
    report = {
        "run": run, "step": drawing.document["step"], "weights": drawing.document["weights"], "model": drawing.document["sha256"],
        "data": evaluator.dataset.card.name, "version": ddpm.__version__, "protocol": protocol, "n": config.n, "seed": config.seed,
        "sampling": {"told": drawing.told(config.seed), **to_dict(drawing.how), "steps": drawing.steps},
        "scores": found.to_dict(), "real": None if real is None else real.to_dict(),
        "losses": evaluator.losses(drawing.model, keys, drawing.machine.autocast),
        "drift": evaluator.drift(samples, cond.get("class") if cond else None),
        "bits_per_dim": bits(config, drawing.model, evaluator.dataset, keys), "sweep_n": config.sweep, "sweeps": curves,
        "warnings": [*found.warnings, *(f"real data: {line}" for line in (real.warnings if real is not None else []))],
    }  # fmt: skip
    images = pictures(samples, features, evaluator, limits(drawing.model.codec))
    replace_text(drawn.folder / "report.html", page(report, images))
    written = write_report(drawn.folder, report)
    drawn.end()
    show(found, real, config, drawing, evaluator)
    for path in (written, written.with_name("report.html")):
        print(f"  {shlex.quote(str(path))}")
    return 0


def show(found: Any, real: Any, config: EvaluateConfig, drawing: Ready, evaluator: Evaluator) -> None:
    """The scores on the terminal."""
    print(f"{config.n:,} samples by {drawing.told(config.seed)}{drawing.chosen}; extractor {evaluator.extractor.name}")
    print(f"{'score':<22} {'samples':>28} {'real data, unseen':>28}")
    for name, one in found.estimates.items():
        print(f"{name:<22} {one!s:>28} {'' if real is None else str(real.estimates.get(name, '')):>28}")
    for name, value in found.figures.items():
        other = "" if real is None or name not in real.figures else f"{real.figures[name]:.4g}"
        print(f"{name:<22} {value:>28.4g} {other:>28}")
    if found.copies is not None:
        print(f"{'copies':<22} {100 * found.copies.copies:>26.2f} % {f'{100 * found.copies.chance:.2g} % by chance':>28}")
    for line in [*found.warnings, *(f"real data: {line}" for line in (real.warnings if real is not None else []))]:
        notice(line)
