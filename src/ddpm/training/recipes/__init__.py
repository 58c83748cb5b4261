"""Recipes: settings that are known to suit some data, as TOML files beside this one; a flag given by hand wins over them."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from typing import Any

from ddpm.errors import ConfigError


def names() -> list[str]:
    """The recipes there are."""
    return sorted(path.name.removesuffix(".toml") for path in files(__name__).iterdir() if path.name.endswith(".toml"))


def recipe(name: str) -> dict[str, Any]:
    """The settings of a recipe. ConfigError for a name that is not there."""
    if name not in names():
        raise ConfigError(f"--recipe is {name}; allowed: auto, none, {', '.join(names())}")
    return tomllib.loads((files(__name__) / f"{name}.toml").read_text(encoding="utf-8"))
