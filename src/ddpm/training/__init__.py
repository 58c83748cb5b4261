"""The one Trainer: it runs every objective, survives what happens to runs, and holds no formula of diffusion."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ddpm.training.config import FAMILIES, OptimizerSettings, TrainConfig

if TYPE_CHECKING:
    from ddpm.training.run import Finished as Finished
    from ddpm.training.run import train as train
    from ddpm.training.state import load as load
    from ddpm.training.trainer import Trainer as Trainer

_MODULES = {
    "Finished": "ddpm.training.run",
    "train": "ddpm.training.run",
    "load": "ddpm.training.state",
    "Trainer": "ddpm.training.trainer",
}

__all__ = ["FAMILIES", "Finished", "OptimizerSettings", "TrainConfig", "Trainer", "load", "train"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'ddpm.training' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
