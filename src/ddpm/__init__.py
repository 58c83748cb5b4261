"""Denoising diffusion probabilistic models: from your data to a trained, measured, fast diffusion model.

`import ddpm` costs milliseconds: a name is imported from its room when it is first used (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm.data import DataSettings as DataSettings
    from ddpm.data import from_arrays as from_arrays
    from ddpm.data import open_data as open_data
    from ddpm.denoiser import Denoiser as Denoiser
    from ddpm.denoiser import NetworkDenoiser as NetworkDenoiser
    from ddpm.denoiser import prompts as prompts
    from ddpm.denoiser import references as references
    from ddpm.guidance import ClassifierFree as ClassifierFree
    from ddpm.networks import MLPConfig as MLPConfig
    from ddpm.networks import UNetConfig as UNetConfig
    from ddpm.process import Process as Process
    from ddpm.sampling import DDIM as DDIM
    from ddpm.sampling import Ancestral as Ancestral
    from ddpm.sampling import sample as sample
    from ddpm.sampling import trajectory as trajectory
    from ddpm.training import TrainConfig as TrainConfig
    from ddpm.training import load as load
    from ddpm.training import train as train

__version__ = "0.1.0"

_HOMES = {
    "Ancestral": "ddpm.sampling",
    "ClassifierFree": "ddpm.guidance",
    "DDIM": "ddpm.sampling",
    "DataSettings": "ddpm.data",
    "Denoiser": "ddpm.denoiser",
    "MLPConfig": "ddpm.networks",
    "NetworkDenoiser": "ddpm.denoiser",
    "Process": "ddpm.process",
    "TrainConfig": "ddpm.training",
    "UNetConfig": "ddpm.networks",
    "from_arrays": "ddpm.data",
    "load": "ddpm.training",
    "open_data": "ddpm.data",
    "prompts": "ddpm.denoiser",
    "references": "ddpm.denoiser",
    "sample": "ddpm.sampling",
    "train": "ddpm.training",
    "trajectory": "ddpm.sampling",
}
_ROOMS = (
    "config", "data", "denoiser", "distillation", "errors", "evaluation", "guidance", "interop", "likelihood", "metrics", "networks",
    "objective", "process", "sampling", "training",
)  # fmt: skip

__all__ = [
    "DDIM",
    "Ancestral",
    "ClassifierFree",
    "DataSettings",
    "Denoiser",
    "MLPConfig",
    "NetworkDenoiser",
    "Process",
    "TrainConfig",
    "UNetConfig",
    "__version__",
    "from_arrays",
    "load",
    "open_data",
    "prompts",
    "references",
    "sample",
    "train",
    "trajectory",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"ddpm.{name}")
    room = _HOMES.get(name)
    if room is None:
        raise AttributeError(f"module 'ddpm' has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(importlib.import_module(room), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
