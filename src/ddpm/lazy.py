"""`torch`, imported when first used: settings are read, checked and explained without its two seconds. And libraries that are too old.

Rooms whose members are settings (schedules, samplers, weightings ...) write::

    if TYPE_CHECKING:
        import torch
    else:
        from ddpm.lazy import torch
"""

from __future__ import annotations

import importlib
import re
from types import ModuleType
from typing import Any

from ddpm.errors import ConfigError

FLOORS = {  # older ones have known holes, or write checkpoints that cannot be trusted; the same as in pyproject.toml
    "torch": "2.10",  # CVE-2026-24747: weights_only could be got round
    "safetensors": "0.8",  # before, saving over a file that was mapped wrote zeros
    "filelock": "3.20.3",  # CVE-2026-22701: the lock file could be swapped for a link
    "PIL": "11.0",
}
_PACKAGES = {"PIL": "pillow"}


def at_least(module: ModuleType) -> None:
    """Called by whoever imports a library of `FLOORS`: costs a comparison, where asking for the versions at start would cost their imports.

    Raises: ConfigError with the version found, the floor and the command that mends it.
    """
    floor, found = FLOORS[module.__name__], str(getattr(module, "__version__", ""))
    if _numbers(found) < _numbers(floor):
        name = _PACKAGES.get(module.__name__, module.__name__)
        raise ConfigError(f"{name} {found} is installed, ddpm needs {floor} or newer: pip install -U '{name}>={floor}'")


def _numbers(version: str) -> tuple[int, ...]:
    """(2, 13, 0) of "2.13.0+cpu"; zeros at the end do not count."""
    found = [int(part) for part in re.findall(r"\d+", version.split("+")[0])[:4]]
    while found and not found[-1]:
        found.pop()
    return tuple(found)


class _Lazy:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        module = importlib.import_module(self._name)
        at_least(module)
        vars(self).update(vars(module))  # no look-up of these comes here again: torch.compile cannot follow an import
        return getattr(module, attribute)


torch = _Lazy("torch")
