"""`ddpm forecast`: ensembles of the fields to come, from a model trained with `--past`."""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm.config import Parser, add_flags, flags_layer, resolve, setting
from ddpm.errors import ConfigError
from ddpm.evaluation.drawing.ready import FAMILIES, How, ready, shown

if TYPE_CHECKING:
    import torch

    from ddpm.denoiser.fields import Fields

HELP = """Forecast fields: from the last fields before each start, an ensemble of those that may come.

  ddpm forecast runs/t2m --data march.grib --start last                  what comes after the file's last field
  ddpm forecast runs/t2m --data march.grib --start 2019-03-28T06 --members 50 --out forecast.nc
  ddpm forecast runs/t2m --data march.grib --start held-out --score      every 6 hours of the time training held out, and how good they are

The file has the variables, units and grid the model was trained on. docs/forecast.md says more.
"""


@dataclass(frozen=True, kw_only=True)
class ForecastConfig:
    """What is forecast, how, and where it goes."""

    data: str = setting(help="the fields up to the start: .nc, .zarr or .grib", group="what")
    start: tuple[str, ...] = setting(
        ("last",), "times of the file such as 2019-03-28T06, last, or held-out: all that training held out", group="what"
    )
    every: float = setting(6.0, "of held-out: hours between two starts", above=0.0, group="what")
    leads: tuple[float, ...] | None = setting(None, "hours ahead, of those the model knows; none: all of them", above=0.0, group="what")
    members: int = setting(50, "members of each ensemble", low=1, high=100_000, group="what")
    inflate: tuple[float, ...] = setting(
        (1.0,), "times ensembles are made wider, one number for all leads or one each; docs/forecast.md says which", above=0.0, group="what"
    )
    seed: int = setting(0, "sample i depends on (seed, i) alone", low=0, high=2**63 - 1, group="what")
    how: How = setting(How(), "", flat=True)
    out: str | None = setting(None, "file, .nc or .zarr; none: forecasts/ in the run folder", group="output")
    score: bool = setting(
        False, "say how good they are, beside persistence, climatology and the expected field, where the file has what came", group="output"
    )


def add(parser: Parser) -> None:
    """The command's arguments."""
    parser.add_argument("run_folder", metavar="RUN", help="run folder, or one of its step folders")
    add_flags(parser, ForecastConfig, FAMILIES)


def described(document: object, run: str) -> Fields:
    """What config.json says of the fields; ConfigError for a model that makes no forecasts."""
    from ddpm.config import from_dict
    from ddpm.denoiser.fields import Fields

    about = document.get("fields") if isinstance(document, dict) else None
    if about is None or not about.get("past"):
        raise ConfigError(f"{run}: this model makes no forecasts; train one with ddpm train --recipe forecast --data FILE")
    return from_dict(Fields, about, where="config.json")


def _usual(run: str, seed: int) -> Path:
    """forecasts/seed-0.nc in the run folder, or the next name that is free; never inside a checkpoint."""
    folder = Path(run)
    home = folder.resolve().parent if (folder / "manifest.json").is_file() else folder
    first, number = home / "forecasts" / f"seed-{seed}.nc", 1
    path = first
    while path.exists() or _scores(path).exists():
        number += 1
        path = first.with_stem(f"{first.stem}-{number}")
    return path


def _scores(out: Path) -> Path:
    """Where the scores of a forecast are written: beside it."""
    return out.with_suffix(".scores.json")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Load, read the fields, draw, write, score."""
    typed = flags_layer(args, extra, args.parser, ForecastConfig, FAMILIES)
    config = resolve(ForecastConfig, [typed], FAMILIES)
    from ddpm.data.field_files import check_output, forecasts, write
    from ddpm.data.fields import is_fields, read_record, text
    from ddpm.evaluation.forecasting import (
        as_json,
        check_inflation,
        check_leads,
        check_scored,
        ensemble,
        fits,
        inflated,
        scores,
        starts,
        table,
    )
    from ddpm.training.checkpoints.storage import write_text

    path = Path(config.data).expanduser()
    if not is_fields(path) or not path.exists():
        raise ConfigError(f"--data: got {config.data}; give a .nc, .zarr or .grib file that is there")
    out = Path(config.out) if config.out else _usual(args.run_folder, config.seed)
    check_output(out)
    if config.score and _scores(out).exists():
        raise ConfigError(f"--out: {_scores(out)} is there already, where the scores would be written; name another file")
    drawing = ready(args.run_folder, config.how, typed)
    about, device = described(drawing.document, args.run_folder), drawing.machine.device
    record = fits(read_record(path, list(dict.fromkeys(about.variables))), about, path.name)
    rows, leads = starts(record, about, config.start, config.every, path.name), check_leads(about, config.leads)
    factors = check_inflation(config.inflate, leads, config.members)
    if config.score:
        check_scored(record, rows, leads)  # before hours of drawing

    def draw(first: int, size: int, cond: dict[str, torch.Tensor]) -> torch.Tensor:
        return drawing.draw(first, size, config.seed, {key: value.to(device) for key, value in cond.items()})

    with drawing.executing():
        drawn = ensemble(
            draw, record, about, rows, leads, config.members, config.how.batch, lambda done, of: shown(done, of, "forecasting")
        )
    wider = ", ".join(f"{factor:g}" for factor in factors) if set(factors) != {1.0} else ""
    if wider:
        drawn = inflated(drawn, factors)
    notes = {"title": "ensemble forecast", "source": f"ddpm forecast {args.run_folder}, {drawing.told(config.seed)}", "data": path.name}
    notes |= {"inflation": wider} if wider else {}
    notes["model"] = str(drawing.document["sha256"])
    written = [write(forecasts(record, about, rows, leads, drawn, notes), out)]
    print(f"{len(rows)} starts, {len(leads)} leads, {config.members} members each, by {drawing.told(config.seed)}{drawing.chosen}")
    if wider:
        print(f"  inflated by {wider}")
    if config.score:
        found = scores(record, about, rows, leads, drawn)
        print(table(found, ", ".join(dict.fromkeys(unit for unit in about.units if unit))))
        if chosen_there := config.how.step == "best" and bool(about.held) and any(text(record.times[row]) >= about.held for row in rows):
            print("  the checkpoint was chosen on these days: on others its scores may be worse")
        said = {
            "of": {**notes, "members": config.members, "starts": len(rows), "chosen_on_these_days": chosen_there},
            "leads": as_json(found),
        }
        written.append(_scores(out))
        write_text(written[-1], json.dumps(said, indent=1) + "\n")
    for place in written:
        print(f"  {shlex.quote(str(place))}")
    return 0
