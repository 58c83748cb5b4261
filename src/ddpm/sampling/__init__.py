"""Sampling: the contract of a sampler, the methods, and the walk from noise to data."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ddpm.sampling.ancestral import Ancestral
from ddpm.sampling.ddim import DDIM
from ddpm.sampling.sampler import Plan, Row, Sampler

if TYPE_CHECKING:
    from ddpm.sampling.clip import Clipped as Clipped
    from ddpm.sampling.clip import clipped as clipped
    from ddpm.sampling.walk import Frame as Frame
    from ddpm.sampling.walk import sample as sample
    from ddpm.sampling.walk import trajectory as trajectory

SAMPLERS = (Ancestral, DDIM)

_MODULES = {  # these are torch modules, imported when first asked for
    **dict.fromkeys(("Clipped", "clipped"), "ddpm.sampling.clip"),
    **dict.fromkeys(("Frame", "sample", "trajectory"), "ddpm.sampling.walk"),
}

__all__ = ["DDIM", "SAMPLERS", "Ancestral", "Clipped", "Frame", "Plan", "Row", "Sampler", "clipped", "sample", "trajectory"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'ddpm.sampling' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
