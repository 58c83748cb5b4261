"""Configuration files: TOML and JSON in, commented TOML out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from ddpm.config.build import Layer, to_dict
from ddpm.config.field_info import limits_of, nearest, settings_of
from ddpm.errors import ConfigError


def read_file(path: str | Path) -> Layer:
    """The settings in a file, as a layer that messages call by the file's name.

    Args:
        path: TOML, or JSON where the name ends in `.json`.

    Raises:
        ConfigError: where the file is missing, unreadable or no TOML (with line and column).
    """
    import tomllib  # here: `--help` has no use for it

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near = nearest(path.name, beside)
        raise ConfigError(f"{path}: no such file{f'; did you mean {path.parent / near}?' if near else ''}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8; a configuration is a TOML or JSON file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # the parse errors of both formats say line and column
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds {type(values).__name__}, expected a table of settings")
    return Layer(str(path), values)


def dump_toml(obj: Any) -> str:
    """Settings as TOML that `read_file` takes back, each with its help and legal range as a comment.

    TOML has no null: a None is left out where None is the default, and written `"none"` elsewhere.
    """
    lines: list[str] = []
    _table(obj, to_dict(obj, none=False), "", lines)
    return "\n".join(lines) + "\n"


def _table(obj: Any, values: dict[str, Any], path: str, lines: list[str]) -> None:
    """Append one table; nested ones last, since in TOML a bare key after a header belongs to that header's table."""
    fields = settings_of(type(obj))
    for key, value in values.items():
        if isinstance(value, dict):
            continue
        about = [str(fields[key].metadata.get("help", "")), str(limits_of(fields[key]))] if key in fields else []
        lines += [f"# {', '.join(part for part in about if part)}"] if any(about) else []
        lines.append(f"{key} = {_scalar(value)}")
    for key, value in values.items():
        inner = getattr(obj, key, None)
        if isinstance(value, dict) and dataclasses.is_dataclass(inner):
            lines += ["", f"[{path}{key}]"]
            _table(inner, value, f"{path}{key}.", lines)


def _scalar(value: Any) -> str:
    import tomli_w

    if isinstance(value, list):
        return "[" + ", ".join(_scalar(entry) for entry in value) + "]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").strip()
