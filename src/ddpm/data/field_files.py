"""Fields written as NetCDF or Zarr, with the names, units, places and times their data had (CF conventions)."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.data.field_opening import needed
from ddpm.data.fields import HOUR, Record
from ddpm.denoiser.fields import Axis, Fields
from ddpm.errors import ConfigError, DiskError

WRITTEN = {".nc": ("xarray", "h5netcdf", "h5py"), ".nc4": ("xarray", "h5netcdf", "h5py"), ".zarr": ("xarray", "zarr")}  # by what


def check_output(path: Path, flag: str = "--out") -> None:
    """Before anything is drawn: ConfigError for a name of another kind or that is taken, MissingLibraryError for a missing library."""
    if path.suffix.lower() not in WRITTEN:
        raise ConfigError(f"{flag}: got {path}; fields are written as {', '.join(WRITTEN)}")
    check_libraries(path.suffix.lower(), flag)
    if path.exists():
        raise ConfigError(f"{flag}: {path} is there already; name another file")


def check_libraries(ending: str, flag: str) -> None:
    """MissingLibraryError for a library that writing ".nc" or ".zarr" needs and that is not installed."""
    for library in WRITTEN[ending]:
        needed(library, flag)


def sampled(about: Fields, samples: NDArray[Any], notes: Mapping[str, str]) -> Any:
    """Samples (N, C, H, W) of fields by themselves as a dataset, along the axis `sample`."""
    coordinates: dict[str, Any] = {"sample": ("sample", np.arange(len(samples)), {"long_name": "number of the sample"})}
    return _dataset(about, ("sample",), coordinates, samples, notes)


def forecasts(record: Record, about: Fields, rows: NDArray[np.int64], leads: Sequence[float], drawn: NDArray[Any], notes: Any) -> Any:
    """Members (S, L, M, C, H, W), see `ddpm.evaluation.forecasting.ensemble`, as a dataset: along time (of the start), lead in hours and
    member; `valid_time` says what each start and lead are a forecast of.
    """
    import datetime

    begun = record.times[rows]
    if begun.dtype.kind == "M":
        shifts = np.asarray([np.timedelta64(round(lead * HOUR), "s") for lead in leads])
    else:
        shifts = np.asarray([datetime.timedelta(seconds=round(lead * HOUR)) for lead in leads], dtype=object)
    coordinates: dict[str, Any] = {
        "time": ("time", begun, {"standard_name": "forecast_reference_time", "long_name": "start of the forecast"}),
        "lead": ("lead", np.asarray(leads, dtype=np.float64), {"standard_name": "forecast_period", "long_name": "lead", "units": "h"}),
        "member": ("member", np.arange(drawn.shape[2]), {"standard_name": "realization", "long_name": "member of the ensemble"}),
        "valid_time": (("time", "lead"), begun[:, None] + shifts, {"standard_name": "time", "long_name": "time that is forecast"}),
    }
    return _dataset(about, ("time", "lead", "member"), coordinates, drawn, notes)


def _dataset(about: Fields, front: tuple[str, ...], coordinates: dict[str, Any], values: NDArray[Any], notes: Mapping[str, str]) -> Any:
    """values (*front, C, H, W), the channels of a variable with levels put together again."""
    xarray = needed("xarray", "fields")
    for axis in (about.rows, about.columns):
        coordinates[axis.name] = (axis.name, np.asarray(axis.values), _attributes(axis))
    variables: dict[str, Any] = {}
    for name in dict.fromkeys(about.variables):
        channels = [k for k, variable in enumerate(about.variables) if variable == name]
        told = {"units": about.units, "standard_name": about.standard_names, "long_name": about.long_names}
        attributes = {key: said[channels[0]] for key, said in told.items() if said[channels[0]] not in ("", "unknown")}
        some, dims = values[..., channels, :, :], (*front, about.rows.name, about.columns.name)
        if about.levels[channels[0]]:
            dims = (*front, about.level, about.rows.name, about.columns.name)
            levels = np.asarray([float(about.levels[k]) for k in channels])
            coordinates[about.level] = (about.level, levels, _attributes(about.vertical) if about.vertical else {})
        else:
            some = some[..., 0, :, :]
        variables[name] = (dims, some, attributes)
    return xarray.Dataset(variables, coordinates, {"Conventions": "CF-1.11", **notes})


def _attributes(axis: Axis) -> dict[str, str]:
    told = {"units": axis.units, "standard_name": axis.standard_name, "long_name": axis.long_name, "positive": axis.positive}
    return {key: value for key, value in told.items() if value}


def write(dataset: Any, path: Path) -> Path:
    """The dataset as a .nc file or a .zarr folder, which is whole or absent. Raises: DiskError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        if path.suffix.lower() == ".zarr":
            dataset.to_zarr(aside, zarr_format=2, consolidated=True)
        else:
            dataset.to_netcdf(aside, engine="h5netcdf")
        os.replace(aside, path)
    except OSError as error:
        raise DiskError(f"{path}: cannot be written ({error.strerror or error}); name another place") from error
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        aside.unlink(missing_ok=True)
    return path
