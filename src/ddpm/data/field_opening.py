"""Opening files of fields by xarray: which library reads which, and what is said where one is missing or a file is damaged."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from ddpm.errors import DataError, MissingLibraryError


def open_fields(path: Path) -> Any:
    """The file as an xarray data set. Raises: MissingLibraryError; DataError for what cannot be read, or is cut."""
    name = path.suffix.lower()
    library = {".zarr": "zarr", ".nc": "h5netcdf", ".nc4": "h5netcdf"}.get(name, "cfgrib")
    options: dict[str, Any] = {"engine": library}
    if name == ".nc" and _begins(path, b"CDF"):
        library = options["engine"] = "scipy"  # the older format, NetCDF 3
    if library == "cfgrib":
        # no index is left beside the data; and a file that was cut is refused, not read as a shorter one
        options["backend_kwargs"] = {"indexpath": "", "errors": "raise"}
    xarray = needed("xarray", path)
    needed(library, path)
    try:
        try:
            return xarray.open_dataset(path, **options)
        except Exception as error:
            if type(error).__name__ != "DatasetBuildError":
                raise
            # cfgrib's, once all messages are read: variables at different heights, say; as ever, it says so and leaves some out
            options["backend_kwargs"]["errors"] = "warn"
            return xarray.open_dataset(path, **options)
    except Exception as error:  # whatever its library trips on: a file may hold anything
        for further in ("cftime", "h5py", "eccodes"):  # of other calendars, and what h5netcdf and cfgrib stand on
            if further in str(error) and importlib.util.find_spec(further) is None:
                raise _missing(further, path) from error
        raise DataError(f"{path}: cannot be read as {name.removeprefix('.')}: {first_line(error)}") from error


def _begins(path: Path, mark: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(mark)) == mark
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or 'cannot be read'}") from error


def needed(library: str, path: Path | str) -> Any:
    """The library; MissingLibraryError where it is not installed."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise _missing(library, path) from error


def _missing(library: str, path: Path | str) -> MissingLibraryError:
    return MissingLibraryError(f"{path}: needs the library {library}, which is not installed: pip install 'ddpm[fields]'")


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
