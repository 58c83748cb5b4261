"""What benchmarks keep in their folders, and what they say of it; the benchmarks themselves are run by hand."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="benchmarks are not installed with the package")


@pytest.fixture(autouse=True)
def _found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def test_a_folder_belongs_to_the_settings_it_was_begun_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without any it takes those of the call; what else the file holds is left alone."""
    begun, path = import_module("budget").begun, tmp_path / "asked.json"
    begun(path, {"channels": 32, "batch": 64})
    path.write_text(json.dumps({**json.loads(path.read_text()), "steps": 7}))
    begun(path, {"batch": 64, "channels": 32})
    assert json.loads(path.read_text()) == {"channels": 32, "batch": 64, "steps": 7}
    with pytest.raises(SystemExit) as ended:
        begun(path, {"channels": 48, "batch": 64})
    assert ended.value.code == 2 and "begun with channels 32, not 48; give" in capsys.readouterr().err


def test_peers_are_done_once_both_their_weights_have_samples_enough(tmp_path: Path) -> None:
    peers = import_module("cifar10_peers")

    def done(system: str, n: int) -> bool:
        return peers.done(system, 1e-3, 60.0, SimpleNamespace(folder=str(tmp_path), n=n))

    for system in ("ddpm", "diffusers"):
        np.save(tmp_path / f"{system}-0.001-60-samples.npy", np.zeros((50, 3), np.uint8))
        assert not done(system, 50)
        (tmp_path / f"{system}-0.001-60-run.json").write_text("{}")
    assert done("ddpm", 50) and not done("ddpm", 51) and not done("diffusers", 50)
    np.save(tmp_path / "diffusers-0.001-60-last.npy", np.zeros((40, 3), np.uint8))
    assert done("diffusers", 40) and not done("diffusers", 50)


@pytest.mark.parametrize(("used", "size", "code"), [(24.0, 10, 0), (25.5, 10, 1), (24.0, 2**20, 1)])
def test_a_sprint_that_took_too_long_says_so(used: float, size: int, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    found = {"minutes": 25.0, "minutes_used": used, "report_bytes": size}
    assert import_module("cifar10_sprint").told(found) == code
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1]) == found and ("25.5 minutes were used, 25 were given" in said.err) == (used > 25)


@pytest.mark.parametrize(("lowest", "floor", "scale"), [(0.5, 0.4, "log"), (-0.1, None, "linear"), (0.5, -0.1, "linear")])
def test_distances_below_zero_are_on_the_sprint_s_figure(
    lowest: float, floor: float | None, scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plt: Any = pytest.importorskip("matplotlib.pyplot")
    made: list[Any] = []
    plain = plt.subplots
    monkeypatch.setattr(plt, "subplots", lambda *args, **how: made.append(plain(*args, **how)) or made[-1])
    curve = [{"images": 1000 * k, "value": value, "low": value - 0.1, "high": value + 0.1} for k, value in ((1, 9.0), (2, lowest))]
    found = {"curve": curve, "curve_samples": 500, "floor": floor, "extractor": "own"}
    import_module("cifar10_sprint").figure(found, tmp_path / "sprint.png")
    assert made[0][1].get_yscale() == scale and (tmp_path / "sprint.png").is_file()
    plt.close(made[0][0])


def test_what_says_how_much_to_inflate_sees_nothing_of_the_held_out_days(tmp_path: Path) -> None:
    """The file ends before them, and is not written anew."""
    for library in ("xarray", "h5netcdf", "h5py"):
        pytest.importorskip(library)
    from ddpm.data import DataSettings, open_data
    from ddpm.data.field_opening import open_fields
    from ddpm.data.settings import FieldSettings
    from field_files import dataset, written

    path = written(dataset(), tmp_path / "x.nc")
    card = open_data(DataSettings(data=str(path), holdout=0.3, fields=FieldSettings(past=1, leads=(1.0,)))).card
    assert card.fields is not None and card.fields.held
    early = import_module("forecast").before(path, card.fields.held, tmp_path / "early.nc")
    with open_fields(path) as whole, open_fields(early) as part:
        assert part.time.values[-1] == np.datetime64(card.fields.held) - np.timedelta64(1, "h")
        np.testing.assert_array_equal(part.t2m.values, whole.t2m.values[: len(part.time)])
    written_at = early.stat().st_mtime_ns
    assert import_module("forecast").before(path, card.fields.held, early).stat().st_mtime_ns == written_at


def test_the_factor_of_inflation_is_of_the_geometric_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 / sqrt(0.9 0.4) by the ratios."""
    forecast = import_module("forecast")
    seen: list[Any] = []

    class Earlier:
        record, rows = None, None
        about = SimpleNamespace(leads=(1.0, 6.0), held="2019-03-20", units=("K",))

        def members(self, model: Any, seed: int, autocast: Any, members: int) -> str:
            return f"{members} of seed {seed}"

    monkeypatch.setattr(forecast, "before", lambda path, time, out: seen.append((path, time)) or out)
    monkeypatch.setattr(forecast, "Setting", lambda args, path: Earlier())
    monkeypatch.setattr(forecast, "trained", lambda setting, seed, steps, run, clock: seen.append((steps, run.name)) or (None, None))
    found = {lead: {"model": SimpleNamespace(ratio=ratio)} for lead, ratio in ((1.0, 0.9), (6.0, 0.4))}
    monkeypatch.setattr(forecast, "scores", lambda *given: seen.append(given[-1]) or found)
    monkeypatch.setattr(forecast, "table", lambda found, unit: "")
    whole = SimpleNamespace(path=Path("x.nc"), about=SimpleNamespace(held="2019-03-26"))
    factor = forecast.inflation(SimpleNamespace(folder=tmp_path, members=50), whole, 3, 435)
    assert factor == pytest.approx(1 / 0.6)
    assert seen == [(Path("x.nc"), "2019-03-26"), (435, "earlier-3"), "20 of seed 3"]
