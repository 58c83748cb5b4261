"""What the speed benchmarks share: contestants run in turns, medians, ratios round by round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch

Action = Callable[[], object]
Seconds = dict[str, list[float]]


def lowered(precision: str) -> AbstractContextManager[object]:
    """Autocast on the CPU to bfloat16, or none."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def interleaved(actions: Mapping[str, Action], rounds: int) -> Seconds:
    """Seconds of each action in each round, A B C, then C B A, ...; one round of warm-up is not counted."""
    seconds: Seconds = {name: [] for name in actions}
    for number in range(rounds + 1):
        order = list(actions.items())
        for name, action in order if number % 2 else reversed(order):
            began = time.perf_counter()
            action()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(seconds: Seconds, over: str, under: str) -> float:
    """The median over rounds of how many times longer `over` took than `under`."""
    return round(statistics.median(a / b for a, b in zip(seconds[over], seconds[under], strict=True)), 3)


class Part(NamedTuple):
    """What one comparison found: seconds of each contestant and round, images a round, a note on each, and the ratios for the JSON line."""

    title: str
    seconds: Seconds
    images: int
    notes: Mapping[str, str]
    ratios: Mapping[str, float]

    def rate(self, name: str) -> float:
        """Images a second of a contestant, by its median round."""
        return self.images / statistics.median(self.seconds[name])

    def print(self) -> None:
        """Each contestant's median, its spread over the rounds and its images a second."""
        print(f"\n{self.title}")
        for name, values in self.seconds.items():
            spread = f"({min(values):.3f} to {max(values):.3f})"
            print(
                f"  {name:34s} {statistics.median(values):8.4f} s {spread:20s} {self.rate(name):9.2f} images/s  {self.notes.get(name, '')}"
            )
