"""A trained run scored: samples drawn in bulk, every score beside that of real data, the curves, and the report they are kept in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import ddpm
from ddpm.config import Layer, resolve, to_dict
from ddpm.data import open_data
from ddpm.data.dataset import Dataset, evenly
from ddpm.data.export import as_pictures, grid
from ddpm.denoiser import NetworkDenoiser
from ddpm.errors import ConfigError, DiskError
from ddpm.evaluation.drawing.kept import Drawn, rank
from ddpm.evaluation.drawing.ready import FAMILIES, Ready, draw, ready
from ddpm.evaluation.extractors import Extractor, Inception, Learned, Pretrained, Raw
from ddpm.evaluation.reference import foreign_statistics
from ddpm.evaluation.report import Evaluator, write_report
from ddpm.evaluation.report.content import FEWEST
from ddpm.evaluation.report.curves import Points, sweeps
from ddpm.evaluation.report.page import page
from ddpm.evaluation.scored import card_of, check_samples
from ddpm.evaluation.scoring import Scores, mixed
from ddpm.evaluation.settings import EvaluateConfig, said
from ddpm.likelihood import continuous, latent_bound
from ddpm.likelihood.latents import latent_codec
from ddpm.training.checkpoints.storage import replace_text
from ddpm.training.checkpoints.verified import to_stderr
from ddpm.training.classifier import home_of, run_data
from ddpm.training.feed import conditions, encoded
from ddpm.training.given import with_given
from ddpm.training.latents import diffused
from ddpm.training.preview import limits
from ddpm.training.state import open_run
from ddpm.training.tokens import told_by

Say = Callable[[str], None]


class Evaluated(NamedTuple):
    """The scores of samples and of unseen real data, where the samples come from in words, everything as `report.json` has it, and where
    that lies.
    """

    scores: Scores
    real: Scores | None
    made: str
    extractor: str
    report: dict[str, Any]
    folder: Path


def evaluate(
    run: str | Path, config: EvaluateConfig | None = None, *, typed: Layer | None = None, say: Say = to_stderr
) -> Evaluated | None:
    """Draw samples of a run, score them, and write report.json and report.html; stopped and called again it continues.

    config: what is asked for; data and way of drawing that it leaves at their defaults are those of the run. typed: the same as a layer of
    settings, instead. None in a process that only drew its share (not rank 0). Raises: ConfigError, DataError, CheckpointError for what
    does not fit or is not there; DiskError; KeyboardInterrupt, after saying what was kept.
    """
    typed = said(config or EvaluateConfig()) if typed is None else typed
    run, saved = str(run), open_run(run)
    config = resolve(EvaluateConfig, [Layer("the run", {"data": to_dict(run_data(saved))}), typed], FAMILIES)
    drawing = ready(run, config.how, typed)
    config = replace(config, how=drawing.how)
    dataset = told_by(with_given(open_data(config.data), drawing.model.given), drawing.model)
    if drawing.model.text is not None and "tokens" not in dataset.cond:
        say(f"{dataset.card.name}: has no captions, so samples are drawn, and losses measured, without any")
    check_samples(dataset, dataset.batch(dataset.train_rows[:256])[0], drawing.model)
    check_own(run, drawing.model, dataset, say)
    evaluator = evaluator_of(config, dataset, drawing.machine.device, say)
    asked = [config.count, config.seed, repr(config.data), repr(config.how)]  # the rest changes neither samples nor features
    call = [*asked, drawing.steps, drawing.document["sha256"], list(evaluator.train.protocol), "features kept"]
    drawn = Drawn.open(Path(config.out) if config.out else None, home_of(run) / "report", call, featured=True)
    try:
        return _report(run, config, typed, drawing, evaluator, drawn, say)
    except KeyboardInterrupt:
        say(f"interrupted: {drawn.left(config.count)}")
        raise
    except OSError as error:
        raise DiskError(f"--out: {drawn.folder} cannot be written ({error.strerror}); name another folder") from error


def _report(
    run: str,
    config: EvaluateConfig,
    typed: Layer,
    drawing: Ready,
    evaluator: Evaluator,
    drawn: Drawn,
    say: Say,
) -> Evaluated | None:
    keys = drawing.model.conditions
    cond = evaluator.conditions(config.count, config.seed, keys, drawing.machine.device)
    samples = draw(drawing, config.seed, config.count, cond, drawn, evaluator.extractor.features)
    if rank()[0]:
        return None
    found, features = evaluator.scores(samples, torch.from_numpy(drawn.features()))
    curves = sweeps(config, run, typed, drawing, evaluator, Points(drawn.folder, f"{config.sweep} {evaluator.against.data}"), say)
    told = drawing.told(config.seed)
    about = {
        "run": run, "step": drawing.document["step"], "weights": drawing.document["weights"], "model": drawing.document["sha256"],
        "seed": config.seed, "sampling": {"told": told, **to_dict(drawing.how), "steps": drawing.steps},
        "losses": evaluator.losses(drawing.model, keys, drawing.machine.autocast),
        "drift": evaluator.drift(samples, cond.get("class") if cond else None),
        "bits_per_dim": bits(config, drawing.model, evaluator.dataset, keys, say), "sweep_n": config.sweep, "sweeps": curves,
    }  # fmt: skip
    images = pictures(samples, features, evaluator, limits(drawing.model.codec))
    done = finished(evaluator, found, about, images, f"by {told}{drawing.chosen}", drawn.folder)
    drawn.end()
    return done


def check_own(run: str, model: NetworkDenoiser, dataset: Dataset, say: Say) -> None:
    """Say so where the data, or their split, are not those of the run."""
    before, card = card_of(run), diffused(dataset, model).card
    if before is not None and (before.fingerprint, before.held_out) != (card.fingerprint, card.held_out):
        say(f"{dataset.card.name}: not the data, or not the split, of this run; what is said of copies is about these data")


def finished(evaluator: Evaluator, found: Scores, about: dict[str, Any], images: dict[str, Any], made: str, folder: Path) -> Evaluated:
    """The report on scores found, with what is known of the samples beside them, written to its folder. Raises: OSError."""
    count = found.estimates["frechet"].samples
    real = evaluator.real(count)
    few = [] if evaluator.held else [f"memory: fewer than {FEWEST} data are held out, so nothing tells copies, nor what real data score"]
    report = {
        **about, "data": evaluator.dataset.card.name, "fingerprint": evaluator.train.protocol.data, "rows": evaluator.train.protocol.rows,
        "version": ddpm.__version__, "protocol": evaluator.against._asdict(), "n": count,
        "scores": found.to_dict(), "real": None if real is None else real.to_dict(),
        "warnings": [*found.warnings, *few, *(f"real data: {line}" for line in (real.warnings if real is not None else []))],
    }  # fmt: skip
    write_report(folder, report)
    replace_text(folder / "report.html", page(report, images))
    return Evaluated(found, real, made, evaluator.extractor.name, report, folder)


def evaluator_of(config: EvaluateConfig, dataset: Dataset, device: torch.device, say: Say) -> Evaluator:
    """What scores samples of these data by the extractor, and against the statistics, that were asked for; ConfigError as `extractor_of`,
    and for statistics that are none.
    """
    extractor = extractor_of(config, dataset, device, say)
    statistics = None if config.reference is None else foreign_statistics(Path(config.reference), extractor.dim)
    return Evaluator(dataset, extractor, statistics, say)


def extractor_of(config: EvaluateConfig, dataset: Dataset, device: torch.device, say: Say = to_stderr) -> Extractor:
    """What was asked for; ConfigError for a missing or foreign weights file, or samples it does not take."""
    if config.extractor in ("dinov2", "clip"):
        return Pretrained(config.extractor, dataset.card, config.weights_file, device)
    if config.weights_file is not None:
        return Inception(Path(config.weights_file), dataset.card, device)
    return Raw(dataset.card) if config.extractor == "raw" else Learned.of(dataset, device=device, say=say)


def bits(config: EvaluateConfig, model: NetworkDenoiser, dataset: Dataset, keys: frozenset[str], say: Say) -> dict[str, Any] | None:
    """The continuous bound of held-out samples; None without any, of a student that predicts no mean, of a stage of a cascade, and in
    latents that give none (see `ddpm.likelihood.latents`).
    """
    rows = evenly(dataset.held_rows, config.likelihood)  # data may be sorted
    if not len(rows) or model.codec is None or model.meaning != "mean" or model.base is not None:
        return None
    if dataset.card.mask_channels:
        say("no bits per dimension: of samples of which entries are missing the bound would count these too")
        return None
    if model.autoencoder is not None:
        try:
            latent_codec(model)
        except ConfigError as error:
            say(f"no bits per dimension: {error}")
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
    seen = as_pictures(samples[mixed(len(samples), 100).sort().values].numpy())
    if seen is None:
        return {}
    numbers, train, held = evaluator.neighbours(features)
    rows = [samples[numbers].numpy(), *(evaluator.dataset.batch(np.asarray(chosen))[0] for chosen in (train, held) if chosen)]
    rows.append(np.full_like(rows[0], limits[1]))  # a white gap between the groups
    beside = as_pictures(np.stack(rows, axis=1).reshape(-1, *samples.shape[1:]))
    assert beside is not None
    return {"samples": grid(seen, limits), "neighbours": grid(beside, limits, columns=len(rows) * 3)}
