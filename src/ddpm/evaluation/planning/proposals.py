"""What to train with, from what is known of data and machine: rules of thumb, each with its reason."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

from ddpm.config import to_dict
from ddpm.denoiser import Card
from ddpm.networks.config import MLPConfig, UNetConfig
from ddpm.training.build import default_network

FEW, MANY = 5_000, 20_000  # pictures; training samples, not counting those held out
PASSES = 1_000  # through the data, at most: beyond it small sets are learned by heart
MEMORY_SHARE = 0.8  # of what is free that a run may be planned to take
SLACK = 1.5  # work space beside the activations that are kept for the backward pass
INTERVAL = 600.0  # seconds of work a lost machine may cost


class Choice(NamedTuple):
    """One setting: its name, the value, why, and whether the plan chose it (else it was said before)."""

    name: str
    value: Any
    why: str
    ours: bool = True


def rounded(number: float) -> int:
    """The nearest of 1, 2, 5, 10, 20, 50, ... on a logarithmic scale."""
    power = 10 ** math.floor(math.log10(max(number, 1.0)))
    return min((step * power for step in (1, 2, 5, 10)), key=lambda value: abs(math.log(value / max(number, 1.0))))


def network(card: Card, device: str) -> Choice:
    """Width by the number of samples and by whether there is an accelerator; levels and attention are those of `default_network`."""
    train, usual = card.count - card.held_out, default_network(card.shape, card.fields is not None)
    if isinstance(usual, MLPConfig):
        width = 128 if train < 1_000 else 512 if train > 100_000 else usual.width
        return Choice("network", replace(usual, width=width), f"{train:,} rows of {card.shape[0]} numbers")
    assert isinstance(usual, UNetConfig)
    if device == "cpu":
        channels, why = (32, "narrow: there is no accelerator") if train < MANY else (64, "there is no accelerator")
    else:
        channels, why = (64, "enough for so few") if train < MANY else (128, "Ho's width for as many pictures")
    blocks = 1 if device == "cpu" and train < FEW else usual.blocks
    return Choice("network", replace(usual, channels=channels, blocks=blocks), f"{train:,} samples {card.shape}; {why}")


def batch(card: Card) -> Choice:
    """128 as Ho et al., less where the data are few."""
    train = card.count - card.held_out
    size = 2 ** max(2, min(7, int(math.log2(max(1, train // 8)))))
    return Choice("batch", size, "as Ho et al." if size == 128 else "a pass through the data is at least eight different steps")


def fitting(size: int, accumulate: int, fixed: int, per_sample: int, free: int | None) -> tuple[int, int]:
    """(batch, accumulate) with the same product, halved and doubled until a step fits in `MEMORY_SHARE` of `free` bytes."""
    while free is not None and size > 1 and size % 2 == 0 and fixed + SLACK * size * per_sample > MEMORY_SHARE * free:
        size, accumulate = size // 2, accumulate * 2
    return size, accumulate


def steps(card: Card, samples_a_step: int) -> Choice:
    """By the size of a sample; never more than `PASSES` through the data.

    What a model needs to learn hardly depends on how many samples there are, but the step at which it starts to learn them by heart is in
    proportion to their number.

    Reference: Bonnaire et al., 2025, arXiv:2505.17638.
    """
    entries, train = math.prod(card.shape), card.count - card.held_out
    if len(card.shape) == 1:
        wanted = 5_000 if train < 10_000 else 20_000
    else:
        wanted = 5_000 if entries <= 256 else 50_000 if entries <= 4096 else 200_000
    most = max(500, PASSES * train // samples_a_step)
    count = rounded(min(wanted, most))
    why = f"{PASSES:,} passes through so few samples are enough" if most < wanted else f"samples of {entries:,} numbers"
    return Choice("steps", count, why)


def ema(steps: int) -> Choice:
    """The width of the weight average, as a share of the run."""
    if steps < 5_000:
        return Choice("ema", 0.1, "a short run: a wider average still spans few steps")
    return Choice("ema", 0.05, "the usual share of the run")


def checkpoint_every(steps: int, step_seconds: float) -> Choice:
    """So often that a lost machine costs about `INTERVAL` seconds of work."""
    every = min(steps, rounded(INTERVAL / max(step_seconds, 1e-6)), max(1, rounded(steps / 4)))
    return Choice("checkpoint_every", every, f"a lost machine costs {every * step_seconds / 60.0:.2g} min of work at most")


def warnings(card: Card, steps: int, samples_a_step: int) -> list[str]:
    """What a person should know of these data before training."""
    train = max(1, card.count - card.held_out)
    passes, out = steps * samples_a_step / train, list[str]()
    if passes > PASSES or (train < FEW and passes > PASSES / 5):
        out.append(
            f"each sample is seen {passes:,.0f} times: models of few data learn them by heart. Watch held_out_loss in metrics.jsonl: "
            "where it rises, stop there; more data, mirroring (--flip) where it makes sense, or fewer steps help"
        )
    if card.duplicates > train // 100:
        out.append(f"{card.duplicates:,} samples repeat an earlier one: repeated samples are the first to be learned by heart")
    if not card.held_out:
        out.append("nothing is held out, so nobody will see the model learn its samples by heart; give --holdout")
    return out


def layer_of(choices: list[Choice]) -> dict[str, Any]:
    """The choices that are the plan's own, as a layer of settings."""
    plain = {choice.name: choice.value for choice in choices if choice.ours}
    return {key: to_dict(value, named=True) if key == "network" else value for key, value in plain.items()}
