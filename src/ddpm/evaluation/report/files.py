"""report.json: written whole, read back with its form checked."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

from ddpm.errors import CheckpointError, ConfigError
from ddpm.evaluation.reference import Protocol
from ddpm.training.checkpoints.storage import replace_text

NAME = "report.json"
FORMAT = 1


def write_report(folder: Path, content: dict[str, Any]) -> Path:
    """The file, in the folder; numbers that are not finite become null, as JSON has none. Raises: OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / NAME, json.dumps({"format": FORMAT, **finite(content)}, indent=1) + "\n")
    return folder / NAME


def finite(value: Any) -> Any:
    """The same with None for every number that is not finite."""
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def reports_of(run: Path) -> list[Path]:
    """The folders of a run that hold reports, oldest first: report, report-2, ..."""
    numbered = ((re.fullmatch(r"report(?:-(\d+))?", path.parent.name), path.parent) for path in run.glob(f"report*/{NAME}"))
    return [folder for _, folder in sorted((int(match[1] or 1), folder) for match, folder in numbered if match)]


def read_report(place: str | Path) -> tuple[Path, dict[str, Any]]:
    """The report that a file, a report's folder or a run (its newest) holds, with its place.

    Raises: ConfigError where there is none; CheckpointError for one that is damaged, or of a newer form.
    """
    path = Path(place)
    if path.is_dir() and not (path / NAME).is_file():
        found = reports_of(path)
        if not found:
            raise ConfigError(f"{place}: holds no report; make one: ddpm evaluate {place}")
        path = found[-1]
    path = path / NAME if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{place}: no such report; give a run folder, a report's folder, or its {NAME}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); make it anew with ddpm evaluate") from error
    if not isinstance(content, dict) or not {"format", "protocol", "scores"} <= set(content):
        raise CheckpointError(f"{path}: is not a report of ddpm evaluate")
    if content["format"] != FORMAT:
        raise CheckpointError(f"{path}: has form {content['format']}, this version reads {FORMAT}; upgrade ddpm, or make it anew")
    if not _sound(content):
        raise CheckpointError(f"{path}: its protocol or one of its scores is damaged; make it anew with ddpm evaluate")
    return path, content


def _sound(content: dict[str, Any]) -> bool:
    """Whether what is compared is all there, and of the right kind."""
    protocol, scores, real = content["protocol"], content["scores"], content.get("real")
    if not isinstance(protocol, dict) or set(protocol) != set(Protocol._fields) or {*map(type, protocol.values())} != {str}:
        return False
    if not all(isinstance(row, dict) and _estimate(row.get("frechet")) for row in (scores, *([] if real is None else [real]))):
        return False
    memory = scores.get("memorisation")
    return memory is None or (isinstance(memory, dict) and isinstance(memory.get("found"), bool) and _number(memory.get("copies")))


def _estimate(value: Any) -> bool:
    """Whether it is a number with its interval, or with none."""
    if not isinstance(value, dict) or not {"low", "high"} <= set(value):
        return False
    ends = [value["low"], value["high"]]
    return _number(value.get("value")) and (all(map(_number, ends)) or ends == [None, None])


def _number(value: Any) -> bool:
    """Whether it is one, and finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < sys.float_info.max
