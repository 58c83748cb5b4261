"""Data: one reader behind `--data`, and the data card it fills.

`open_data(DataSettings(data="photos.zip"))` returns a `Dataset`; `from_arrays` makes one of a person's own arrays. Only the settings are
imported with this package; everything that needs NumPy or Pillow is loaded when it is first asked for, so that `ddpm --help` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ddpm.data.settings import DataSettings

if TYPE_CHECKING:
    from ddpm.data.checks import check_fits, require
    from ddpm.data.dataset import Dataset
    from ddpm.data.reader import from_arrays, open_data
    from ddpm.data.table import describe

__all__ = ["DataSettings", "Dataset", "check_fits", "describe", "from_arrays", "open_data", "require"]

_LATE = {
    "Dataset": "dataset",
    "check_fits": "checks",
    "describe": "table",
    "from_arrays": "reader",
    "open_data": "reader",
    "require": "checks",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'ddpm.data' has no attribute {name!r}")
    value = getattr(import_module(f"ddpm.data.{_LATE[name]}"), name)
    globals()[name] = value
    return value
