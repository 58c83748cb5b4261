"""Settings: what is written comes back, and whatever is wrong is refused, all at once, with the key, the value and what is allowed."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm.config import Families, check, dump_toml, from_dict, setting, to_dict
from ddpm.errors import ConfigError
from ddpm.networks.config import MLPConfig, UNetConfig
from ddpm.training import FAMILIES as TRAINED
from ddpm.training import TrainConfig


class Curve:
    """A made-up family."""

    smooth: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Ramp(Curve):
    start: float = setting(1e-4, "first value", above=0, below=1)
    end: float = setting(0.02, "last value", above=0, below=1)

    def __post_init__(self) -> None:
        check(self, [f"end is {self.end}; it must be larger than start, {self.start}"] if self.end <= self.start else [])


@dataclass(frozen=True, kw_only=True)
class HalfWave(Curve):
    clip: float | None = setting(0.999, "largest value", above=0, below=1)


@dataclass(frozen=True, kw_only=True)
class Mixed(Curve):
    inner: Curve = setting(HalfWave(clip=0.5), "the curve inside")
    weights: tuple[float, ...] = setting((1.0,), "mixing weights", low=0)


@dataclass(frozen=True, kw_only=True)
class Source:
    name: str = setting("digits", "where the data are")
    size: tuple[int, ...] | None = setting(None, "side, or height x width", low=8, high=4096)
    folder: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Wide:
    width: int = setting(64, "channels", low=1, high=4096)


@dataclass(frozen=True, kw_only=True)
class Deep:
    depth: int = setting(4, "levels", low=1, high=12)


@dataclass(frozen=True, kw_only=True)
class Run:
    timesteps: int = setting(1000, "length of the chain", low=1, high=1_000_000)
    lr: float = setting(2e-4, "peak learning rate", above=0, high=1)
    batch: int = setting(128, "samples a step", low=1, high=65536)
    betas: tuple[float, float] = setting((0.9, 0.999), "momenta", low=0, below=1)
    flip: bool = setting(False, "mirror at random")
    precision: Literal["auto", "fp32", "bf16"] = setting("auto", "arithmetic")
    seed: int | Literal["random"] = setting(0, "seed", low=0)
    note: str = setting("", "free text")
    curve: Curve = setting(Ramp(end=0.05), "how fast")
    extra: Curve | None = setting(None, "a second curve")
    data: Source = setting(Source(), "the data")
    network: Wide | Deep = setting(Wide(), "the network")

    def problems(self) -> list[str]:
        """Made-up check across fields."""
        return [f"batch is {self.batch}; it must divide timesteps, {self.timesteps}"] if self.timesteps == 777 else []


FAMILIES: Families = {Curve: (Ramp, HalfWave, Mixed)}


def refusal(mapping: dict[str, Any], where: str = "", cls: type = Run) -> str:
    with pytest.raises(ConfigError) as caught:
        from_dict(cls, mapping, FAMILIES, where)
    assert caught.value.exit_code == 2
    return str(caught.value)


# --- what is written comes back ----------------------------------------------------------------------------------------------------------

inside = st.floats(1e-6, 0.9)
ramps = st.tuples(inside, inside).filter(lambda pair: pair[0] != pair[1]).map(lambda pair: Ramp(start=min(pair), end=max(pair)))
waves = st.builds(HalfWave, clip=st.none() | inside)
curves = st.recursive(ramps | waves, lambda inner: st.builds(Mixed, inner=inner, weights=st.lists(st.floats(0, 1e6)).map(tuple)))
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
sources = st.builds(
    Source,
    name=text,
    size=st.none() | st.lists(st.integers(8, 4096)).map(tuple),
    folder=st.none() | st.sampled_from([Path("a"), Path("/x/y z")]),
)
runs = st.builds(
    Run,
    timesteps=st.integers(1, 1_000_000).filter(lambda n: n != 777),
    lr=st.floats(1e-12, 1),
    betas=st.tuples(inside, inside),
    flip=st.booleans(),
    precision=st.sampled_from(["auto", "fp32", "bf16"]),
    seed=st.just("random") | st.integers(0, 2**63),
    note=text,
    curve=curves,
    extra=st.none() | curves,
    data=sources,
    network=st.builds(Wide, width=st.integers(1, 64)) | st.builds(Deep, depth=st.integers(1, 12)),
)


@settings(deadline=None)
@given(runs)
def test_round_trip(run: Run) -> None:
    plain = to_dict(run)
    assert from_dict(Run, plain, FAMILIES) == run
    assert from_dict(Run, json.loads(json.dumps(plain)), FAMILIES) == run


@settings(deadline=None)
@given(runs.filter(lambda run: run.note.lower() != "none"))
def test_toml_round_trip(run: Run) -> None:
    assert from_dict(Run, tomllib.loads(dump_toml(run)), FAMILIES) == run


def test_a_member_by_itself() -> None:
    curve = Mixed(inner=Ramp(), weights=(1.0, 2.0))
    plain = to_dict(curve, named=True)
    assert plain == {"name": "Mixed", "inner": {"name": "Ramp", "start": 1e-4, "end": 0.02}, "weights": [1.0, 2.0]}
    assert from_dict(Curve, plain, FAMILIES) == curve
    assert from_dict(Mixed, plain, FAMILIES) == curve
    assert "name" not in to_dict(curve)
    assert refusal({}, "x.json", Curve) == "x.json: missing setting 'name'; allowed: Ramp, HalfWave, Mixed"


@pytest.mark.parametrize("name", ["HalfWave", "halfwave", "half-wave", "half_wave", "HALF-WAVE"])
def test_names_of_members(name: str) -> None:
    assert from_dict(Run, {"curve": name}, FAMILIES).curve == HalfWave()
    assert from_dict(Run, {"curve": {"name": name, "clip": 0.1}}, FAMILIES).curve == HalfWave(clip=0.1)


def test_networks_go_by_what_they_are() -> None:
    """The word that every name of a family ends with may be left out."""
    for name in ("unet", "UNet", "unet-config", "UNetConfig"):
        assert from_dict(TrainConfig, {"network": {"name": name, "channels": 8}}, TRAINED).network == UNetConfig(channels=8)
    assert from_dict(TrainConfig, {"network": "mlp"}, TRAINED).network == MLPConfig()


def test_toml_explains_each_setting_and_knows_no_null() -> None:
    written = dump_toml(Run(extra=HalfWave(clip=None)))
    assert "# peak learning rate, > 0 and <= 1\nlr = 0.0002\n" in written
    assert '[extra]\nname = "HalfWave"\n# largest value, > 0 and < 1\nclip = "none"\n' in written
    assert "betas = [0.9, 0.999]" in written and "size" not in written


def test_unset_parts_keep_the_default_of_the_field() -> None:
    assert from_dict(Run, {"curve": {"start": 0.01}}, FAMILIES).curve == Ramp(start=0.01, end=0.05)
    assert from_dict(Run, {"curve": {"name": "mixed"}}, FAMILIES).curve == Mixed()
    assert from_dict(Run, {"curve": {"name": "mixed", "inner": {"clip": 0.25}}}, FAMILIES).curve == Mixed(inner=HalfWave(clip=0.25))


def test_objects_may_stand_for_tables() -> None:
    assert from_dict(Run, {"curve": HalfWave(clip=0.3), "data": Source(size=(9,))}, FAMILIES) == Run(
        curve=HalfWave(clip=0.3), data=Source(size=(9,))
    )


@pytest.mark.parametrize(
    ("key", "typed", "expected"),
    [
        ("lr", "1e-4", 1e-4),
        ("timesteps", "1e3", 1000),
        ("timesteps", "1_000", 1000),
        ("flip", "true", True),
        ("flip", "False", False),
        ("betas", "0.5,0.9", (0.5, 0.9)),
        ("precision", "BF16", "bf16"),
        ("seed", "random", "random"),
        ("seed", "7", 7),
        ("note", "7", "7"),
        ("extra", "none", None),
        ("network", "deep", Deep()),
    ],
)
def test_typed_values(key: str, typed: str, expected: object) -> None:
    assert getattr(from_dict(Run, {key: typed}, FAMILIES, text=True), key) == expected


@pytest.mark.parametrize(
    ("given", "size"), [(32, (32,)), ("32", (32,)), ("32x48", (32, 48)), ("32,48", (32, 48)), ([32, 48], (32, 48)), ("none", None)]
)
def test_sizes(given: object, size: object) -> None:
    assert from_dict(Source, {"size": given}).size == size
    assert not isinstance(given, str) or from_dict(Source, {"size": given}, text=True).size == size


def test_a_whole_number_is_a_number() -> None:
    lr = from_dict(Run, {"lr": 1}, FAMILIES).lr
    assert lr == 1.0 and isinstance(lr, float)


# --- test 34: unknown keys ---------------------------------------------------------------------------------------------------------------

TYPOS: list[tuple[dict[str, Any], str, str | None]] = [
    ({"timestep": 5}, "timestep", "timesteps"),
    ({"time_steps": 5}, "time_steps", "timesteps"),
    ({"Timesteps": 5}, "Timesteps", "timesteps"),
    ({"learning_rate": 1e-3}, "learning_rate", "lr"),  # as other libraries have it
    ({"xylophone": 1}, "xylophone", None),
    ({"ir": 1e-3}, "ir", "lr"),
    ({"batch-size": 4}, "batch-size", "batch"),
    ({"beta": [0.9, 0.9]}, "beta", "betas"),
    ({"flips": True}, "flips", "flip"),
    ({"precison": "auto"}, "precison", "precision"),
    ({"seeed": 1}, "seeed", "seed"),
    ({"notes": "x"}, "notes", "note"),
    ({"crve": "ramp"}, "crve", "curve"),
    ({"netwrok": "wide"}, "netwrok", "network"),
    ({"data": {"sise": 32}}, "data.sise", "data.size"),
    ({"data": {"nme": "x"}}, "data.nme", "data.name"),
    ({"curve": {"strt": 0.1}}, "curve.strt", "curve.start"),
    ({"curve": {"name": "halfwave", "clipp": 0.1}}, "curve.clipp", "curve.clip"),
    ({"curve": {"name": "mixed", "inner": {"klip": 0.1}}}, "curve.inner.klip", "curve.inner.clip"),
    ({"network": {"name": "deep", "deepth": 3}}, "network.deepth", "network.depth"),
    ({"data_size": 32}, "data_size", "data.size"),
]


@pytest.mark.parametrize("where", ["my.toml", "runs/a/config.json"])
@pytest.mark.parametrize(("mapping", "key", "near"), TYPOS)
def test_typos_in_files(mapping: dict[str, Any], key: str, near: str | None, where: str) -> None:
    message = refusal(mapping, where)
    assert message.startswith(f"{where}: unknown key '{key}'; " + (f"did you mean '{near}'?" if near else "known: timesteps, lr, "))


def test_a_setting_of_another_member() -> None:
    assert refusal({"curve": {"name": "ramp", "clip": 0.1}}) == "unknown key 'curve.clip'; Ramp does not have it, HalfWave does"


# --- test 35: bad values -----------------------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
BAD: list[tuple[str, list[tuple[dict[str, Any], str]], str]] = [  # key, mappings that break it with the value as shown, what is allowed
    (
        "timesteps",
        [({"timesteps": v}, s) for v, s in ((0, "0"), (-1, "-1"), (10**9, "1000000000"), (1.5, "1.5"), (1e3, "1000.0"), (True, "true"))]
        + [({"timesteps": v}, s) for v, s in (("1000", '"1000"'), (None, "null"), ([5], "[5]"), (NAN, "NaN"))],
        "a whole number >= 1 and <= 1000000",
    ),
    (
        "lr",
        [({"lr": v}, s) for v, s in ((0, "0"), (-1e-4, "-0.0001"), (2, "2"), (NAN, "NaN"), (INF, "Infinity"), (-INF, "-Infinity"))]
        + [({"lr": v}, s) for v, s in (("1e-4", '"1e-4"'), (False, "false"), ({"x": 1}, '{"x": 1}'), (10**400, "1000000"))],
        "a number > 0 and <= 1",
    ),
    ("batch", [({"batch": v}, s) for v, s in ((0, "0"), (10**9, "1000000000"), ("many", '"many"'))], "a whole number >= 1 and <= 65536"),
    (
        "betas",
        [({"betas": v}, s) for v, s in (([0.9], "[0.9]"), ([0.9, 1], "[0.9, 1]"), ([0.9, NAN], "[0.9, NaN]"), ("0.9,0.9", '"0.9,0.9"'))],
        "2 numbers each >= 0 and < 1",
    ),
    ("flip", [({"flip": v}, s) for v, s in (("yes", '"yes"'), (1, "1"), (None, "null"))], "true or false"),
    ("precision", [({"precision": v}, s) for v, s in (("bf61", '"bf61"; did you mean bf16?'), (16, "16"))], "auto, fp32 or bf16"),
    ("seed", [({"seed": v}, s) for v, s in ((-1, "-1"), ("rnd", '"rnd"'))], "a whole number >= 0, or random"),
    ("note", [({"note": 5}, "5")], "text"),
    ("curve", [({"curve": v}, s) for v, s in (("rmp", '"rmp"; did you mean Ramp?'), (5, "5"), (None, "null"))], "Ramp, HalfWave, Mixed"),
    ("curve.end", [({"curve": {"start": 0.5, "end": 0.1}}, "0.1")], "larger than start, 0.5"),
    ("curve.weights", [({"curve": {"name": "mixed", "weights": [1, -1]}}, "[1, -1] (entry 2)")], "numbers each >= 0"),
    ("curve.inner.clip", [({"curve": {"name": "mixed", "inner": {"clip": 1}}}, "1")], "a number > 0 and < 1, or none"),
    ("data.size", [({"data": {"size": [32, 7]}}, "[32, 7]")], "whole numbers each >= 8 and <= 4096"),
    ("data", [({"data": "photos"}, '"photos"')], "a table of name, size, folder"),
    ("network.depth", [({"network": {"name": "deep", "depth": 99}}, "99")], "a whole number >= 1 and <= 12"),
]
CASES = [(key, mapping, value, allowed) for key, mappings, allowed in BAD for mapping, value in mappings]


def test_forty_bad_values_are_forty() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize(("key", "mapping", "value", "allowed"), CASES)
def test_bad_values(key: str, mapping: dict[str, Any], value: str, allowed: str) -> None:
    message = refusal(mapping, "my.toml")
    assert message.startswith(f"my.toml: {key} is {value}")
    assert allowed in message and len(message.splitlines()) == 1 and len(message) < 250


def test_all_problems_in_one_message() -> None:
    mapping = {"timestep": 5, "lr": -1, "batch": 0, "data": {"size": 1, "x": 1}}
    mapping["curve"] = {"name": "mixed", "inner": {"klip": 1, "clip": 2}}
    assert [line.split(" is ")[0].split(";")[0] for line in refusal(mapping).splitlines()] == [
        *("unknown key 'timestep'", "lr", "batch", "unknown key 'curve.inner.klip'", "curve.inner.clip"),
        *("unknown key 'data.x'", "data.size"),
    ]


def test_checks_across_fields_are_heard_beside_bad_values() -> None:
    assert refusal({"timesteps": 777, "lr": 5}).splitlines()[-1] == "batch is 128; it must divide timesteps, 777"
    assert len(refusal({"timesteps": 777, "batch": 0}).splitlines()) == 1  # about a value that is itself refused: not heard


def test_settings_made_in_python_are_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"^start is 3; allowed: a number > 0 and < 1$"):
        Ramp(start=3)
    with pytest.raises(ConfigError, match=r"^end is 0.1; it must be larger than start, 0.5$"):
        Ramp(start=0.5, end=0.1)


def test_missing_settings() -> None:
    assert refusal({}, "a.toml", Needs) == "a.toml: missing setting 'length': how long"


@dataclass(frozen=True, kw_only=True)
class Needs:
    length: int = setting(help="how long", low=1)
