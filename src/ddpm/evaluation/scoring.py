"""Every score of a set of samples, beside the same scores of real data that the model has not seen: the floor."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpm.errors import DataError
from ddpm.evaluation.extractors.extractor import Extractor
from ddpm.evaluation.reference import Reference
from ddpm.metrics import Estimate, Frechet, Memorisation, Moments, inception_score, kernel_distance, manifold, memorisation, scattered
from ddpm.metrics.frechet import FEW
from ddpm.metrics.inception import SPLITS
from ddpm.metrics.neighbours import SHARES
from ddpm.random import generator

NEIGHBOURS = 5
MOST = 10_000  # vectors on each side of what compares all pairs
LARGE = 10  # samples a feature, below which the correction for their number is told


class Scores(NamedTuple):
    """Scores with intervals, by name, and what a reader must be told."""

    estimates: dict[str, Estimate]
    copies: Memorisation | None
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            **{name: one._asdict() for name, one in self.estimates.items()},
            **({} if self.copies is None else {"memorisation": self.copies._asdict()}),
            "warnings": self.warnings,
        }


def score(
    features: Tensor,
    against: Reference,
    *,
    logits: Tensor | None = None,
    held_out: Reference | None = None,
    alike: int = MOST,
    theirs: Moments | None = None,
) -> Scores:
    """Of feature vectors (N, D) of samples against a reference.

    theirs: mean and covariance by another tool, to which the Frechet distance is, instead of to the reference; all else is to that.
    held_out: features of data the model has not seen, for memorisation of the reference, which is then of training data. alike: vectors on
    each side of what depends on their number, so that two calls compare. DataError for vectors that are not finite, or too few.
    """
    count, dim = features.shape
    order = mixed(count, count)  # samples may come sorted by class, or with the classes in turn
    features, logits = features[order], None if logits is None else logits[order]
    metric = Frechet(dim)
    metric.update(features)
    moments = theirs or against.moments
    if dim != len(moments.mean):
        raise DataError(f"features: got vectors of {dim} numbers, the reference has {len(moments.mean)}; use one extractor for both")
    estimates = {"frechet": metric.result(moments)}
    warnings: list[str] = []
    if theirs is None and len(against.features) < FEW * dim:
        warnings.append(
            f"{len(against.features)} data for vectors of {dim} numbers: their covariance is badly known, and counts as exact in the "
            "Frechet distance; compare only with distances to the same data"
        )
    if math.isnan(estimates["frechet"].low):
        warnings.append(
            f"{count} samples for vectors of {dim} numbers are too few to tell by how much the Frechet distance comes out too large: it is "
            f"uncorrected and has no interval; use {FEW * dim} or more"
        )
    elif count < LARGE * dim:
        gap = estimates["frechet"].raw - estimates["frechet"].value
        warnings.append(
            f"{count} samples for vectors of {dim} numbers: uncorrected, the Frechet distance would come out {gap:.3g} too large; "
            "published figures are uncorrected, and compare with the uncorrected one of as many samples only"
        )
    copies = None
    some, mine = against.features[mixed(len(against.features), MOST)], features[:MOST]
    estimates["kernel"] = kernel_distance(mine, some)
    pairs = mine[:alike], some[:alike]
    if len(pairs[0]) < FEW * dim:
        matched = Frechet(dim)
        matched.update(pairs[0])
        estimates["frechet_alike"] = matched.uncorrected(moments)
    k = min(NEIGHBOURS, len(mine) - 1, len(some) - 1, alike - 1)
    estimates |= scattered(lambda x, y: manifold(x, y, k)._asdict(), *pairs, SHARES)
    if held_out is not None:
        against.protocol._replace(rows=held_out.protocol.rows).check(held_out.protocol)
        copies = _copies(mine, against.features, held_out.features, warnings)
    if logits is not None and len(logits) >= 2 * SPLITS:
        estimates["inception_score"] = inception_score(logits)
    return Scores(estimates, copies, warnings)


def _copies(samples: Tensor, train: Tensor, held_out: Tensor, warnings: list[str]) -> Memorisation | None:
    """What the test for copies says; None, and why, where too little is held out."""
    try:
        found = memorisation(samples, train, held_out)
    except DataError as error:
        warnings.append(f"memory: {error}")
        return None
    if found.leaks:
        warnings.append(f"memory: {found.leaks} held-out samples are training samples too; the test for copies leaves them out")
    if found.found:
        warnings.append(
            f"memory: {100 * found.copies:.1f} % of the samples are nearer to training data, beside how near they are to unseen "
            f"data, than hardly any unseen data are ({100 * found.chance:.2g} % by chance); the model copies"
        )
    return found


def mixed(count: int, most: int) -> Tensor:
    """At most so many of `count` numbers, in an order drawn once for all: groups of them, and some of them, stand for all, whatever order
    things come in.
    """
    return torch.from_numpy(generator(0, "evaluate", count).permutation(count)[:most])


def embedded(extractor: Extractor, samples: Tensor) -> Tensor:
    """Features of samples in the data's own units; DataError where some are not finite, with how many."""
    bad = int((~samples.flatten(1).isfinite()).any(1).sum()) if samples.is_floating_point() else 0
    if bad:
        raise DataError(f"samples: {bad} of {len(samples)} are not finite; nothing was scored. Other clipping or more steps may help")
    return extractor.features(samples)
