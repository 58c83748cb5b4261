"""Which data `ddpm likelihood` and `ddpm evaluate` score, and under which condition."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm.errors import DataError

if TYPE_CHECKING:
    import torch

    from ddpm.data import Dataset
    from ddpm.denoiser import NetworkDenoiser


def card_of(run: str) -> Any:
    """The data card the run folder holds, or None."""
    import json

    from ddpm.config import from_dict
    from ddpm.denoiser import Card

    folder = Path(run)
    path = (folder.resolve().parent if (folder / "manifest.json").is_file() else folder) / "data_card.json"
    return from_dict(Card, json.loads(path.read_text(encoding="utf-8")), where=str(path)) if path.is_file() else None


def rows_to_score(dataset: Dataset, run: str, model: NetworkDenoiser, named: bool, n: int | None, seed: int) -> tuple[Any, str]:
    """Which rows, and what they are: the held-out ones of the run's own data, all of other data; n of them drawn by the seed, none: all.

    DataError where the run's own are not there and no others are named.
    """
    import numpy as np

    from ddpm.random import generator
    from ddpm.training.latents import card_fingerprint

    before = card_of(run)
    own = before is not None and before.fingerprint == card_fingerprint(dataset, model)
    if not own and not named:
        raise DataError(
            f"{dataset.card.name}: not the data this run was trained on, which were perhaps given in Python; name what to score with --data"
        )
    rows, kind = np.arange(len(dataset)), "of the run's own, most of them trained on," if own else ""
    if own and before is not None and before.held_out == dataset.card.held_out > 0:  # which, with the data, decides the split
        rows, kind = dataset.held_rows, "held out,"
    if n is not None and n < len(rows):
        rows = np.sort(generator(seed, "order").choice(rows, n, replace=False))
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
    if asked and "tokens" in values and "tokens" in model.conditions:
        given.append("tokens")
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
    words = {
        "class": "classes",
        "vector": "vectors",
        "image": "images",
        "tokens": "captions" if model.text and model.text.kind != "picture" else "pictures",
    }
    return cond or None, "given their " + " and ".join(words[key] for key in given) if given else "unconditional"
