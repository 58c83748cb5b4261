"""`torch`, imported when first used: settings are read, checked and explained without its two seconds.

Rooms whose members are settings (schedules, samplers, weightings ...) write::

    if TYPE_CHECKING:
        import torch
    else:
        from ddpm.lazy import torch
"""

from __future__ import annotations

import importlib
from typing import Any


class _Lazy:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(importlib.import_module(self._name), attribute)
        setattr(self, attribute, value)  # the next look-up does not come here: torch.compile cannot follow an import
        return value


torch = _Lazy("torch")
