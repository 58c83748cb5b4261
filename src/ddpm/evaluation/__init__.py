"""Evaluation: which sampler and which instants suit a trained model best."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm.evaluation.tuned import Entry as Entry
    from ddpm.evaluation.tuned import Trial as Trial
    from ddpm.evaluation.tuned import Tuned as Tuned
    from ddpm.evaluation.tuned import choose as choose
    from ddpm.evaluation.tuned import load_tuned as load_tuned
    from ddpm.evaluation.tuned import save_tuned as save_tuned
    from ddpm.evaluation.tuning import Cost as Cost
    from ddpm.evaluation.tuning import cost_of as cost_of
    from ddpm.evaluation.tuning import tune as tune

_MODULES = {  # these are torch modules, imported when first asked for
    **dict.fromkeys(("Cost", "cost_of", "tune"), "ddpm.evaluation.tuning"),
    **dict.fromkeys(("Entry", "Trial", "Tuned", "choose", "load_tuned", "save_tuned"), "ddpm.evaluation.tuned"),
}

__all__ = ["Cost", "Entry", "Trial", "Tuned", "choose", "cost_of", "load_tuned", "save_tuned", "tune"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'ddpm.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
