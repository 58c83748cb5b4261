"""Denoising diffusion probabilistic models: from your data to a trained, measured, fast diffusion model.

`import ddpm` costs milliseconds: a name is imported from its room when it is first used (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm.denoiser import Denoiser as Denoiser
    from ddpm.denoiser import NetworkDenoiser as NetworkDenoiser
    from ddpm.process import Process as Process
    from ddpm.sampling import sample as sample
    from ddpm.sampling import trajectory as trajectory
    from ddpm.training import load as load
    from ddpm.training import train as train

__version__ = "0.1.0"

_ROOMS = {
    "Denoiser": "ddpm.denoiser",
    "NetworkDenoiser": "ddpm.denoiser",
    "Process": "ddpm.process",
    "load": "ddpm.training",
    "sample": "ddpm.sampling",
    "train": "ddpm.training",
    "trajectory": "ddpm.sampling",
}

__all__ = ["Denoiser", "NetworkDenoiser", "Process", "__version__", "load", "sample", "train", "trajectory"]


def __getattr__(name: str) -> Any:
    room = _ROOMS.get(name)
    if room is None:
        raise AttributeError(f"module 'ddpm' has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(importlib.import_module(room), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
