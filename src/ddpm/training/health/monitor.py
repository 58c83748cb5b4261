"""What is watched at each evaluation beside the held-out loss: every noise level by itself, its loss against what a Gaussian reaches and
its share of the gradient. Watching changes nothing: no generator is moved, no gradient or buffer is left behind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddpm.data.dataset import Dataset
from ddpm.denoiser import Cond, Denoiser, NetworkDenoiser, Prediction
from ddpm.objective import Draws, Loss
from ddpm.process import At
from ddpm.training.distributed.world import World
from ddpm.training.feed import Feed, conditions, encoded
from ddpm.training.health.condition_use import DEAF, ConditionUse
from ddpm.training.health.drift import Profile, drift, profile, reference_rows
from ddpm.training.held_out import binned

ROWS = 16  # samples a bin's gradient is taken over
PLACES = 1024  # uniforms among which those that fall into a bin are looked for
ABOVE = 1.1  # times the Gaussian's loss
CHANGE = 1e3  # a gradient's norm against its median so far


class Probe(Denoiser):
    """A denoiser that costs nothing and notes at which log-SNR it was asked first, (B,); its predictions are zeros."""

    def __init__(self, denoiser: NetworkDenoiser) -> None:
        super().__init__()
        self.process, self.parameterization, self.codec = denoiser.process, denoiser.parameterization, denoiser.codec
        self.shape, self.classes = denoiser.shape, denoiser.classes
        self.log_snr: Tensor | None = None

    def forward(self, x: Tensor, at: At, cond: Cond = None) -> Prediction:
        """Zeros, and the middle of the variances."""
        if self.log_snr is None:
            self.log_snr = at.log_snr.to(torch.float64).reshape(-1).expand(len(x)).cpu()
        return Prediction(torch.zeros_like(x), torch.zeros_like(x), torch.full_like(x, 0.5))

    def residual(self, at: At) -> Tensor:
        """Ones."""
        return torch.ones_like(at.t)


def located(loss: Loss, denoiser: NetworkDenoiser, feed: Feed, u: Tensor) -> Tensor:
    """The log-SNRs (B,) at which a loss looks when its uniforms are u (B,), however it turns one into the other."""
    probe = Probe(denoiser)
    x0 = torch.zeros(len(u), denoiser.shape[0], *[1] * (len(denoiser.shape) - 1), device=feed.device)
    loss(probe, x0, None, feed.draws(0, 0, x0)._replace(u=u))
    assert probe.log_snr is not None
    return probe.log_snr


def bin_gradients(
    denoiser: NetworkDenoiser,
    loss: Loss,
    feed: Feed,
    parameters: Sequence[nn.Parameter],
    autocast: torch.dtype | None = None,
    world: World | None = None,
) -> dict[str, float]:
    """Norm of the gradient of the mean training loss over the instants of each log-SNR bin; the same 16 training samples (fewer where a
    batch has fewer) and the same noise in every bin and at every call.

    In evaluation mode, so without dropout. Each rank takes its share of the bins. `.grad` is neither read nor written; parameters must not
    be sharded.
    """
    world = world or World()
    autocast = None if autocast == torch.float16 else autocast  # without a scaler small gradients would be 0 in it
    loss.eval()
    denoiser.eval()
    u = (torch.arange(PLACES, dtype=torch.float64) + 0.5) / PLACES
    with torch.no_grad():
        where = binned(located(loss, denoiser, feed, u))
    rows = min(ROWS, feed.share(0)[1], len(feed.dataset.train_rows))
    chosen = feed.dataset.train_rows[np.linspace(0, len(feed.dataset.train_rows) - 1, rows).astype(np.int64)]
    raw, values = feed.dataset.batch(chosen)
    x0, cond = encoded(denoiser.codec, raw, feed.device, values.get("mask")), conditions(values, feed.keys, feed.device) or None
    draws = feed.draws(0, 0, x0)
    norms = torch.zeros(len(where), dtype=torch.float64)
    for k in world.mine(len(where)):
        name, inside = list(where.items())[k]
        places = inside.nonzero().flatten()
        picked = u[places[torch.linspace(0, len(places) - 1, rows).long()]]
        with torch.no_grad():
            together = binned(located(loss, denoiser, feed, picked)).keys() == {name}
        size = rows if together else 1  # times that are spread over a batch stay where they are in a batch of one
        with torch.autocast(feed.device.type, autocast, enabled=autocast is not None):
            parts = [_part(x0, cond, draws._replace(u=picked), slice(i, i + size)) for i in range(0, rows, size)]
            losses = torch.cat([loss(denoiser, *part) for part in parts])
        norms[k] = _norm(torch.autograd.grad(losses.mean(), list(parameters), allow_unused=True))
    return dict(zip(where, world.sum(norms).tolist(), strict=True))


def _part(x0: Tensor, cond: dict[str, Tensor] | None, draws: Draws, rows: slice) -> tuple[Tensor, dict[str, Tensor] | None, Draws]:
    """Some rows of a batch."""
    return x0[rows], {key: value[rows] for key, value in cond.items()} if cond else None, Draws(*(value[rows] for value in draws))


def _norm(gradients: Sequence[Tensor | None]) -> Tensor:
    squares = [gradient.double().square().sum() for gradient in gradients if gradient is not None]
    return torch.stack(squares).sum().sqrt().cpu() if squares else torch.zeros((), dtype=torch.float64)


class Monitor:
    """Turns what was measured into words, a line a run for each kind of trouble, once a run has had time to learn.

    settled: the step from which a model is expected to be better than a Gaussian, and its samples to have the data's colours.
    """

    def __init__(self, settled: int) -> None:
        self.settled = settled
        self.told: set[str] = set()
        self.norms: dict[str, list[float]] = {}
        self.references: dict[int, tuple[Profile, NDArray[np.float64]]] = {}

    def once(self, kind: str, line: str) -> list[str]:
        """The line where this kind of trouble has not been told yet."""
        fresh = kind not in self.told
        self.told.add(kind)
        return [line] if fresh else []

    def losses(self, step: int, measured: Mapping[str, float], floors: Mapping[str, float]) -> list[str]:
        """Which bins are worse than a Gaussian of the data's variances."""
        worse = {name: value / floors[name] for name, value in measured.items() if value > ABOVE * floors[name]}
        if step < self.settled or not worse:
            return []
        bins = ", ".join(f"{ratio:.2f} times at log_snr {name}" for name, ratio in worse.items())
        return self.once(
            "floor",
            f"step {step}: the held-out loss is above what a Gaussian with the data's means and variances reaches: {bins}. The model has "
            "not learned these noise levels (train longer, or let the loss weigh them more: --loss.weighting), or has learned its training "
            "samples by heart, which the loss while training then hides (more data, fewer steps, or dropout: --network.dropout)",
        )

    def condition_used(self, step: int, found: ConditionUse | None) -> list[str]:
        """Which of the things a model is told make no difference."""
        if found is None or step < self.settled:
            return []
        said = {f"condition {key}": found.words(key) for key in found.ignored}
        said |= {"deaf": DEAF} if found.deaf else {}
        return [line for kind, words in said.items() for line in self.once(kind, f"step {step}: {words}")]

    def samples(self, step: int, drawn: NDArray[np.generic], dataset: Dataset, classes: int = 0) -> tuple[dict[str, float], list[str]]:
        """How far samples (N, C, ...) are from the data, for the log and in words; classes: they are of so many classes in turn."""
        kind = len(drawn) if classes else 0  # samples of classes in turn are compared with data of the same
        if kind not in self.references:
            rows = reference_rows(dataset, np.arange(len(drawn)) % classes if classes else None)
            self.references[kind] = profile(dataset.batch(rows)[0])
        found, lines = drift(drawn, *self.references[kind]), list[str]()
        for name, text in found.words.items() if step >= self.settled else ():
            lines += self.once(f"drift {name}", f"step {step}: {len(drawn)} samples drawn now against the data: {text}")
        return found.values, lines

    def gradients(self, step: int, norms: Mapping[str, float]) -> list[str]:
        """Which bins' gradients vanished or exploded, against their own past."""
        lines: list[str] = []
        for name, norm in norms.items():
            past = self.norms.setdefault(name, [])
            usual = median(past) if len(past) >= 3 else norm
            if math.isfinite(norm):
                past.append(norm)
            if norm == 0.0 or norm * CHANGE < usual:
                lines += self.once(
                    "vanished",
                    f"step {step}: the gradient at log_snr {name} has vanished (norm {norm:.3g}, usual {usual:.3g}); "
                    "nothing is learned there",
                )
            elif not norm <= CHANGE * usual:
                lines += self.once(
                    "exploded",
                    f"step {step}: the gradient at log_snr {name} has exploded (norm {norm:.3g}, usual {usual:.3g}); "
                    "a smaller --lr may help",
                )
        return lines
