"""Where a network, its process and its parameterization meet; the codec between data and the space diffused in; denoisers with exact
answers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ddpm.denoiser.card import Card
from ddpm.denoiser.clock import CLOCKS, Clock, Index, LogSNRClock, default_clock
from ddpm.denoiser.codec import Codec
from ddpm.denoiser.given import GIVENS, Given, Grey, Small
from ddpm.denoiser.latents import LatentCodec
from ddpm.denoiser.parameterization import (
    PARAMETERIZATIONS,
    X0,
    EDMPreconditioning,
    Eps,
    Flow,
    Parameterization,
    PosteriorMean,
    Prediction,
    Score,
    V,
    legal,
    reaches_zero,
)
from ddpm.denoiser.student import Student

if TYPE_CHECKING:
    from ddpm.denoiser.asking import prompts as prompts
    from ddpm.denoiser.asking import references as references
    from ddpm.denoiser.cascade import Base as Base
    from ddpm.denoiser.cascade import enlarged as enlarged
    from ddpm.denoiser.cascade import factors as factors
    from ddpm.denoiser.cascade import told as told
    from ddpm.denoiser.denoiser import UNASKED as UNASKED
    from ddpm.denoiser.denoiser import BoundModel as BoundModel
    from ddpm.denoiser.denoiser import Cond as Cond
    from ddpm.denoiser.denoiser import Denoiser as Denoiser
    from ddpm.denoiser.denoiser import Model as Model
    from ddpm.denoiser.denoiser import NetworkDenoiser as NetworkDenoiser
    from ddpm.denoiser.denoiser import Residuals as Residuals
    from ddpm.denoiser.denoiser import asked as asked
    from ddpm.denoiser.exact import Mixture as Mixture
    from ddpm.denoiser.exact import finite as finite
    from ddpm.denoiser.exact import gaussian as gaussian
    from ddpm.denoiser.self_conditioning import Twice as Twice

_MODULES = {  # these need torch, and are imported when first asked for
    **dict.fromkeys(("Base", "enlarged", "factors", "told"), "ddpm.denoiser.cascade"),
    **dict.fromkeys(
        ("UNASKED", "BoundModel", "Cond", "Denoiser", "Model", "NetworkDenoiser", "Residuals", "asked"), "ddpm.denoiser.denoiser"
    ),
    **dict.fromkeys(("Mixture", "finite", "gaussian"), "ddpm.denoiser.exact"),
    **dict.fromkeys(("prompts", "references"), "ddpm.denoiser.asking"),
    "Twice": "ddpm.denoiser.self_conditioning",
}

__all__ = [
    "CLOCKS",
    "GIVENS",
    "PARAMETERIZATIONS",
    "UNASKED",
    "X0",
    "Base",
    "BoundModel",
    "Card",
    "Clock",
    "Codec",
    "Cond",
    "Denoiser",
    "EDMPreconditioning",
    "Eps",
    "Flow",
    "Given",
    "Grey",
    "Index",
    "LatentCodec",
    "LogSNRClock",
    "Mixture",
    "Model",
    "NetworkDenoiser",
    "Parameterization",
    "PosteriorMean",
    "Prediction",
    "Residuals",
    "Score",
    "Small",
    "Student",
    "Twice",
    "V",
    "asked",
    "default_clock",
    "enlarged",
    "factors",
    "finite",
    "gaussian",
    "legal",
    "prompts",
    "reaches_zero",
    "references",
    "told",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'ddpm.denoiser' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
