"""`ddpm train --past` and `ddpm forecast`, end to end on a small file: what is written opens with xarray and says what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

xarray = pytest.importorskip("xarray")
pytest.importorskip("h5netcdf")
pytest.importorskip("h5py")

import torch  # noqa: E402

from ddpm.cli import main  # noqa: E402
from ddpm.data.fields import read_record  # noqa: E402
from ddpm.evaluation import forecasting  # noqa: E402
from field_files import dataset, written  # noqa: E402

SMALL = ["--network.channels", "8", "--network.mults", "1,2", "--network.blocks", "1", "--network.attention", "1", "--steps", "3"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file and a run that forecasts 1 and 6 hours ahead."""
    folder = tmp_path_factory.mktemp("forecast")
    path = written(dataset(hours=240), folder / "x.nc")
    words = ["train", "--data", str(path), "--recipe", "forecast", "--past", "1", "--days", "1", "--leads", "1,6", "--batch", "8", *SMALL]
    assert main([*words, "--out", str(folder / "run"), "--track", "none", "--no-monitor", "--threads", "1"]) == 0
    return folder


def forecast(home: Path, *words: str, data: str = "x.nc") -> int:
    return main(["forecast", str(home / "run"), "--data", str(home / data), "--steps", "2", "--members", "3", *words])


def test_the_file_has_the_units_the_places_and_the_times(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = home / "all.nc"
    assert forecast(home, "--start", "held-out", "--every", "12", "--score", "--out", str(out), "--batch", "5") == 0
    assert "persistence" in capsys.readouterr().out
    with xarray.open_dataset(out, engine="h5netcdf") as found, xarray.open_dataset(home / "x.nc", engine="h5netcdf") as given:
        t2m = found.t2m
        assert t2m.dims == ("time", "lead", "member", "latitude", "longitude") and t2m.shape[1:] == (2, 3, 5, 6)
        assert t2m.attrs == {"units": "K", "standard_name": "air_temperature", "long_name": "2 metre temperature"}
        assert found.lead.values.tolist() == [1.0, 6.0] and found.lead.attrs["units"] == "h"
        assert (found.valid_time.values - found.time.values[:, None] == (found.lead.values * 3600).astype("timedelta64[s]")).all()
        assert set(found.time.dt.hour.values.tolist()) == {0, 12} and (found.time >= np.datetime64("2019-03-09")).all()
        np.testing.assert_array_equal(found.latitude.values, given.latitude.values)
        assert 260.0 < float(t2m.min()) and float(t2m.max()) < 300.0
    said = json.loads(out.with_suffix(".scores.json").read_text())
    about, scores = said["of"], said["leads"]
    assert about["members"] == 3 and about["starts"] == len(t2m) and not about["chosen_on_these_days"]
    assert "2 steps, seed 0" in about["source"] and about["data"] == "x.nc" and "inflation" not in about
    assert scores.keys() == {"1", "6"} and scores["6"].keys() == {"model", "persistence", "expected", "climatology"}
    assert len(scores["6"]["model"]["ranks"]) == 4 and scores["6"]["persistence"]["members"] == 1
    assert forecast(home, "--score", "--out", str(home / "all.zarr")) == 2  # whose scores would lie where those of all.nc do
    assert "all.scores.json is there already" in capsys.readouterr().err and not (home / "all.zarr").exists()


def test_a_sample_depends_on_its_number_alone_and_zarr_holds_the_same(home: Path) -> None:
    pytest.importorskip("zarr")
    words = ("--start", "2019-03-09T06", "--seed", "4")
    assert forecast(home, *words, "--out", str(home / "a.zarr"), "--batch", "2") == 0
    assert forecast(home, *words, "--out", str(home / "b.nc"), "--batch", "64") == 0
    with xarray.open_dataset(home / "a.zarr", engine="zarr") as one, xarray.open_dataset(home / "b.nc", engine="h5netcdf") as two:
        np.testing.assert_allclose(one.t2m.values, two.t2m.values, atol=1e-3)
        assert not np.allclose(one.t2m.values[:, :, 0], one.t2m.values[:, :, 1], atol=1e-3)
    assert forecast(home, "--leads", "6") == 0 and forecast(home, "--leads", "6") == 0
    assert sorted(path.name for path in (home / "run" / "forecasts").iterdir()) == ["seed-0-2.nc", "seed-0.nc"]


def test_an_inflated_ensemble_has_its_mean_and_a_factor_of_its_spread(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, wide = home / "plain.nc", home / "wide.nc"
    words = ["--start", "held-out", "--every", "24", "--score"]
    assert forecast(home, *words, "--out", str(plain)) == 0 and "inflated" not in capsys.readouterr().out
    assert forecast(home, *words, "--out", str(wide), "--inflate", "1,1.5") == 0
    assert "  inflated by 1, 1.5" in capsys.readouterr().out
    before, after = (json.loads(path.with_suffix(".scores.json").read_text())["leads"] for path in (plain, wide))
    assert json.loads(wide.with_suffix(".scores.json").read_text())["of"]["inflation"] == "1, 1.5"
    for lead, factor in (("1", 1.0), ("6", 1.5)):
        old, new = before[lead]["model"], after[lead]["model"]
        np.testing.assert_allclose([new["ratio"], new["spread"]], [factor * old["ratio"], factor * old["spread"]], rtol=1e-4)
        np.testing.assert_allclose([new["rmse"], new["mae"]], [old["rmse"], old["mae"]], rtol=1e-4)
    with xarray.open_dataset(plain, engine="h5netcdf") as old, xarray.open_dataset(wide, engine="h5netcdf") as new:
        assert new.attrs["inflation"] == "1, 1.5" and "inflation" not in old.attrs
        np.testing.assert_allclose(new.t2m.mean("member"), old.t2m.mean("member"), rtol=1e-6)
        np.testing.assert_allclose(new.t2m[:, 0], old.t2m[:, 0], rtol=1e-6)
    assert forecast(home, "--inflate", "1,2,3") == 2
    assert "inflate: got 3 factors for 2 leads (1, 6 h)" in capsys.readouterr().err


def test_scores_on_days_that_the_checkpoint_was_chosen_by_say_so(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether the start is called held-out or named by its time."""
    for name, words, chosen in (
        ("best", ("--step", "best", "--start", "held-out", "--every", "24"), True),
        ("named", ("--step", "best", "--start", "2019-03-10T00"), True),
        ("earlier", ("--step", "best", "--start", "2019-03-05T00"), False),
        ("newest", ("--start", "2019-03-10T00"), False),
    ):
        out = home / f"{name}-chosen.nc"
        assert forecast(home, *words, "--score", "--out", str(out)) == 0
        assert ("the checkpoint was chosen on these days" in capsys.readouterr().out) == chosen, name
        assert json.loads(out.with_suffix(".scores.json").read_text())["of"]["chosen_on_these_days"] == chosen, name


def test_what_does_not_fit_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    celsius = dataset(hours=60, units="degC").isel(longitude=slice(1, None))
    written(celsius, home / "celsius.nc")
    assert forecast(home, data="celsius.nc") == 3
    said = capsys.readouterr().err
    assert "units of t2m: model: K, file: degC; convert first" in said and "longitude: model: 6 from -10 to 0, file: 5 from -8 to 0" in said
    written(dataset(hours=60).rename(t2m="d2m"), home / "other.nc")
    assert forecast(home, data="other.nc") == 3 and "no variable t2m; it has d2m" in capsys.readouterr().err
    for words, message in (
        (("--leads", "2"), "got 2 h; this model knows 1, 6 h"),
        (("--leads", "6,6"), "got 6, 6; name each once"),
        (("--inflate", "0"), "inflate"),
        (("--inflate", "2", "--members", "1"), "an ensemble of one member has no width"),
        (("--start", "2019-03-0"), "no field at 2019-03-0; its times go from"),
        (("--start", "2019-03-01T05:"), "a forecast needs those of the last 24 h, 1 h apart"),
        (("--start", "2020-01-01"), "no field at 2020-01-01; its times go from 2019-03-01T00:00:00 to 2019-03-10T23:00:00"),
        (("--start", "2019-03-01T05"), "a forecast needs those of the last 24 h, 1 h apart"),
        (
            ("--score", "--out", str(home / "last.nc")),
            "no field at any of the times that are forecast; start earlier, or leave --score out",
        ),
        (("--out", "x.png"), "fields are written as .nc, .nc4, .zarr"),
        (("--out", str(home / "x.nc")), "is there already"),
    ):
        assert forecast(home, *words) in (2, 3)
        assert message in capsys.readouterr().err
    assert not (home / "last.nc").exists()
    mislabelled = dataset(hours=60)
    mislabelled["t2m"].values[:] -= 273.15
    written(mislabelled, home / "mislabelled.nc")
    assert forecast(home, data="mislabelled.nc") == 3
    assert "are they in other units than the file says?" in capsys.readouterr().err
    filled = dataset(hours=60)
    filled["t2m"].values[50, 2, 3] = -9999.0
    written(filled, home / "filled.nc")
    assert forecast(home, data="filled.nc") == 3
    assert "1 are -9999, the model's lie about" in capsys.readouterr().err
    assert main(["sample", str(home / "run")]) == 2
    assert "use ddpm forecast" in capsys.readouterr().err


def test_fields_by_themselves_are_trained_on_and_drawn(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(home / "alone")
    assert main(["inspect", str(home / "x.nc")]) == 0
    assert "t2m (K)" in capsys.readouterr().out
    words = [
        "--out",
        run,
        "--track",
        "none",
        "--no-monitor",
        "--threads",
        "1",
        "--preview",
        "0",
        "--batch",
        "8",
        "--network",
        "unetconfig",
        "--network.fit",
    ]
    assert main(["train", "--data", str(home / "x.nc"), *SMALL, *words]) == 0
    assert main(["sample", run, "--n", "2", "--steps", "2"]) == 0
    (path,) = (home / "alone" / "samples").rglob("*.nc")
    with xarray.open_dataset(path, engine="h5netcdf") as found:
        assert found.t2m.dims == ("sample", "latitude", "longitude") and found.t2m.attrs["units"] == "K"
    assert forecast(home, data="nothing.nc") == 2
    assert main(["forecast", run, "--data", str(home / "x.nc")]) == 2
    assert "this model makes no forecasts; train one with ddpm train --recipe forecast" in capsys.readouterr().err


def test_other_calendars_reach_the_file(tmp_path: Path) -> None:
    pytest.importorskip("cftime")
    from dataclasses import replace

    from ddpm.data.field_files import forecasts, write

    record = read_record(written(dataset(hours=80, calendar="noleap"), tmp_path / "x.nc"))
    about = replace(record.about, past=1, leads=(3.0,))
    drawn = record.values[40:42][:, None, None]
    out = write(forecasts(record, about, np.array([40, 41]), (3.0,), drawn, {}), tmp_path / "out.nc")
    with xarray.open_dataset(out, engine="h5netcdf") as found:
        assert found.valid_time.values[0, 0].isoformat() == "2019-03-02T19:00:00" and found.time.dt.calendar == "noleap"


def test_perfect_members_score_perfectly_and_the_day_before_is_expected(tmp_path: Path) -> None:
    from dataclasses import replace

    record = read_record(written(dataset(hours=200), tmp_path / "x.nc"))
    about = replace(
        record.about, past=1, leads=(6.0,), scales=(2.0,), days=2, mean=(280.0,), std=(2.0,), held="2019-03-07",
        trained=("2019-03-01T00:00:00", "2019-03-06T00:00:00"),
    )  # fmt: skip
    rows = forecasting.starts(record, about, ["held-out"], 6.0, "x.nc")

    def draw(first: int, size: int, cond: dict[str, Any]) -> torch.Tensor:
        return torch.zeros(size, 1, 5, 6)

    calm = forecasting.ensemble(draw, record, about, rows, (6.0,), 2, batch=3)
    x = record.values
    np.testing.assert_allclose(
        calm[0, 0, 1], x[rows[0]] + np.mean([x[rows[0] - 24 * j + 6] - x[rows[0] - 24 * j] for j in (1, 2)], axis=0), rtol=1e-5
    )
    real = np.stack([x[row + 6] for row in rows[:-1]])[:, None, None]
    found = forecasting.scores(record, about, rows[:-1], (6.0,), np.repeat(real, 2, axis=2))["6"]
    assert found["model"].crps == 0.0 and found["persistence"].mae > 1.0 and found["climatology"].members >= 5


def test_a_model_of_fields_with_gaps_is_told_where_they_are(tmp_path: Path) -> None:
    """Trained and asked with the same mask; members are missing where the newest field is."""
    made = dataset(hours=200)
    values = made.t2m.values.copy()
    values[:, 0, :2] = np.nan
    path, out = written(made.assign(t2m=made.t2m.copy(data=values)), tmp_path / "x.nc"), tmp_path / "run"
    words = ["train", "--data", str(path), "--recipe", "forecast", "--past", "1", "--days", "1", "--leads", "6", "--batch", "8", *SMALL]
    assert main([*words, "--out", str(out), "--track", "none", "--no-monitor", "--threads", "1"]) == 0
    given = ["forecast", str(out), "--data", str(path), "--steps", "2", "--members", "3", "--score", "--start", "2019-03-08T06"]
    assert main([*given, "--out", str(tmp_path / "out.nc")]) == 0
    with xarray.open_dataset(tmp_path / "out.nc", engine="h5netcdf") as found:
        missing = np.isnan(found.t2m.values)
    assert missing[..., 0, :2].all() and missing.sum() == missing[..., 0, :2].size


def test_fields_with_gaps_are_drawn_with_them(tmp_path: Path) -> None:
    made = dataset(hours=120)
    values = made.t2m.values.copy()
    values[:, 0, :2] = np.nan
    path, out = written(made.assign(t2m=made.t2m.copy(data=values)), tmp_path / "x.nc"), tmp_path / "run"
    words = ["train", "--data", str(path), "--network", "UNetConfig", "--network.fit", "--batch", "8", *SMALL]
    assert main([*words, "--out", str(out), "--track", "none", "--no-monitor", "--threads", "1", "--preview", "0"]) == 0
    assert main(["sample", str(out), "--n", "3", "--steps", "2", "--out", str(tmp_path / "s")]) == 0
    with xarray.open_dataset(next((tmp_path / "s").glob("*.nc")), engine="h5netcdf") as found:
        missing = np.isnan(found.t2m.values)
    assert missing[:, 0, :2].all() and missing.sum() == 6


def test_areas_are_of_latitudes() -> None:
    from ddpm.denoiser.fields import Axis, Fields

    base = {name: ("",) for name in ("names", "variables", "levels", "units", "standard_names", "long_names")}
    wide = Axis(name="lon", units="degrees_east", values=(-30.0, 80.0))
    for name, units, weighed in (("lat", "degrees_north", True), ("y", "degreeN", True), ("lon", "degrees_east", False), ("y", "m", False)):
        about = Fields(**base, rows=Axis(name=name, units=units, values=(0.0, 60.0)), columns=wide)  # type: ignore[arg-type]
        assert (forecasting.area(about).flatten().tolist() != [1.0, 1.0]) == weighed, (name, units)


def test_scores_of_several_variables_are_each_their_own(tmp_path: Path) -> None:
    made = dataset(hours=60)
    made = made.assign(msl=(made.t2m * 100.0).assign_attrs(units="Pa", standard_name="air_pressure"))
    record = read_record(written(made, tmp_path / "x.nc"))
    rows, x = np.array([30, 31]), record.values
    drawn = np.stack([x[row + 1] + 1.0 for row in rows])[:, None, None].repeat(2, axis=2)
    found = forecasting.scores(record, record.about, rows, (1.0,), drawn)["1"]
    assert found["model t2m"].mae == pytest.approx(1.0, rel=1e-4) and found["model msl"].mae == pytest.approx(1.0, rel=1e-2)
    assert found["persistence msl"].mae == pytest.approx(100.0 * found["persistence t2m"].mae, rel=1e-3)
