"""Fields from NetCDF and Zarr: coordinates, units and times to the samples and back, gaps, NaN, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

xarray = pytest.importorskip("xarray")
pytest.importorskip("h5netcdf")
pytest.importorskip("h5py")

from ddpm.config import from_dict, to_dict  # noqa: E402
from ddpm.data import DataSettings, open_data  # noqa: E402
from ddpm.data import field_opening as opening  # noqa: E402
from ddpm.data.field_files import check_output, sampled, write  # noqa: E402
from ddpm.data.fields import read_record  # noqa: E402
from ddpm.data.forecast import maps, vector_names  # noqa: E402
from ddpm.data.settings import FieldSettings  # noqa: E402
from ddpm.denoiser.fields import Fields  # noqa: E402
from ddpm.errors import ConfigError, DataError, MissingLibraryError  # noqa: E402
from field_files import dataset, grib, written  # noqa: E402


def settings(path: Path, holdout: float = 0.3, **fields: Any) -> DataSettings:
    return DataSettings(data=str(path), holdout=holdout, fields=FieldSettings(**fields))


def described(data: Any) -> Fields:
    assert data.card.fields is not None
    return data.card.fields


@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_fields_are_read_split_by_time_and_written_back(tmp_path: Path, ending: str) -> None:
    if ending == "zarr":
        pytest.importorskip("zarr")
    made = dataset()
    data = open_data(settings(written(made, tmp_path / f"x.{ending}")))
    about = described(data)
    assert data.card.shape == (1, 5, 6) and (about.names, about.units, about.step) == (("t2m",), ("K",), 1.0)
    assert data.held_rows.tolist() == list(range(data.held_rows[0], 120)) and about.held == "2019-03-05T00:00:00"
    np.testing.assert_array_equal(np.asarray(data.samples)[:, 0], made.t2m.values)
    out = write(sampled(about, np.asarray(data.samples[:3]), {"title": "a test"}), tmp_path / f"out.{ending}")
    with xarray.open_dataset(out, engine="zarr" if ending == "zarr" else "h5netcdf") as back:
        assert back.t2m.dims == ("sample", "latitude", "longitude")
        assert back.t2m.attrs == {"units": "K", "standard_name": "air_temperature", "long_name": "2 metre temperature"}
        np.testing.assert_array_equal(back.t2m.values, made.t2m.values[:3])
        np.testing.assert_array_equal(back.latitude.values, made.latitude.values)
        assert back.longitude.attrs["units"] == "degrees_east"
    assert [path.name for path in tmp_path.iterdir() if ".tmp" in path.name] == []
    with pytest.raises(ConfigError, match="is there already"):
        check_output(out)


def test_levels_are_channels_and_come_together_again(tmp_path: Path) -> None:
    made = dataset().t2m.expand_dims(level=[850.0, 500.0], axis=1) * 1.0
    made[:, 1] += 5.0
    data = open_data(settings(written(made.to_dataset(name="t"), tmp_path / "x.nc")))
    about = described(data)
    assert about.names == ("t@850", "t@500") and data.card.shape == (2, 5, 6)
    back = sampled(about, np.asarray(data.samples[:2]), {})
    np.testing.assert_allclose(back.t.sel(level=500.0).values, made.values[:2, 1])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_vertical_axis_keeps_its_attributes_and_its_digits(tmp_path: Path, kind: type) -> None:
    told = {"units": "Pa", "standard_name": "air_pressure", "long_name": "pressure", "positive": "down"}
    heights = xarray.DataArray(np.array([5902.058, 85000.0], kind), dims="plev", attrs=told)
    made = dataset().t2m.expand_dims(plev=heights, axis=1) + 0.0
    made = made.assign_coords(plev=heights)
    data = open_data(settings(written(made.to_dataset(name="t"), tmp_path / "x.nc")))
    about = from_dict(Fields, json.loads(json.dumps(to_dict(described(data)))))  # as config.json keeps it
    assert about == described(data) and about.names == ("t@5902.058", "t@85000")
    with xarray.open_dataset(write(sampled(about, np.asarray(data.samples[:2]), {}), tmp_path / "y.nc"), engine="h5netcdf") as back:
        assert back.plev.attrs == told and back.plev.values.astype(kind).tolist() == heights.values.tolist()


def test_grib_is_read_and_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    made = dataset(hours=48)
    path = grib(made, tmp_path / "x.grib")
    record = read_record(path)
    assert record.about.names == ("t2m",) and record.about.units == ("K",) and record.step == 3600 and len(record) == 48
    np.testing.assert_allclose(record.values[:, 0], made.t2m.values, atol=1e-3)
    np.testing.assert_array_equal(record.times, made.time.values)
    assert [path.name for path in tmp_path.iterdir()] == ["x.grib"]  # no index beside it
    whole = path.read_bytes()
    path.write_bytes(whole[: 2 * len(whole) // 3 + 20])
    with pytest.raises(DataError, match=r"x\.grib: cannot be read as grib"):
        read_record(path)


@pytest.mark.parametrize("days", [0, 2])
def test_windows_hold_the_departure_and_what_was_known(tmp_path: Path, days: int) -> None:
    made = dataset(hours=200)
    path = written(made, tmp_path / "x.nc")
    data = open_data(settings(path, past=2, leads=(1.0, 6.0), days=days))
    about, x = described(data), made.t2m.values[:, None]
    assert data.card.vector == vector_names(about) and len(about.scales) == 2
    first = 24 * days + (1 if not days else 0)
    samples, cond = data.batch(np.arange(4))
    for i, (start, lead) in enumerate([(first, 1), (first, 6), (first + 1, 1), (first + 1, 6)]):
        usual = np.mean([x[start - 24 * j + lead] - x[start - 24 * j] for j in range(1, days + 1)], axis=0) if days else 0.0
        scale = about.scale(float(lead))[0]
        np.testing.assert_allclose(samples[i], (x[start + lead] - x[start] - usual) / scale, rtol=1e-4, atol=1e-4)
        newest = cond["image"][i, 1]
        np.testing.assert_allclose(cond["image"][i, 0], (x[start - 1, 0] - about.mean[0]) / about.std[0], rtol=1e-4, atol=1e-4)
        if days:
            same = np.mean([x[start - 24 * j] for j in range(1, days + 1)], axis=0)
            of_yesterday = x[start - 24 + lead] - x[start - 24]
            wanted = [(x[start] - same) / about.std[0], usual / scale, (of_yesterday - usual) / scale]
            np.testing.assert_allclose(cond["image"][i, 2:5], np.concatenate(wanted), rtol=1e-3, atol=1e-4)
        then = np.pi * ((start + lead) % 24) / 12
        assert cond["vector"][i, 5:7] == pytest.approx([np.sin(then), np.cos(then)], abs=1e-5)
        np.testing.assert_allclose(newest, (x[start, 0] - about.mean[0]) / about.std[0], rtol=1e-4, atol=1e-4)
        assert cond["vector"][i, :3] == pytest.approx([float(lead == 1), float(lead == 6), lead / 6], abs=1e-6)
        assert cond["vector"][i, 3:5] == pytest.approx([np.sin(np.pi * (start % 24) / 12), np.cos(np.pi * (start % 24) / 12)], abs=1e-5)
    rms = np.sqrt(np.mean([np.mean(data.samples[row] ** 2) for row in data.train_rows]))
    assert rms == pytest.approx(1.0, abs=0.01)


def test_a_grid_with_longitudes_first_is_the_same_data(tmp_path: Path) -> None:
    """Read with latitudes as rows, so that areas, circles and maps are those of the upright grid; also with levels."""
    made = dataset(hours=48)
    upright = read_record(written(made, tmp_path / "up.nc"))
    turned = read_record(written(made.transpose("longitude", "time", "latitude").transpose("time", ...), tmp_path / "turned.nc"))
    assert turned.about == upright.about and turned.about.rows.name == "latitude"
    np.testing.assert_array_equal(turned.values, upright.values)
    high = made.expand_dims(level=[1000.0, 850.0]).transpose("time", "level", "longitude", "latitude")
    assert read_record(written(high, tmp_path / "high.nc")).values.shape == (48, 2, 5, 6)


def test_no_field_is_in_a_training_and_a_held_out_window(tmp_path: Path) -> None:
    data = open_data(settings(written(dataset(hours=240), tmp_path / "x.nc"), past=3, leads=(1.0, 5.0)))
    windows = data.samples.windows  # type: ignore[attr-defined]
    latest = windows.target[data.train_rows].max()
    earliest = windows.start[data.held_rows].min() - 2
    assert earliest - latest > 5 + 2
    held = described(data).held
    assert held.endswith("T00:00:00") and held > described(data).trained[1]


def test_windows_never_reach_over_a_gap(tmp_path: Path) -> None:
    whole = dataset(hours=100)
    data = open_data(settings(written(whole.isel(time=np.r_[0:40, 43:100]), tmp_path / "x.nc"), past=2, leads=(2.0,)))
    windows, record = data.samples.windows, data.samples.given.record  # type: ignore[attr-defined]
    hours = record.seconds // 3600
    assert (hours[windows.target] - hours[windows.start] == 2).all() and (hours[windows.start] - hours[windows.start - 1] == 1).all()
    spotted = whole.t2m.values.copy()
    spotted[50] = np.nan
    lost = read_record(written(whole.assign(t2m=whole.t2m.copy(data=spotted)), tmp_path / "y.nc"))
    assert len(lost) == 99 and "1 fields are missing as a whole" in lost.notices[0]
    short = written(whole.isel(time=np.r_[0:20, 60:80]), tmp_path / "z.nc")
    with pytest.raises(DataError, match=r"no stretch of fields 1 h apart without a gap is as long as 42 h"):
        open_data(settings(short, past=31, leads=(12.0,)))


def test_missing_entries_are_masked_and_come_back_missing(tmp_path: Path) -> None:
    made = dataset()
    values = made.t2m.values.copy()
    values[:, 0, :2], values[7, 3, 3] = np.nan, np.nan
    made = made.assign(t2m=made.t2m.copy(data=values))
    path = written(made, tmp_path / "x.nc")
    alone = open_data(settings(path))
    mask = alone.batch(np.array([7]))[1]["mask"]
    assert mask.shape == (1, 1, 5, 6) and mask.sum() == 30 - 3 and described(alone).gaps
    assert np.asarray(alone.samples)[7, 0, 3, 3] == pytest.approx(described(alone).mean[0], rel=1e-6)
    data = open_data(settings(path, past=1, leads=(2.0,)))
    row = int(np.flatnonzero(data.samples.windows.start == 7)[0])  # type: ignore[attr-defined]
    sample, cond = data.batch(np.array([row]))
    assert cond["mask"][0, 0, 3, 3] == 0 and cond["mask"].sum() == 30 - 3 and np.isfinite(sample).all()
    assert sample[0, 0, 0, 0] == pytest.approx(data.card.mean[0], rel=1e-5)
    assert np.isfinite(cond["image"]).all() and cond["image"][0, -1].sum() == 30 - 3


def test_other_calendars_are_kept(tmp_path: Path) -> None:
    pytest.importorskip("cftime")
    record = read_record(written(dataset(hours=60, calendar="360_day"), tmp_path / "x.nc"))
    assert record.about.calendar == "360_day" and record.day[30] == pytest.approx(61.25) and record.said(30) == "2019-03-02T06:00:00"


def test_longitudes_round_the_earth_are_a_circle() -> None:
    from ddpm.denoiser.fields import Axis

    axis = Axis(name="longitude", units="degrees_east", values=tuple(float(place) for place in range(0, 360, 10)))
    base = {name: ("",) for name in ("names", "variables", "levels", "units", "standard_names", "long_names")}
    about = Fields(**base, rows=Axis(name="latitude", values=(1.0, 2.0)), columns=axis)  # type: ignore[arg-type]
    assert axis.circle and maps(about).shape == (3, 2, 36)
    part = replace(about, columns=replace(axis, values=axis.values[:-1]))
    assert not part.columns.circle and maps(part).shape == (2, 2, 35)
    assert not replace(axis, values=(*axis.values[:-1], 349.0)).circle and not replace(axis, name="x", units="degrees").circle
    assert replace(axis, values=axis.values[::-1]).circle
    assert replace(axis, values=tuple(np.arange(0.0, 360.0, 0.1, dtype=np.float32).tolist())).circle


BAD = {
    "no dates": (lambda made: made.assign_coords(time=np.arange(120)), "no axis of time with a date"),
    "times that fall": (lambda made: made.isel(time=np.r_[0:5, 4:120]), "times must rise; 2019-03-01T04:00:00 comes after"),
    "nothing there": (lambda made: made.where(False), "every entry of some variable is missing"),
    "infinite": (lambda made: made.assign(t2m=made.t2m * np.inf), "infinite values at 2019-03-01T00:00:00"),
    "a further axis": (lambda made: made.expand_dims(number=3, axis=1), r"a further axis number \(3\); choose one of it"),
    "constant": (lambda made: made * 0.0 + 1.0, "t2m: the same number everywhere"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    spoil, message = BAD[name]
    with pytest.raises(DataError, match=message):
        open_data(settings(written(spoil(dataset()), tmp_path / "x.nc")))


def test_bad_requests_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(dataset(step=3), tmp_path / "x.nc")
    with pytest.raises(DataError, match=r"leads 1 h: no multiple of the step of its fields, 3 h"):
        open_data(settings(path, past=1, leads=(1.0, 6.0)))
    with pytest.raises(DataError, match="no variable u10; it has t2m"):
        open_data(settings(path, variables=("u10",)))
    with pytest.raises(ConfigError, match=r"past: got -1; .*(.|\n)*leads: got \(3, 1\); give each once, rising"):
        open_data(settings(path, past=-1, leads=(3, 1)))
    with pytest.raises(ConfigError, match="past: does not apply to digits: it is no file of fields"):
        open_data(DataSettings(fields=FieldSettings(past=2)))
    with pytest.raises(ConfigError, match="size: does not apply to x.nc"):
        open_data(DataSettings(data=str(path), size=(8,)))
    with pytest.raises(DataError, match="no window of 48 h is"):
        open_data(settings(path, 0.1, past=1, leads=(48.0,)))
    (tmp_path / "y.nc").write_bytes(b"\x89HDF nothing")
    with pytest.raises(DataError, match=r"y\.nc: cannot be read as nc"):
        open_data(settings(tmp_path / "y.nc"))
    (tmp_path / "y.grib").write_bytes(b"GRIB")
    monkeypatch.setattr(opening, "needed", lambda library, where: (_ for _ in ()).throw(opening._missing(library, where)))
    with pytest.raises(MissingLibraryError, match=r"y\.grib: needs the library xarray, .* pip install 'ddpm\[fields\]'"):
        open_data(settings(tmp_path / "y.grib"))
