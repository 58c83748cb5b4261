"""The curves of a report: what the distance of samples to data depends on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ddpm.config import Layer
from ddpm.errors import ConfigError, DataError
from ddpm.evaluation.drawing.kept import UNFINISHED
from ddpm.evaluation.drawing.ready import Ready, draw, ready
from ddpm.evaluation.report.content import Evaluator, Point
from ddpm.evaluation.settings import EvaluateConfig
from ddpm.sampling import steps_for
from ddpm.training.averaging.weights import tracked
from ddpm.training.build import labelled
from ddpm.training.checkpoints.storage import replace_text
from ddpm.training.state import open_run

Say = Callable[[str], None]


class Points:
    """The points of the curves, kept beside the unfinished samples as they are found. about: what they depend on and samples do not."""

    def __init__(self, folder: Path, about: str) -> None:
        self.path, self.about = folder / UNFINISHED / "points.json", about
        self.known: dict[str, Any] = json.loads(self.path.read_text("utf-8")) if self.path.is_file() else {}

    def get(self, kind: str, at: float, find: Callable[[], Point]) -> dict[str, Any]:
        """A point, found now unless it is known."""
        key = f"{self.about} {kind} {at!r}"
        if key not in self.known:
            self.known[key] = find().to_dict()
            replace_text(self.path, json.dumps(self.known))
        return self.known[key]


def variants(
    config: EvaluateConfig, run: str, typed: Layer, base: Ready, lengths: list[float], say: Say
) -> Iterator[tuple[str, float, Callable[[], Ready]]]:
    """Every point of the curves: kind, place, and the model made ready for it."""
    how, chain = replace(base.how, step=base.document["step"]), base.model.process.schedule.T

    def changed(**fields: Any) -> Callable[[], Ready]:
        return lambda: ready(run, replace(how, **fields), typed)

    for calls in config.nfe_curve if not base.model.times else ():
        if chain is None or calls <= chain:
            try:
                yield "nfe", float(calls), changed(steps=steps_for(how.sampler, calls), nfe=None, grid=None)
            except ConfigError as error:
                say(f"no point at {calls} calls: {error}")
    able = labelled(base.document) and base.document["cond_dropout"] > 0
    if able and how.guide.kind == "cfg" and (base.model.meaning == "mean" or base.model.guided):
        for scale in config.guidance_curve:
            yield "guidance", scale, changed(guide=replace(how.guide, guidance=scale), steps=base.steps, nfe=None)
    for length in lengths:
        yield "ema", length, changed(weights=f"ema-{length:.3f}", steps=base.steps, nfe=None)


def sweeps(
    config: EvaluateConfig, run: str, typed: Layer, base: Ready, evaluator: Evaluator, points: Points, say: Say
) -> dict[str, list[Any]]:
    """The curves: each point's distance, of fewer samples than the report's."""
    found: dict[str, list[Any]] = {}
    if not config.sweep:
        return found
    device = base.machine.device
    lengths = sorted(float(name.removeprefix("ema-")) for name in tracked(open_run(run, base.document["step"])))
    for kind, at, make in variants(config, run, typed, base, lengths, say):

        def find(make: Callable[[], Ready] = make, at: float = at) -> Point:
            drawing = make()
            cond = evaluator.conditions(config.sweep, config.seed, drawing.model.conditions, device)
            return Point(at, evaluator.frechet(draw(drawing, config.seed, config.sweep, cond)))

        try:
            found.setdefault(kind, []).append(points.get(kind, at, find))
        except (ConfigError, DataError) as error:
            say(f"no point at {kind} {at:g}: {error}")
    return found
