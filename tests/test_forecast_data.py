"""Forecasts as data: what a forecast is told depends on nothing after its start, nor what is learned on what is held out."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

xarray = pytest.importorskip("xarray")
pytest.importorskip("h5netcdf")
pytest.importorskip("h5py")

import torch  # noqa: E402

from ddpm.data import DataSettings, open_data  # noqa: E402
from ddpm.data.fields import HOUR, read_record  # noqa: E402
from ddpm.data.forecast import Context  # noqa: E402
from ddpm.data.settings import FieldSettings  # noqa: E402
from ddpm.errors import DataError  # noqa: E402
from ddpm.evaluation import forecasting  # noqa: E402
from field_files import dataset, written  # noqa: E402

RNG = np.random.default_rng(0)


def opened(made: Any, path: Path, holdout: float = 0.3, **fields: Any) -> Any:
    return open_data(DataSettings(data=str(written(made, path)), holdout=holdout, fields=FieldSettings(**fields)))


def holed(made: Any, *places: tuple[Any, ...]) -> Any:
    """With NaN at these (time, row, column)."""
    values = made.t2m.values.copy()
    for place in places:
        values[place] = np.nan
    return made.assign(t2m=made.t2m.copy(data=values))


@pytest.mark.parametrize("days", [0, 2])
def test_what_a_forecast_is_told_depends_on_nothing_after_its_start(tmp_path: Path, days: int) -> None:
    """Every field after the start replaced by noise, some of it missing."""
    made = holed(dataset(hours=168), (slice(None), 0, slice(0, 2)), (30, 3, 3), (80, 2, 2), (81, 4, 4), (115, 1, 1))
    data = opened(made, tmp_path / "x.nc", past=3, leads=(1.0, 6.0, 24.0), days=days)
    about, windows, record = data.card.fields, data.samples.windows, data.samples.given.record
    assert about.gaps and (windows.target > windows.start).all()
    for number in range(0, len(data), 5):
        start, lead = windows.start[[number]], np.asarray(about.leads)[windows.lead[[number]]]
        values = record.values.copy()
        values[start[0] + 1 :] = RNG.normal(280.0, 9.0, values[start[0] + 1 :].shape)
        values[start[0] + 1 :][RNG.random(values[start[0] + 1 :].shape) < 0.3] = np.nan
        before, later = Context(record, about), Context(replace(record, values=values), about)
        for name in ("image", "vector", "expected"):
            np.testing.assert_array_equal(getattr(later, name)(start, lead), getattr(before, name)(start, lead), err_msg=name)
        for key in ("image", "mask"):
            changed = copy.copy(data.cond[key])
            changed.given = later
            np.testing.assert_array_equal(changed[number], data.cond[key][number], err_msg=key)
        # and the loss still counts what is there alone
        target = record.values[windows.target[number]]
        assert not (np.isnan(target) & (data.cond["mask"][number] != 0)).any()


def test_windows_into_a_gap_that_nothing_foretold_are_left_out_and_counted(tmp_path: Path) -> None:
    still = opened(holed(dataset(), (slice(None), 0, slice(0, 2))), tmp_path / "still.nc", past=1, leads=(2.0,))
    assert not [line for line in still.card.notices if "left out" in line]  # the same places at all times: none
    moving = opened(holed(dataset(), (slice(None), 0, slice(0, 2)), (7, 3, 3), (90, 2, 2)), tmp_path / "x.nc", past=1, leads=(2.0,))
    assert len(still) - len(moving) == 2 and not set(moving.samples.windows.target) & {7, 90}
    assert any(line.startswith("2 windows are left out: what comes lacks entries") for line in moving.card.notices)
    row = int(np.flatnonzero(moving.samples.windows.start == 7)[0])  # a gap at the start is known
    sample, cond = moving.batch(np.array([row]))
    assert cond["mask"][0, 0, 3, 3] == 0 and cond["mask"].sum() == 30 - 3
    assert sample[0, 0, 3, 3] == pytest.approx(moving.card.mean[0], rel=1e-5)
    turns = [(slice(k, None, 4), k % 2, slice(None)) for k in range(4)]  # each field lacks a row that no field 1 h before it does
    with pytest.raises(DataError, match=r"x.nc: no window whose last field has every entry that is expected of it is to train on"):
        opened(holed(dataset(), *turns), tmp_path / "x.nc", past=1, leads=(1.0,))


@pytest.mark.parametrize("past", [0, 2])
def test_statistics_are_of_the_training_part_alone(tmp_path: Path, past: int) -> None:
    made = dataset(hours=240)
    fields = {"past": 2, "leads": (1.0, 6.0), "days": 1} if past else {}
    before = opened(made, tmp_path / "x.nc", **fields)
    after_training = made.time.values > np.datetime64(before.card.fields.trained[1])
    other = made.t2m.values.copy()
    other[after_training] = RNG.normal(300.0, 30.0, other[after_training].shape)
    now = opened(made.assign(t2m=made.t2m.copy(data=other)), tmp_path / "x.nc", **fields)
    assert after_training.any() and before.card.fingerprint != now.card.fingerprint
    assert before.card.fields == now.card.fields and before.card.fields.mean
    assert replace(before.card, fingerprint="") == replace(now.card, fingerprint="")
    np.testing.assert_array_equal(before.train_rows, now.train_rows)


def test_the_day_of_the_year_is_told_where_a_whole_year_is_trained_on(tmp_path: Path) -> None:
    made = dataset(hours=400, rows=2, columns=3, step=24)
    for holdout, season in ((0.05, True), (0.2, False)):  # 380 and 320 days to train on, of 400
        data = opened(made, tmp_path / "x.nc", holdout, past=1, leads=(24.0,))
        assert data.card.fields.season == season and ("sine of day of the year" in data.card.vector) == season
    data = opened(made, tmp_path / "x.nc", 0.05, past=1, leads=(24.0,))
    record = read_record(tmp_path / "x.nc")
    rows = np.array([0, 100, 200])
    then = made.time.values[rows] + np.timedelta64(24, "h")
    days = (then - then.astype("datetime64[Y]")) / np.timedelta64(1, "D")  # from 0 on the first of January
    told = dict(zip(data.card.vector, Context(record, data.card.fields).vector(rows, np.full(3, 24.0)).T, strict=True))
    np.testing.assert_allclose(told["sine of day of the year"], np.sin(2 * np.pi * days / 365.2425), atol=1e-6)
    np.testing.assert_allclose(told["cosine of day of the year"], np.cos(2 * np.pi * days / 365.2425), atol=1e-6)


def test_a_model_without_gaps_is_not_given_missing_entries(tmp_path: Path) -> None:
    spotted = holed(dataset(hours=96), (60, 2, 2))
    record = read_record(written(spotted, tmp_path / "x.nc"))
    about = replace(record.about, past=2, leads=(6.0,), days=1, held="2019-03-03")
    for start in (
        "2019-03-03T12",
        "2019-03-03T13",
        "2019-03-04T06",
        "2019-03-04T12",
    ):  # itself, the past, the day before at the lead, and then
        with pytest.raises(DataError, match=r"entries are missing \(NaN\) at 2019-03-03T12:00:00.*trained on fields without gaps"):
            forecasting.starts(record, about, [start], 6.0, "x.nc")
    assert forecasting.starts(record, about, ["2019-03-03T11"], 6.0, "x.nc").tolist() == [59]
    assert forecasting.starts(record, about, ["held-out"], 6.0, "x.nc").tolist() == [54, 66, 72, 90]  # every 6 hours but 60, 78, 84
    assert forecasting.starts(record, replace(about, gaps=True), ["2019-03-03T12"], 6.0, "x.nc").tolist() == [60]


def test_climatology_is_of_the_hour_that_is_forecast(tmp_path: Path) -> None:
    """Fields that say what hour it is, and little else."""
    made = dataset(hours=144)
    hour = made.time.dt.hour.values.astype(np.float32)[:, None, None] + 0.01 * RNG.normal(size=made.t2m.shape).astype(np.float32)
    record = read_record(written(made.assign(t2m=made.t2m.copy(data=hour)), tmp_path / "x.nc"))
    about = replace(record.about, trained=("2019-03-01T00:00:00", "2019-03-04T23:00:00"))
    rows = np.array([100, 107, 120])
    found = forecasting.scores(record, about, rows, (5.0,), np.zeros((3, 1, 2, 1, 5, 6), np.float32))["5"]
    assert found["climatology"].members == 4 and found["climatology"].mae < 0.02 and found["persistence"].mae > 4.0


def test_climatology_is_of_the_newest_days_as_many_for_every_hour(tmp_path: Path) -> None:
    """Fields that say which day it is: four days have 5 o'clock, three have 20 o'clock."""
    made = dataset(hours=144)
    day = np.broadcast_to(made.time.dt.day.values.astype(np.float32)[:, None, None], made.t2m.shape)
    record = read_record(written(made.assign(t2m=made.t2m.copy(data=day)), tmp_path / "x.nc"))
    about = replace(record.about, trained=("2019-03-01T00:00:00", "2019-03-04T12:00:00"))
    rows = np.array([96, 111])  # truths on day 5
    found = forecasting.scores(record, about, rows, (5.0,), np.zeros((2, 1, 2, 1, 5, 6), np.float32))["5"]["climatology"]
    assert found.members == 3
    assert found.mae == pytest.approx((2.0 + 3.0) / 2)  # of days 2 to 4, and of 1 to 3


def test_the_expected_field_knows_the_change_of_the_days_before(tmp_path: Path) -> None:
    """Fields that change by the hour of the day and drift by a tenth a day; a model of no days before has no such rival."""
    made = dataset(hours=144)
    hour = 10.0 * np.sin(made.time.dt.hour.values / 24.0 * 2.0 * np.pi) + 0.1 * made.time.dt.day.values
    fields = np.broadcast_to(hour.astype(np.float32)[:, None, None], made.t2m.shape)
    record = read_record(written(made.assign(t2m=made.t2m.copy(data=fields)), tmp_path / "x.nc"))
    rows, members = np.array([100, 107]), np.zeros((2, 1, 2, 1, 5, 6), np.float32)
    found = forecasting.scores(record, replace(record.about, days=2), rows, (5.0,), members)["5"]
    assert found["expected"].members == 1 and found["expected"].mae < 1e-4 and found["persistence"].mae > 1.0
    assert "expected" not in forecasting.scores(record, replace(record.about, days=0), rows, (5.0,), members)["5"]


def test_all_systems_are_scored_on_the_same_entries(tmp_path: Path) -> None:
    """Persistence lacks the upper half, where all are wrong by 10; the lower half alone counts, for each of them."""
    made = holed(dataset(hours=144), (100, slice(0, 2), slice(None)), (30, 4, 4))
    record = read_record(written(made, tmp_path / "x.nc"))
    about = replace(record.about, trained=("2019-03-01T00:00:00", "2019-03-04T23:00:00"))
    members = record.values[[106]][None, None].repeat(2, axis=2)
    members[:, :, :, :, :2] += 10.0
    found = forecasting.scores(record, about, np.array([100]), (6.0,), members)["6"]
    assert found["model"].crps == 0.0
    assert found["climatology"].members == 4  # at 10 o'clock
    assert forecasting.climatology(record, about, 6.0).shape[0] == 3  # the day that lacks an entry the others have is left out


def test_each_member_is_drawn_for_its_own_start_and_lead(tmp_path: Path) -> None:
    """What `ensemble` tells a model is what training told it of the same window, and what it makes of the answer the field itself."""
    data = opened(dataset(hours=168), tmp_path / "x.nc", past=2, leads=(1.0, 12.0), days=2)
    about, windows, record = data.card.fields, data.samples.windows, data.samples.given.record
    assert about.scales[1] > 1.2 * about.scales[0]
    rows = np.unique(windows.start)[[3, 40]]
    places = [[int(np.flatnonzero((windows.start == row) & (windows.lead == lead))[0]) for lead in (0, 1)] for row in rows]
    told: list[int] = []

    def draw(first: int, size: int, cond: dict[str, Any]) -> Any:
        cases = [places[(first + k) // 6][(first + k) % 6 // 3] for k in range(size)]
        samples, wanted = data.batch(np.array(cases))
        for key in ("image", "vector"):
            np.testing.assert_allclose(cond[key], wanted[key], rtol=1e-5, atol=1e-5)
        told.extend(cases)
        return torch.from_numpy(samples)

    found = forecasting.ensemble(draw, record, about, rows, (1.0, 12.0), 3, batch=4)
    assert len(told) == 12
    for s, row in enumerate(rows):
        for k, lead in enumerate((1, 12)):
            np.testing.assert_allclose(found[s, k], record.values[[row + lead] * 3], atol=1e-3)


def test_scores_are_of_the_area_of_the_right_case_and_the_rank_of_the_truth(tmp_path: Path) -> None:
    """An error in the northernmost row counts by its cosine; a truth that is missing takes its own members with it; truths above all
    members have the last rank.
    """
    record = read_record(written(dataset(hours=144), tmp_path / "x.nc"))
    about = replace(record.about, trained=("2019-03-01T00:00:00", "2019-03-04T23:00:00"))
    rows = np.array([100, 102, 104])
    members = record.values[rows + 6][:, None, None].repeat(2, axis=2)
    members[..., 0, :] -= 1.0
    cosines = np.cos(np.deg2rad(np.linspace(60.0, 50.0, 5)))
    found = forecasting.scores(record, about, rows, (6.0,), members)["6"]["model"]
    assert found.mae == pytest.approx(cosines[0] / cosines.sum(), rel=1e-4)
    assert found.ranks[2] - found.ranks[0] == pytest.approx(cosines[0] / cosines.sum(), rel=1e-4)
    some = np.delete(np.arange(144), 108)
    holed_record = replace(record, **{name: getattr(record, name)[some] for name in ("values", "times", "seconds", "clock", "day")})
    members[1] += 50.0
    without = forecasting.scores(holed_record, about, rows, (6.0,), members)["6"]["model"]
    assert without.mae == pytest.approx(found.mae, rel=1e-4)
    moved = replace(record.about, rows=replace(record.about.rows, values=tuple(value + 1.0 for value in record.about.rows.values)))
    with pytest.raises(DataError, match="latitude: model: 5 from 61 to 51, file: 5 from 60 to 50"):
        forecasting.fits(record, moved, "x.nc")


def test_another_calendar_and_another_step_do_not_fit(tmp_path: Path) -> None:
    hourly, coarse = (read_record(written(dataset(hours=48, step=step), tmp_path / f"{step}.nc")) for step in (1, 3))
    about = replace(hourly.about, past=2, leads=(6.0,))
    assert forecasting.fits(hourly, about, "x.nc") is hourly
    with pytest.raises(DataError, match=r"calendar: model: noleap, file: (proleptic_gregorian|standard)"):
        forecasting.fits(hourly, replace(about, calendar="noleap"), "x.nc")
    with pytest.raises(DataError, match="step of time: model: 1 h, file: 3 h"):
        forecasting.fits(coarse, about, "x.nc")
    assert coarse.step == 3 * HOUR and forecasting.fits(coarse, replace(about, past=1), "x.nc") is coarse


def test_longitudes_are_the_same_whatever_turns_they_count(tmp_path: Path) -> None:
    """350 is -10; latitudes have no turns."""
    record = read_record(written(dataset(hours=48), tmp_path / "x.nc"))
    about = replace(record.about, past=1)
    for turn in (-360.0, 360.0):
        columns, rows = (replace(axis, values=tuple(value + turn for value in axis.values)) for axis in (about.columns, about.rows))
        assert forecasting.fits(record, replace(about, columns=columns), "x.nc") is record
        with pytest.raises(DataError, match="latitude"):
            forecasting.fits(record, replace(about, rows=rows), "x.nc")
    east = replace(about.columns, values=tuple(value + 0.5 for value in about.columns.values))
    with pytest.raises(DataError, match="longitude"):
        forecasting.fits(record, replace(about, columns=east), "x.nc")
