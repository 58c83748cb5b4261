"""How `ddpm sample` comes to its sampler: what was typed, what `ddpm tune` found for the run, or a built-in choice for `--sampler auto`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm.config import Layer, Preset, Typed
from ddpm.config.field_info import plain
from ddpm.errors import ConfigError
from ddpm.process import Grid, LogSNR, Process
from ddpm.sampling import Multistep, steps_for

if TYPE_CHECKING:
    from ddpm.evaluation.drawing.guiding import Guiding
    from ddpm.evaluation.drawing.ready import How
    from ddpm.evaluation.drawing.starting import Starting

AUTO = Preset("auto", Multistep())
"""What `--sampler auto` takes where nothing was tuned: dpm++2m on a grid even in log-SNR, `AUTO_CALLS` calls.

Reference: steps even in log-SNR: Lu et al., 2022, arXiv:2206.00927, section 3.4. Measured on digits by benchmarks/nfe.py.
"""
AUTO_CALLS = 20


def asked_for_auto(layer: Layer) -> bool:
    """Whether `--sampler auto` was typed."""
    named = typed_of(layer).get("sampler", {}).get("name")
    return isinstance(named, Typed) and plain(str(named.value)) == plain(AUTO.name)


def typed_of(layer: Layer) -> Mapping[str, Any]:
    """What was typed of `How`."""
    return layer.values.get("how", {})


def guiding_key(guide: Guiding) -> dict[str, Any]:
    """What of the guidance a tuned entry depends on."""
    if not guide.active:
        return {"guidance": 1.0}
    key: dict[str, Any] = {"guidance": guide.guidance}
    key |= {"kind": guide.kind} if guide.kind != "cfg" else {}
    key |= {"autoguide": guide.autoguide} if guide.autoguide is not None else {}
    key |= {"interval": list(guide.guidance_interval)} if guide.guidance_interval is not None else {}
    return key | ({"rescale": guide.rescale} if guide.rescale else {})


def settle(config: How, start: Starting, layer: Layer, run: str, process: Process) -> tuple[How, str]:
    """The request with sampler, steps and grid decided, and a word for the last line on where they come from.

    `--sampler`, `--steps` and `--grid` win over sampling.json; without them, or with `--sampler auto`, the run's tuned sampler is taken
    where there is one for this guidance, these weights and this many calls. Raises ConfigError for an nfe below what the sampler needs.
    """
    auto = asked_for_auto(layer)
    open_to_tuned = (auto or "sampler" not in typed_of(layer)) and config.steps is None and config.grid is None and start.source is None
    if open_to_tuned:
        found = _tuned(config, run)
        if found is not None:
            return found, ", tuned for this model (sampling.json)"
    if auto:
        steps = config.steps or steps_for(config.sampler, config.nfe or _calls(start, process))
        grid = config.grid or even(process, steps)
        return replace(config, steps=steps, nfe=None, grid=grid), f", chosen by auto (ddpm tune {run} finds better for this model)"
    if config.nfe is not None:
        return replace(config, steps=steps_for(config.sampler, config.nfe), nfe=None), ""
    return config, ""


def _tuned(config: How, run: str) -> How | None:
    if not any((folder / "sampling.json").is_file() for folder in (Path(run), Path(run).resolve().parent)):
        return None  # spares reading the evaluation room
    from ddpm.evaluation import load_tuned

    def notice(line: str) -> None:
        print(f"ddpm sample: {line}", file=sys.stderr)

    key = guiding_key(config.guide)
    tuned = load_tuned(run, config.nfe, guiding=key, weights=config.weights, step=config.step, notice=notice)
    if tuned is None:
        return None
    guide = config.guide if tuned.interval is None else replace(config.guide, guidance_interval=tuned.interval)
    return replace(config, sampler=tuned.sampler, steps=tuned.steps, grid=tuned.grid, nfe=None, guide=guide)


def _calls(start: Starting, process: Process) -> int:
    length = start.knots(process.schedule.T)
    return min(AUTO_CALLS, length or AUTO_CALLS)


def even(process: Process, steps: int) -> Grid | None:
    """Even in log-SNR; the schedule's usual grid where those instants fall together on a short chain."""
    try:
        LogSNR().times(process, steps)
    except ConfigError:
        return None
    return LogSNR()
