"""Small files of fields, made anew: waves that travel, with a daily cycle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray  # pyright: ignore[reportMissingImports]  (of an extra)


def dataset(hours: int = 120, rows: int = 5, columns: int = 6, *, calendar: str = "standard", step: int = 1, **attributes: str) -> Any:
    """t2m in kelvin over time, latitude and longitude."""
    times = xarray.date_range("2019-03-01", periods=hours, freq=f"{step}h", calendar=calendar, use_cftime=calendar != "standard")
    t = np.arange(hours)[:, None, None] * step
    lat, lon = np.linspace(60.0, 50.0, rows), np.linspace(-10.0, 0.0, columns)
    noise = np.random.default_rng(0).normal(0.0, 0.3, (hours, rows, columns))
    values = 280.0 + 3.0 * np.sin(2 * np.pi * t / 24) + np.cos(t / 7.0 + lat[:, None] / 5.0 + lon / 4.0) + noise
    told = {"units": "K", "standard_name": "air_temperature", "long_name": "2 metre temperature", **attributes}
    return xarray.Dataset(
        {"t2m": (("time", "latitude", "longitude"), values.astype(np.float32), told)},
        {
            "time": times,
            "latitude": ("latitude", lat, {"units": "degrees_north", "standard_name": "latitude"}),
            "longitude": ("longitude", lon, {"units": "degrees_east", "standard_name": "longitude"}),
        },
    )


def written(what: Any, path: Path) -> Path:
    """The dataset as .nc or .zarr."""
    if path.suffix == ".zarr":
        what.to_zarr(path, zarr_format=2)
    else:
        what.to_netcdf(path, engine="h5netcdf")
    return path


def grib(what: Any, path: Path) -> Path:
    """The dataset's t2m as GRIB 1, a message for each hour; skips the test where eccodes is not there."""
    eccodes = pytest.importorskip("eccodes")
    pytest.importorskip("cfgrib")
    rows, columns = what.latitude.values, what.longitude.values
    place = {
        "Ni": len(columns), "Nj": len(rows), "latitudeOfFirstGridPointInDegrees": rows[0], "latitudeOfLastGridPointInDegrees": rows[-1],
        "longitudeOfFirstGridPointInDegrees": columns[0], "longitudeOfLastGridPointInDegrees": columns[-1],
        "iDirectionIncrementInDegrees": abs(columns[1] - columns[0]), "jDirectionIncrementInDegrees": abs(rows[1] - rows[0]),
    }  # fmt: skip
    with path.open("wb") as file:
        for field, time in zip(what.t2m.values, what.time.dt.strftime("%Y%m%d %H00").values, strict=True):
            message = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib1")
            date, hour = (int(part) for part in time.split())
            for key, value in {**place, "dataDate": date, "dataTime": hour, "indicatorOfParameter": 167, "bitsPerValue": 24}.items():
                eccodes.codes_set(message, key, value)
            eccodes.codes_set_values(message, field.astype(float).ravel())
            eccodes.codes_write(message, file)
            eccodes.codes_release(message)
    return path
