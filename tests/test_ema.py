"""Averages of the weights: what they are, kept on the way, and made afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddpm.config import dump_toml, from_dict, read_file, resolve, to_dict
from ddpm.data.dataset import Dataset
from ddpm.errors import CheckpointError, ConfigError, DiskError
from ddpm.training import TrainConfig, load, run
from ddpm.training.averaging.ema import PowerEMA, exponent, spread
from ddpm.training.averaging.posthoc import Fit, Profile, combine, fit, inner, search, within_reach
from ddpm.training.averaging.snapshots import drop_after, kept, save_snapshot
from ddpm.training.checkpoints import checkpoint
from ddpm.training.checkpoints.checkpoint import to_stderr
from ddpm.training.config import FAMILIES
from ddpm.training.distributed.world import World
from small_runs import digests, held, quietly, settings, table

WIDTHS = (0.05, 0.1)


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2, 0.27])
def test_width_and_exponent_are_inverses(width: float) -> None:
    assert spread(exponent(width)) == pytest.approx(width, rel=1e-10)
    assert exponent(spread(3.0)) == pytest.approx(3.0, rel=1e-10)


@pytest.mark.parametrize("first", [Profile(40, 0.05), Profile(100, 0.25)])
@pytest.mark.parametrize("second", [Profile(40, 0.1), Profile(100, 0.02), Profile(77, 0.05)])
def test_products_of_profiles_are_their_integrals(first: Profile, second: Profile) -> None:
    """Gauss-Legendre on pieces of [0, the earlier end]."""
    edges = np.linspace(0.0, min(first.end, second.end), 65)
    nodes, weights = np.polynomial.legendre.leggauss(24)
    t = ((edges[1:] + edges[:-1])[:, None] + np.diff(edges)[:, None] * nodes) / 2

    def profile(one: Profile) -> np.ndarray:
        gamma = exponent(one.width)
        return (gamma + 1.0) / one.end * (t / one.end) ** gamma

    integral = (profile(first) * profile(second) * weights * np.diff(edges)[:, None] / 2).sum()
    assert inner(first, second) == pytest.approx(integral, rel=1e-10) == inner(second, first)


# --- a walk of the weights ----------------------------------------------------------------------------------------------------------------

STEPS = 960


def walk() -> np.ndarray:
    """Weights (STEPS, 200) that drift, fall towards a place, and shake, as those of a run do; float64."""
    rng = np.random.default_rng(0)
    place = rng.normal(size=200) * (1.0 - np.exp(-np.arange(1, STEPS + 1) / 300.0))[:, None]
    return place + 0.02 * rng.normal(size=(STEPS, 200)).cumsum(0) + 0.1 * rng.normal(size=(STEPS, 200))


@pytest.fixture(scope="module")
def averages() -> dict[Profile, Tensor]:
    """The average of every width after every step of the walk."""
    module = nn.ParameterList([nn.Parameter(torch.zeros(200, dtype=torch.float64))])
    tracked = [PowerEMA(module, width) for width in (*WIDTHS, 0.03, 0.07, 0.15)]
    found: dict[Profile, Tensor] = {}
    for step, value in enumerate(walk(), start=1):
        module[0].data.copy_(torch.from_numpy(value))
        for one in tracked:
            one.update(module, step)
            found[Profile(step, one.width)] = one.weights["0"].clone()
    return found


def test_an_average_is_the_sum_of_its_profile(averages: dict[Profile, Tensor]) -> None:
    """Step i counts by the integral of the profile over [i-1, i]."""
    for end in (1, 2, 57, STEPS):
        for width in (*WIDTHS, 0.15):
            shares = np.diff((np.arange(end + 1) / end) ** (exponent(width) + 1.0))
            assert np.allclose(averages[Profile(end, width)].numpy(), shares @ walk()[:end], rtol=0, atol=1e-12)


def made(averages: dict[Profile, Tensor], every: int, width: float, widths: Sequence[float] = WIDTHS) -> tuple[Tensor, Fit]:
    """The average of a width at the end, from snapshots of `widths` every so many steps."""
    profiles = [Profile(end, one) for end in range(every, STEPS + 1, every) for one in widths]
    found = fit(profiles, Profile(STEPS, width))
    read = [lambda profile=profile: {"w": averages[profile]} for profile in profiles]
    return combine(read, found.coefficients)["w"], found


@pytest.mark.parametrize("width", [0.03, 0.07, 0.15])
def test_an_average_made_afterwards_is_the_one_tracked(width: float, averages: dict[Profile, Tensor]) -> None:
    """Errors are shares of how far that average is from the nearest that was kept."""
    exact = averages[Profile(STEPS, width)]
    apart = min((exact - averages[Profile(STEPS, one)]).norm().item() for one in WIDTHS)
    errors, profile_errors = [], []
    for every in (160, 80, 40, 20, 10):
        weights, found = made(averages, every, width)
        assert found.coefficients.sum() == pytest.approx(1.0, abs=1e-9)
        errors.append((weights - exact).norm().item() / apart)
        profile_errors.append(found.error)
    for coarse, fine in pairwise(errors):
        assert fine < 0.7 * coarse
    assert errors[-1] < 0.02 and profile_errors == sorted(profile_errors, reverse=True)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_tracked_length_comes_back_from_its_last_snapshot(width: float, averages: dict[Profile, Tensor]) -> None:
    weights, found = made(averages, 30, width)
    wanted = np.array([profile == (STEPS, width) for profile in [(e, w) for e in range(30, STEPS + 1, 30) for w in WIDTHS]], float)
    assert np.allclose(found.coefficients, wanted, rtol=0, atol=1e-12) and found.error < 1e-7
    assert (weights - averages[Profile(STEPS, width)]).abs().max() < 1e-12


def test_no_other_combination_is_nearer() -> None:
    profiles, wanted = [Profile(end, width) for end in (20, 40, 60) for width in WIDTHS], Profile(60, 0.07)
    best, norm = fit(profiles, wanted), inner(wanted, wanted)
    rng = np.random.default_rng(0)
    for _ in range(20):
        change = rng.normal(size=6)
        other = best.coefficients + 1e-3 * (change - change.mean())
        products = [inner(one, wanted) for one in profiles]
        square = norm - 2 * other @ products + other @ [[inner(a, b) for b in profiles] for a in profiles] @ other
        assert np.sqrt(square / norm) > best.error


def test_what_can_be_made() -> None:
    two = [Profile(end, width) for end in range(30, 901, 30) for width in WIDTHS]
    low, high = within_reach(two, 900) or (0.0, 0.0)
    assert 0.01 < low < 0.02 and high > 0.25
    assert fit(two, Profile(900, 0.5 * low)).error > 0.1
    alone = within_reach([Profile(900, 0.05)], 900)
    assert alone is None or alone[1] / alone[0] < 1.25


def test_the_search_finds_a_minimum_and_asks_for_no_width_twice() -> None:
    asked: list[float] = []

    def score(width: float) -> float:
        asked.append(width)
        return (np.log(width / 0.083)) ** 2

    assert search(score, 0.02, 0.25) == pytest.approx(0.083, rel=0.05)
    assert len(asked) == len(set(asked)) <= 15 and all(round(width, 3) == width for width in asked)


# --- settings -----------------------------------------------------------------------------------------------------------------------------


def test_one_width_is_written_as_before_and_several_as_a_list(tmp_path: Path) -> None:
    one, two = TrainConfig(), TrainConfig(ema=WIDTHS)
    assert to_dict(one)["ema"] == 0.05 and to_dict(two)["ema"] == [0.05, 0.1]
    assert TrainConfig(ema=(0.05,)) == one and (one.widths, two.widths) == ((0.05,), WIDTHS)
    for config in (one, two):
        (tmp_path / "config.toml").write_text(dump_toml(config), encoding="utf-8")
        assert resolve(TrainConfig, [read_file(tmp_path / "config.toml")], FAMILIES) == config
        assert from_dict(TrainConfig, to_dict(config), FAMILIES) == config


@pytest.mark.parametrize(
    ("ema", "says"), [((), "ema: empty"), ((0.05, 0.0501), "0.050, 0.050; give one"), ((0.05, 0.3), "each > 0 and < 0.28")]
)
def test_widths_that_cannot_be_told_apart_are_refused(ema: tuple[float, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TrainConfig(ema=ema)


# --- runs ---------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data() -> Dataset:
    return table()


@pytest.fixture(autouse=True)
def _no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "loss_figure", lambda folder: None)


def changes(**more: object) -> dict[str, object]:
    return {"steps": 24, "ema": WIDTHS, "snapshots": 4, "checkpoint_every": 6, "keep": 9, **more}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, data: Dataset) -> Path:
    out = tmp_path_factory.mktemp("straight")
    quietly(settings(out, **changes()), data=data)
    return out


def every_file(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted((run / "snapshots").rglob("*.*")) if path.is_file()}


def test_several_widths_are_saved_each_as_if_alone(straight: Path, tmp_path: Path, data: Dataset) -> None:
    both = digests(straight)
    for width in WIDTHS:
        quietly(settings(tmp_path / str(width), steps=24, ema=width), data=data)
        alone = digests(tmp_path / str(width))
        assert alone.items() <= both.items() and not (tmp_path / str(width) / "snapshots").exists()
    assert {name.split("/")[0] for name in both} == {"model", "ema-0.050", "ema-0.100", "optimizer", "state"}


def test_load_takes_the_first_or_the_one_named(straight: Path, tmp_path: Path, data: Dataset) -> None:
    first, named, raw = load(straight), load(straight, weights="ema-0.100"), load(straight, weights="raw")
    name = next(name for name, _ in first.named_parameters())
    for model, group in ((first, "ema-0.050"), (named, "ema-0.100"), (raw, "model")):
        assert torch.equal(model.state_dict()[name], held(straight).tensors(group)[name])
    quietly(settings(tmp_path, steps=3, ema=(0.1, 0.05)), data=data)
    assert torch.equal(load(tmp_path).state_dict()[name], held(tmp_path).tensors("ema-0.100")[name])
    with pytest.raises(ConfigError, match=r"got 'ema-0\.200'; allowed for .*: ema, raw, ema-0\.050, ema-0\.100\."):
        load(straight, weights="ema-0.200")


@pytest.mark.parametrize("step", [6, 12, 18])
def test_a_resumed_run_keeps_the_same_snapshots(step: int, straight: Path, tmp_path: Path, data: Dataset) -> None:
    """Left at a checkpoint, with the snapshots of the steps it will do again."""
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    for path in out.glob("step-*"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    later = out / "snapshots" / "step-0000024" / "ema-0.050.safetensors"
    later.write_bytes(b"of another life")
    (out / "snapshots" / "step-0000020.tmp-0123abcd").mkdir()
    quietly(settings(out, **changes()), data=data)
    assert digests(out) == digests(straight) and every_file(out) == every_file(straight)
    assert sorted(path.name for path in (straight / "snapshots").glob("step-*")) == [f"step-{step:07d}" for step in range(4, 25, 4)]


def test_a_run_that_resumes_drops_the_snapshots_of_steps_it_has_not_done(straight: Path, tmp_path: Path, data: Dataset) -> None:
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    for path in out.glob("step-*"):
        if int(path.name[5:]) > 12:
            shutil.rmtree(path)
    quietly(settings(out, **changes(steps=14)), data=data)  # would not come by step 16 again
    assert sorted(path.name for path in (out / "snapshots").glob("step-*")) == [f"step-{step:07d}" for step in (4, 8, 12)]


def test_snapshots_after_the_step_resumed_from_go(straight: Path, tmp_path: Path) -> None:
    shutil.copytree(straight / "snapshots", tmp_path / "snapshots")
    said: list[str] = []
    assert drop_after(tmp_path, 13, said.append) == 3 and said == ["removed 3 snapshots after step 13; the run makes them again"]
    assert [path.name for path in sorted((tmp_path / "snapshots").glob("step-*"))] == ["step-0000004", "step-0000008", "step-0000012"]
    assert drop_after(tmp_path, 13, said.append) == 0 == drop_after(tmp_path / "none", 0, said.append)


def test_a_damaged_snapshot_is_told_and_left_out(straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    file, said = out / "snapshots" / "step-0000008" / "ema-0.100.safetensors", list[str]()
    names = [name for name, _ in load(out).named_parameters()]
    assert len(kept(held(out), names, said.append)) == 12 and not said
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    found = kept(held(out), names, said.append)
    assert len(found) == 10 and all(one.profile.end != 8 for one in found) and len(said) == 1 and "fails SHA-256" in said[0]
    assert {one.profile.end for one in kept(held(out, 12), names, to_stderr)} == {4, 12}
    with pytest.raises(CheckpointError, match="lacks 1 of the model's tensors, other first"):
        kept(held(out), ["other"], said.append)[0].read()


def test_a_disk_that_is_full_is_told_and_leaves_the_run_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint.storage, "free_space", lambda folder: 0)
    module = nn.Linear(3, 3)
    with pytest.raises(DiskError, match=r"snapshot of step 4 in .*: No space left on device\. The run's checkpoints are intact"):
        save_snapshot(tmp_path, 4, 4, [PowerEMA(module, 0.05)], print, World())
    assert not list((tmp_path / "snapshots").glob("step-*"))
