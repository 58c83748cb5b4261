"""Sampling: the contract of a sampler, the methods, and the walk from noise to data."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ddpm.sampling.adaptive import Adaptive
from ddpm.sampling.ancestral import Ancestral
from ddpm.sampling.consistency import Consistency
from ddpm.sampling.ddim import DDIM
from ddpm.sampling.multistep import Multistep
from ddpm.sampling.presets import PRESETS
from ddpm.sampling.repaint import RePaint
from ddpm.sampling.sampler import Plan, Row, Sampler, steps_for
from ddpm.sampling.singlestep import Restart, SingleStep
from ddpm.sampling.stochastic import EulerMaruyama, Langevin
from ddpm.sampling.usual import usual_sampler, usual_steps, way

if TYPE_CHECKING:
    from ddpm.sampling.clip import Clipped as Clipped
    from ddpm.sampling.clip import clipped as clipped
    from ddpm.sampling.interpolation import interpolate as interpolate
    from ddpm.sampling.interpolation import perturbed as perturbed
    from ddpm.sampling.interpolation import slerp as slerp
    from ddpm.sampling.inversion import invert as invert
    from ddpm.sampling.walk import Frame as Frame
    from ddpm.sampling.walk import sample as sample
    from ddpm.sampling.walk import trajectory as trajectory

SAMPLERS = (Ancestral, DDIM, Multistep, SingleStep, EulerMaruyama, Langevin, Restart)

_MODULES = {  # these are torch modules, imported when first asked for
    **dict.fromkeys(("Clipped", "clipped"), "ddpm.sampling.clip"),
    **dict.fromkeys(("interpolate", "perturbed", "slerp"), "ddpm.sampling.interpolation"),
    **dict.fromkeys(("invert",), "ddpm.sampling.inversion"),
    **dict.fromkeys(("Frame", "sample", "trajectory"), "ddpm.sampling.walk"),
}

__all__ = [
    "DDIM",
    "PRESETS",
    "SAMPLERS",
    "Adaptive",
    "Ancestral",
    "Clipped",
    "Consistency",
    "EulerMaruyama",
    "Frame",
    "Langevin",
    "Multistep",
    "Plan",
    "RePaint",
    "Restart",
    "Row",
    "Sampler",
    "SingleStep",
    "clipped",
    "interpolate",
    "invert",
    "perturbed",
    "sample",
    "slerp",
    "steps_for",
    "trajectory",
    "usual_sampler",
    "usual_steps",
    "way",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'ddpm.sampling' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
