"""Checks made before the first step: is there enough data, and does it fit the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ddpm.errors import DataError

if TYPE_CHECKING:
    from ddpm.data.dataset import Dataset
    from ddpm.denoiser.card import Card


LARGE, FEW = 10.0, 64  # of a condition image: what its root mean square cannot be, and samples that are looked at


def require(dataset: Dataset, batch: int) -> None:
    """Raises DataError unless a batch of this many different training samples can be dealt."""
    rows = len(dataset.train_rows)
    if rows < batch:
        held = len(dataset.held_rows)
        raise DataError(
            f"{dataset.card.name}: {rows} training samples ({held} more are held out), fewer than one batch of {batch}; "
            f"use a batch of at most {rows}, hold out less, or add data"
        )


def check_fits(card: Card, model: Card) -> None:
    """Raises DataError where data cannot go into a model trained on others: shape, channels, levels, classes or conditions disagree.

    The message names each quantity once, as "model expects ..., data have ...".
    """
    wrong: list[str] = []
    if card.shape[0] != model.shape[0]:
        hint = {(1, 3): " (use --channels rgb)", (3, 1): " (use --channels grey)"}.get((card.shape[0], model.shape[0]), "")
        wrong.append(f"channels: model expects {model.shape[0]}, data have {card.shape[0]}{hint}")
    if card.shape[1:] != model.shape[1:]:
        wrong.append(f"size: model expects {_sides(model)}, data have {_sides(card)}" + (" (use --size)" if card.kind == "image" else ""))
    if card.bins != model.bins:
        wrong.append(f"levels: model expects {_levels(model)}, data have {_levels(card)}")
    if len(card.classes) > len(model.classes) > 0:
        last, allowed = len(card.classes) - 1, len(model.classes)
        wrong.append(f"classes: model has {allowed} (0-{allowed - 1}), data have {last + 1} (0-{last})")
    elif model.classes and not card.classes:
        wrong.append(f"classes: model expects {len(model.classes)}, data have no labels")
    elif card.classes and card.classes != model.classes[: len(card.classes)] and model.classes:
        wrong.append(f"classes: model expects {_first(model.classes)}, data have {_first(card.classes)}: other names or another order")
    if len(card.vector) != len(model.vector):
        wrong.append(f"vector condition: model expects {len(model.vector)} numbers, data have {len(card.vector)}")
    if card.image_channels != model.image_channels:
        wrong.append(f"image condition: model expects {model.image_channels} channels, data have {card.image_channels}")
    if card.mask_channels != model.mask_channels:
        wrong.append(f"mask: model expects {model.mask_channels} channels, data have {card.mask_channels}")
    if wrong:
        raise DataError(f"{card.name} does not fit the model (trained on {model.name}):\n  " + "\n  ".join(wrong))


def _sides(card: Card) -> str:
    return "x".join(str(side) for side in card.shape[1:]) or "a table"


def _levels(card: Card) -> str:
    return "continuous values" if card.bins is None else f"{card.bins[0]:g}..{card.bins[1]:g}"


def _first(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def check_image(dataset: Dataset) -> None:
    """A condition image is laid beside noisy samples of about -1 to 1 as it is: DataError for other axes than theirs, and where its root
    mean square over up to 64 samples is above 10.
    """
    from ddpm.data.dataset import evenly

    card, image = dataset.card, dataset.cond.get("image")
    if image is None or card.fields is not None:
        return
    if tuple(image.shape[2:]) != tuple(card.shape[1:]):
        sides, ours = (" x ".join(map(str, shape)) for shape in (image.shape[2:], card.shape[1:]))
        raise DataError(f"{card.name}: the condition 'image' is {sides}, the samples are {ours}; bring it to their size, channels second")
    some = np.asarray(image[evenly(np.arange(len(image)), FEW)], dtype=np.float64)
    size = float(np.sqrt(np.mean(some**2)))
    if size > LARGE:
        advice = "pictures of bytes: x / 127.5 - 1; labels: a channel of 0 and 1 for each; else (x - mean) / deviation"
        raise DataError(f"{card.name}: the condition 'image' is {size:.3g} in root mean square; bring it to about -1 to 1 ({advice})")
