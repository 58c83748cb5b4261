"""Samples that lie in files, whoever drew them, scored as those of a run are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm.config import Layer, resolve, to_dict
from ddpm.data import DataSettings, open_data
from ddpm.data.dataset import Dataset
from ddpm.denoiser import Codec
from ddpm.errors import ConfigError, DataError, DiskError
from ddpm.evaluation.drawing.kept import MANIFEST, free_folder
from ddpm.evaluation.drawing.ready import FAMILIES
from ddpm.evaluation.reference import reference
from ddpm.evaluation.run import Evaluated, check_own, evaluator_of, finished, pictures
from ddpm.evaluation.scoring import mixed
from ddpm.evaluation.settings import EvaluateConfig, said
from ddpm.training.checkpoints.verified import to_stderr
from ddpm.training.classifier import run_data
from ddpm.training.machine import device_of
from ddpm.training.preview import limits
from ddpm.training.state import load_with_card, open_run

USED = {"n", "extractor", "weights_file", "reference", "data", "out", "device"}  # of the settings: what does not ask for a model


def evaluate_samples(
    samples: str | Path,
    config: EvaluateConfig | None = None,
    *,
    run: str | Path | None = None,
    typed: Layer | None = None,
    say: Callable[[str], None] = to_stderr,
) -> Evaluated:
    """Score samples in any form that `ddpm.data.open_data` reads, in the data's own units, and write report.json and report.html.

    config: what is asked for; n of the samples are taken, drawn once for all, none: all of them. run: one whose data are compared with,
    where config names none. typed: as for `evaluate`. Raises: ConfigError for settings of a model, which there is none; DataError for
    samples that are not of the data's shape or levels; CheckpointError, DiskError.
    """
    typed = said(config or EvaluateConfig()) if typed is None else typed
    if unused := sorted(_named(typed.values) - USED):
        raise ConfigError(f"{', '.join(unused)}: of no use with samples that are there already; leave out what says how a model draws")
    layers = [] if run is None else [Layer("the run", {"data": to_dict(run_data(open_run(run)))})]
    config = resolve(EvaluateConfig, [*layers, typed], FAMILIES)
    if run is None and "data" not in _named(typed.values):
        raise ConfigError("data: say what the samples are compared with, by --data or by the run that was trained on it")
    dataset, mine = open_data(config.data), opened(samples)
    check_alike(mine, dataset)
    if run is not None:
        check_own(str(run), load_with_card(str(run))[0], dataset, say)
    for line in mine.card.notices:
        say(f"{mine.card.name}: {line}")
    if mine.card.mask_channels or dataset.card.mask_channels:
        say("entries that are missing count as the middle of their channel, in samples and in data")
    if config.n is not None and config.n > len(mine):
        raise DataError(f"{mine.card.name}: holds {len(mine):,} samples, fewer than the {config.n:,} asked for; leave --n out")
    rows = mixed(len(mine), config.n or len(mine)).sort().values
    evaluator = evaluator_of(config, dataset, torch.device(device_of(config.how.device)), say)
    features = reference(mine, "train", evaluator.extractor, say).features[rows]  # kept as those of data are
    drawn = torch.from_numpy(mine.batch(rows.numpy())[0])
    found, _ = evaluator.scores(drawn, features)
    place = Path(samples).expanduser().resolve()
    name = place.name if place.is_dir() else place.stem.removesuffix(".tar")
    folder = free_folder(Path(config.out) if config.out else None, place.parent / f"{name}-report")
    about = {"run": str(samples), "samples": mine.card.fingerprint, "drift": evaluator.drift(drawn, None)}
    images = pictures(drawn, features, evaluator, limits(Codec.of(dataset.card)))
    try:
        return finished(evaluator, found, about, images, f"of {samples}", folder)
    except OSError as error:
        raise DiskError(f"--out: {folder} cannot be written ({error.strerror}); name another folder") from error


def opened(samples: str | Path) -> Dataset:
    """All samples that lie there, as rows to be scored, whatever folders say of a split; of a folder that `ddpm sample` packed them in, the
    file. DataError where there are none.
    """
    place = Path(samples).expanduser()
    if place.is_dir() and (place / MANIFEST).is_file():
        packed = [path for kind in ("npz", "zip", "nc", "zarr") for path in place.glob(f"samples_*.{kind}")]
        place = packed[0] if len(packed) == 1 else place
    try:
        mine = open_data(DataSettings(data=str(place) if place.exists() else str(samples), holdout=0.0, labels="none"))
    except (ConfigError, DataError) as error:
        raise DataError(f"--samples {samples}: {error}") from error
    return replace(mine, train_rows=np.arange(len(mine), dtype=np.int64), held_rows=np.zeros(0, dtype=np.int64))


def check_alike(samples: Dataset, data: Dataset) -> None:
    """DataError for samples of another shape, which are not brought to that of the data, or in other units."""
    mine, card = samples.card, data.card
    if mine.shape != card.shape:
        raise DataError(
            f"{mine.name}: samples of shape {tuple(mine.shape)}, the data have {tuple(card.shape)}; samples are scored as they are: bring "
            "the data to their shape (--size, --channels), and arrays to channels first, (N, C, ...)"
        )
    if mine.fields and card.fields and (apart := {*mine.fields.variables} ^ {*card.fields.variables}):
        raise DataError(f"{mine.name}: has other variables than the data ({', '.join(sorted(apart))} in one of the two only)")
    if mine.fields and card.fields:
        theirs = dict(zip(card.fields.names, card.fields.units, strict=True))
        for name, unit in zip(mine.fields.names, mine.fields.units, strict=True):
            if unit and theirs.get(name, unit) not in ("", unit):
                raise DataError(f"{mine.name}: {name} is in {unit}, the data's in {theirs[name]}; convert first")
    low, high = min(mine.low), max(mine.high)
    if (bins := card.bins) is None:
        if mine.bins is not None:
            raise DataError(
                f"{mine.name}: whole numbers from {low:g} to {high:g}, the data are continuous, from {min(card.low):g} to "
                f"{max(card.high):g}; give samples in the data's units, such as floats in an .npz"
            )
        return
    whole = mine.bins is not None or _whole(samples)
    if low < bins[0] or high > bins[1] or not whole:
        broken = "" if whole else ", not all of them whole"
        raise DataError(
            f"{mine.name}: values from {low:g} to {high:g}{broken}; the data are the whole numbers from {bins[0]:g} to {bins[1]:g}: give "
            "samples in these units, such as ddpm sample --format npz writes"
        )


def _whole(samples: Dataset) -> bool:
    """Whether all values are whole numbers."""
    parts = (samples.batch(rows.numpy())[0] for rows in torch.arange(len(samples)).split(1000))
    return all(bool((part == part.round()).all()) for part in parts)


def _named(values: Mapping[str, Any]) -> set[str]:
    """The settings that were given; of how a model draws each by its own name."""
    return {key for key in values if key != "how"} | set(values.get("how", {}))
