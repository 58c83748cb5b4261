"""What a report says: the scores of samples, the same scores of real data, and what of the model explains them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.data.dataset import Dataset, Rows, evenly
from ddpm.denoiser import Cond, NetworkDenoiser
from ddpm.errors import DataError
from ddpm.evaluation.extractors.extractor import Extractor, Raw, digest
from ddpm.evaluation.reference import Protocol, Reference, reference
from ddpm.evaluation.scoring import MOST, Scores, embedded, mixed, score
from ddpm.metrics import (
    Estimate,
    Frechet,
    Moments,
    channel_distances,
    energy_distance,
    scattered,
    sliced_wasserstein,
    spectrum_distance,
)
from ddpm.metrics.neighbours import nearest
from ddpm.random import generator
from ddpm.training.feed import asked_for
from ddpm.training.health.drift import drift, profile, reference_rows
from ddpm.training.held_out import gaussian_floors, held_out_loss
from ddpm.training.latents import diffused

FEWEST = 40  # samples: two in each of the Frechet distance's groups
PLAIN = 2000  # samples on each side of what is compared without features
NEIGHBOURS = 12  # samples whose nearest training data are shown


class Point(NamedTuple):
    """One point of a curve: what was varied, and the Frechet distance there."""

    at: float
    frechet: Estimate

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"at": self.at, **self.frechet._asdict()}


class Evaluator:
    """The data side of a report: made once, and asked for every set of samples.

    extractor: what makes vectors. statistics: mean and covariance from another tool, to which Frechet distances are, instead of to the
    training data.
    """

    def __init__(
        self, dataset: Dataset, extractor: Extractor, statistics: Moments | None = None, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self.dataset, self.extractor, self.statistics, self.say = dataset, extractor, statistics, say
        self.train: Reference = reference(dataset, "train", extractor, say)
        self.held: Reference | None = reference(dataset, "held out", extractor, say) if len(dataset.held_rows) >= FEWEST else None

    @property
    def against(self) -> Protocol:
        """What a Frechet distance depends on beside the samples."""
        if self.statistics is None:
            return self.train.protocol
        return self.train.protocol._replace(data=f"statistics {digest(self.statistics.mean, self.statistics.cov)}", rows="")

    def conditions(self, n: int, seed: int, keys: frozenset[str], device: torch.device) -> Cond:
        """Conditions of n samples: those of training rows, drawn for each sample by itself from the seed; None for none.

        Corrections and intervals are those of samples that do not depend on each other. With the classes dealt in the very shares of the
        data the correction, made of groups whose shares differ, is too large, and distances of good models come out below zero.
        """
        rows = self.dataset.train_rows
        return asked_for(self.dataset, rows[generator(seed, "order").integers(len(rows), size=n)], keys, device)

    def frechet(self, samples: Tensor) -> Estimate:
        """Its distance alone, for the points of a curve."""
        features = embedded(self.extractor, samples)
        metric = Frechet(features.shape[1])
        metric.update(features[mixed(len(features), len(features))])
        return metric.result(self.statistics or self.train.moments)

    def scores(self, samples: Tensor, features: Tensor | None = None) -> tuple[Scores, Tensor]:
        """Every score of samples in the data's own units, and their features, where these are not there yet."""
        if len(samples) < FEWEST:
            raise DataError(f"samples: got {len(samples)}; a score with an interval needs at least {FEWEST}")
        features = embedded(self.extractor, samples) if features is None else features
        logits = self.extractor.logits(features)
        found = score(features, self.train, logits=logits, held_out=self.held, alike=self._alike(len(samples)), theirs=self.statistics)
        found.estimates.update(self._plain(samples, self._alike(len(samples))))
        return found, features

    def _alike(self, n: int) -> int:
        """How many vectors on each side can be compared in both rows of a report on n samples."""
        return min(n, len(self.train.features), MOST, *([] if self.held is None else [len(self.unseen)]))

    @cached_property
    def unseen(self) -> Rows:
        """Places among the held-out rows of what real data are shown by: as if drawn one by one, each class by its share, until one has
        none left. All together have the classes in the very shares of the training data, as no model's samples do, and come out too near.
        """
        dataset, mixed = self.dataset, generator(0, "evaluate").permutation(len(self.dataset.held_rows))
        if "class" not in dataset.cond:
            return np.sort(mixed)
        classes = np.asarray(dataset.cond["class"])[dataset.held_rows[mixed]]
        ids, counts = np.unique(classes, return_counts=True)
        asked = generator(0, "evaluate", 1).choice(len(ids), len(mixed), p=counts / counts.sum())
        before = np.zeros(len(asked), dtype=np.int64)  # how often each one's class was asked for before it
        for number in range(len(ids)):
            before[asked == number] = np.arange((asked == number).sum())
        enough = np.flatnonzero(before >= counts[asked])
        end = int(enough[0]) if len(enough) else len(asked)
        if end < FEWEST:  # better too near than nothing
            return np.sort(mixed)
        places = [np.flatnonzero(classes == i) for i in ids]
        return np.sort(np.array([mixed[places[asked[i]][before[i]]] for i in range(end)], dtype=np.int64))

    def real(self, n: int) -> Scores | None:
        """The same scores of data the model has not seen, against its training data: what a perfect model would get. n: of samples.

        None where nothing, or too little, is held out.
        """
        if self.held is None:
            return None
        features = self.held.features[torch.from_numpy(self.unseen)]
        found = score(features, self.train, logits=self.extractor.logits(features), alike=self._alike(n), theirs=self.statistics)
        rows = evenly(self.dataset.held_rows[self.unseen], PLAIN)
        found.estimates.update(self._plain(torch.from_numpy(self.dataset.batch(rows)[0]), self._alike(n)))
        return found

    def _plain(self, samples: Tensor, alike: int) -> dict[str, Estimate]:
        """What needs no extractor: distances of the entries, values of the channels, spectra. At most `PLAIN` on each side; but for the
        energy distance, which has no bias, as many in both rows of a report, since these figures depend on the number.
        """
        rows = self.dataset.train_rows
        data = torch.from_numpy(self.dataset.batch(rows[mixed(len(rows), PLAIN).numpy()])[0])
        some = samples[mixed(len(samples), PLAIN)]
        raw, deviations = Raw(self.dataset.card, most=4096), np.asarray(self.dataset.card.std)
        usual = float(deviations.mean()) or 1.0
        unit = torch.from_numpy(np.where(deviations > 0, deviations, usual)).view(-1, *[1] * (samples.ndim - 2))

        def entries(some: Tensor) -> Tensor:
            return raw.embed(some / unit).double()

        def figures(one: Tensor, two: Tensor) -> dict[str, float]:
            found = {
                "sliced_wasserstein": sliced_wasserstein(entries(one), entries(two)),
                "channel_values": float(channel_distances(one, two).max()),
            }
            return found | ({"spectrum": float(spectrum_distance(one, two).max())} if one.ndim > 2 else {})

        return {"energy": energy_distance(entries(some), entries(data)), **scattered(figures, some[:alike], data[:alike])}

    def drift(self, samples: Tensor, classes: Tensor | None) -> dict[str, Any]:
        """Shift and spread of every channel against training data of the same classes, with what is certain and large in words."""
        rows = reference_rows(self.dataset, None if classes is None else classes.cpu().numpy())
        data, centre = profile(self.dataset.batch(rows)[0])
        found = drift(samples[:PLAIN].numpy(), data, centre)
        return {"values": found.values, "words": found.words}

    def losses(self, model: NetworkDenoiser, keys: frozenset[str], autocast: torch.dtype | None) -> dict[str, Any] | None:
        """Held-out |eps - eps_hat|^2 by log-SNR bin, beside what a Gaussian's denoiser would reach; None of a student that is no mean."""
        dataset = diffused(self.dataset, model)
        found = held_out_loss(model, dataset, keys, autocast=autocast) if model.meaning == "mean" else None
        if found is None:
            return None
        card = dataset.card
        assert model.codec is not None  # `held_out_loss` has seen to it
        variances = tuple((std / scale) ** 2 for std, scale in zip(card.std, model.codec.scale, strict=True))
        return {"mean": found.loss, "bins": found.bins, "gaussian": gaussian_floors(model.process, variances, found.t)}

    def neighbours(self, features: Tensor) -> tuple[list[int], list[int], list[int]]:
        """The samples nearest to a training row, evenly among all of them: numbers, their nearest training rows, and held-out rows."""
        distance, which = nearest(features, self.train.features)
        order = distance.argsort()
        half = NEIGHBOURS // 2
        step = max(1, (len(order) - half) // half)
        picked = order[:half].tolist() + order[half::step][:half].tolist()
        train = [int(self.dataset.train_rows[int(which[i])]) for i in picked]
        if self.held is None:
            return picked, train, []
        beside = nearest(features[picked], self.held.features)[1]
        return picked, train, [int(self.dataset.held_rows[int(i)]) for i in beside]
