"""What distillation makes of a denoiser: it no longer says where the data are on average, and it may know certain instants only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ddpm.config import check, setting


@dataclass(frozen=True, kw_only=True)
class Student:
    """How a distilled denoiser is to be read, and walked.

    meaning: "mean": x0 is E[x0 | x_t], as of any denoiser; "step": x0 and eps are those whose deterministic step (`Process.implicit`) from
    one of `times` to the next lands where the teacher does; "map": x0 is where the teacher's trajectory through x_t ends. times: the
    instants it was trained at, falling; empty: all.
    """

    method: str = setting("", "how it was distilled")
    meaning: Literal["mean", "step", "map"] = setting("map", "what its prediction of x0 stands for")
    times: tuple[float, ...] = setting((), "instants it was trained at, falling; empty: all")
    guidance: float = setting(1.0, "largest scale of guidance it was told in training; 1: none", low=1.0)

    def __post_init__(self) -> None:
        falls = all(a > b for a, b in zip(self.times, self.times[1:], strict=False)) and all(0.0 < t <= 1.0 for t in self.times)
        lost = self.meaning == "step" and not self.times
        check(self, [f"times: got {self.times}, must fall strictly within (0, 1]{' and not be empty' * lost}"] if lost or not falls else [])


def refusal(meaning: str, *, walk: bool = False) -> str:
    """Why a denoiser of this meaning cannot be guided, scored or, with `walk`, walked as one of meaning "mean", and the way out."""
    why, ways = {
        "step": ("was distilled to jump from each of its own instants to the next, no mean", "DDIM with eta 0 and its steps, or "),
        "map": ("predicts where a trajectory ends, not a mean", "the Consistency sampler, or "),
    }[meaning]
    return f"this model {why}; use {ways if walk else ''}the teacher it was distilled from"
