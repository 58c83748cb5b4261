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
        return getattr(importlib.import_module(self._name), attribute)


torch = _Lazy("torch")
