"""Evaluation of trained models: scores, reports, comparisons; tuning of samplers; planning of runs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm.evaluation.report import Evaluator as Evaluator
    from ddpm.evaluation.report import compare as compare
    from ddpm.evaluation.run import Evaluated as Evaluated
    from ddpm.evaluation.run import evaluate as evaluate
    from ddpm.evaluation.samples import evaluate_samples as evaluate_samples
    from ddpm.evaluation.settings import EvaluateConfig as EvaluateConfig
    from ddpm.evaluation.tuning.search import Cost as Cost
    from ddpm.evaluation.tuning.search import cost_of as cost_of
    from ddpm.evaluation.tuning.search import tune as tune
    from ddpm.evaluation.tuning.stored import Entry as Entry
    from ddpm.evaluation.tuning.stored import Trial as Trial
    from ddpm.evaluation.tuning.stored import Tuned as Tuned
    from ddpm.evaluation.tuning.stored import choose as choose
    from ddpm.evaluation.tuning.stored import load_tuned as load_tuned
    from ddpm.evaluation.tuning.stored import save_tuned as save_tuned

_MODULES = {  # these are torch modules, imported when first asked for
    **dict.fromkeys(("Evaluated", "evaluate"), "ddpm.evaluation.run"),
    "EvaluateConfig": "ddpm.evaluation.settings",
    "evaluate_samples": "ddpm.evaluation.samples",
    **dict.fromkeys(("Evaluator", "compare"), "ddpm.evaluation.report"),
    **dict.fromkeys(("Cost", "cost_of", "tune"), "ddpm.evaluation.tuning.search"),
    **dict.fromkeys(("Entry", "Trial", "Tuned", "choose", "load_tuned", "save_tuned"), "ddpm.evaluation.tuning.stored"),
}

__all__ = [
    "Cost",
    "Entry",
    "EvaluateConfig",
    "Evaluated",
    "Evaluator",
    "Trial",
    "Tuned",
    "choose",
    "compare",
    "cost_of",
    "evaluate",
    "evaluate_samples",
    "load_tuned",
    "save_tuned",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'ddpm.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
