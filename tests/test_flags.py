"""Layers of settings from files and flags: what wins, what is listed, and whatever is wrong refused in one message."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from ddpm.config import Families, Layer, Parser, add_flags, flags_layer, from_dict, read_file, resolve, setting, tidy
from ddpm.errors import ConfigError


class Shape(ABC):
    @abstractmethod
    def area(self) -> float:
        """Of the made-up shape."""


@dataclass(frozen=True, kw_only=True)
class Circle(Shape):
    radius: float = setting(1.0, "from the centre to the rim", above=0)

    def area(self) -> float:
        return 3 * self.radius**2


@dataclass(frozen=True, kw_only=True)
class VPBox(Shape):
    width: float = setting(2.0, "left to right", above=0)
    height: float | None = setting(3.0, "100% of bottom to top", above=0)

    def __post_init__(self) -> None:
        if self.height is not None and self.height > 100 * self.width:
            raise ConfigError(f"height is {self.height}; it must be at most 100 times width, {self.width}")

    def area(self) -> float:
        return self.width * (self.height or 1)


@dataclass(frozen=True, kw_only=True)
class Ring(Shape):
    outer: Shape = setting(Circle(radius=2.0), "what a hole is cut into")
    width: float = setting(0.5, "rim", above=0)

    def area(self) -> float:
        return self.outer.area()


@dataclass(frozen=True, kw_only=True)
class Source:
    path: str = setting("digits", "folder or file", flag="data", group="data")
    size: tuple[int, ...] | None = setting(None, "side", low=1, high=512, group="data")
    flip: bool = setting(False, "mirror at random", group="data")


@dataclass(frozen=True, kw_only=True)
class Limits:
    batch_size: int = setting(128, "samples a step", low=1, high=4096, short="b")


@dataclass(frozen=True, kw_only=True)
class Run:
    steps: int = setting(3000, "updates", low=1, high=10**6)
    lr: float = setting(2e-4, "peak learning rate", above=0, high=1)
    shift: tuple[float, ...] = setting((), "one number a channel")
    precision: Literal["auto", "bf16"] = setting("auto", "arithmetic")
    compile: bool | None = setting(None, "compile the network", advanced=True)
    shape: Shape = setting(Circle(radius=5.0), "the shape")
    second: Shape | None = setting(None, "another shape")
    source: Source = setting(Source(), flat=True)
    limits: Limits = setting(Limits())


FAMILIES: Families = {Shape: (Circle, VPBox, Ring)}


def parser() -> Parser:
    made = Parser(prog="made-up")
    add_flags(made, Run, FAMILIES)
    return made


def run(line: str, *layers: Layer) -> Run:
    made = parser()
    args, extra = made.parse_known_args(tidy(line.split()))
    return resolve(Run, [*layers, flags_layer(args, extra, made, Run, FAMILIES)], FAMILIES)


def problems(line: str, *layers: Layer) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        run(line, *layers)
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", Run()),
        ("--steps 5 --lr=1e-3", Run(steps=5, lr=1e-3)),
        ("--steps 5 --steps 6", Run(steps=6)),
        ("--shape vp-box --shape.height none", Run(shape=VPBox(height=None))),
        ("--shape.radius 3", Run(shape=Circle(radius=3.0))),
        ("--shape circle", Run(shape=Circle(radius=5.0))),
        ("--shape.width 3 --shape ring", Run(shape=Ring(width=3.0))),
        ("--shape ring --shape.outer vpbox --shape.outer.width 7", Run(shape=Ring(outer=VPBox(width=7.0)))),
        ("--second ring --second.outer.radius 4", Run(second=Ring(outer=Circle(radius=4.0)))),
        ("--second none", Run()),
        ("--data photos --size 32x48 --flip", Run(source=Source(path="photos", size=(32, 48), flip=True))),
        ("--flip --no-flip --compile yes", Run(compile=True)),
        ("--limits.batch_size 4", Run(limits=Limits(batch_size=4))),
        ("--limits.batch-size 4", Run(limits=Limits(batch_size=4))),
        ("-b 7", Run(limits=Limits(batch_size=7))),
        ("--shift -1e-3,2", Run(shift=(-1e-3, 2.0))),
        ("--shift=-1,-2 --precision BF16", Run(shift=(-1.0, -2.0), precision="bf16")),
    ],
)
def test_flags(line: str, expected: Run) -> None:
    assert run(line) == expected


def test_the_order_of_layers() -> None:
    recipe = Layer("recipe", {"lr": 0.1, "steps": 7, "shape": {"name": "vpbox", "width": 9}})
    assert run("--lr 0.5", recipe) == Run(lr=0.5, steps=7, shape=VPBox(width=9))
    assert run("--shape.height 5", recipe).shape == VPBox(width=9, height=5)
    assert run("--shape ring", recipe).shape == Ring()  # the box's width is not the ring's


TYPOS = {
    "--stpes 5": "--steps",
    "--step=5": "--steps",
    "--Steps 5": "--steps",
    "--precison auto": "--precision",
    "--lr_ 5": "--lr",
    "--no-filp": "--no-flip",
    "--flips": "--flip",
    "--sise 5": "--size",
    "--radius 5": "--shape.radius",
    "--batch-size 4": "--limits.batch-size",
    "--batch_size=4": "--limits.batch-size",
    "--shape.radios 5": "--shape.radius",
    "--shape-radius 5": "--shape.radius",
    "--shap circle": "--shape",
    "--secnod ring": "--second",
    "--second.outer.radus 4": "--second.outer.radius",
    "--dat photos": "--data",
    "--limits.batchsize 3": "--limits.batch-size",
    "--comple yes": "--compile",
    "--hepl": "--help",
}


@pytest.mark.parametrize("line", TYPOS)
def test_typos_in_flags(line: str) -> None:
    name = tidy([line.split()[0].split("=")[0]])[0]
    assert problems(line) == [f"unknown flag '{name}'; did you mean '{TYPOS[line]}'?"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--steps 0", "--steps is 0; allowed: a whole number >= 1 and <= 1000000"),
        ("--steps 1.5", "--steps is 1.5; allowed: a whole number >= 1 and <= 1000000"),
        ("--steps 1e9", "--steps is 1e9; allowed: a whole number >= 1 and <= 1000000"),
        ("--steps " + "9" * 5000, "--steps is 999"),
        ("--lr nan", "--lr is nan (not finite); allowed: a number > 0 and <= 1"),
        ("--lr -inf", "--lr is -inf (not finite); allowed: a number > 0 and <= 1"),
        ("--lr -1e-4", "--lr is -1e-4; allowed: a number > 0 and <= 1"),
        ("--lr=", '--lr is ""; allowed: a number > 0 and <= 1'),
        ("--precision bf61", "--precision is bf61; did you mean bf16? allowed: auto or bf16"),
        ("--size 32x0", "--size is 32x0 (entry 2); allowed: whole numbers each >= 1 and <= 512, separated by commas, or none"),
        ("--size 32x", "--size is 32x (entry 2); allowed: whole numbers each >= 1 and <= 512, separated by commas, or none"),
        ("--compile maybe", "--compile is maybe; allowed: true or false, or none"),
        ("--shape circel", "--shape is circel; did you mean Circle? allowed: Circle, VPBox, Ring"),
        ("--second sphere", "--second is sphere; allowed: Circle, VPBox, Ring, or none"),
        ("--shape vpbox --shape.height -1", "--shape.height is -1; allowed: a number > 0, or none"),
        ("--shape vpbox --shape.height 900", "--shape.height is 900.0; it must be at most 100 times width, 2.0"),
        ("--shape circle --shape.height 3", "unknown flag '--shape.height'; Circle does not have it, VPBox does"),
        ("-b 0", "--limits.batch-size is 0; allowed: a whole number >= 1 and <= 4096"),
        ("--shift 1 2", "unexpected argument '2'; lists are written with commas and no spaces, 1,2,2"),
        ("--flip false", "unexpected argument 'false'; a switch takes no value: --flip is on, --no-flip off"),
        ("--lr", "argument --lr: expected one argument; see made-up --help"),
    ],
)
def test_bad_flags(line: str, message: str) -> None:
    (found,) = problems(line)
    assert found.startswith(message) and len(found) < 200


def test_all_problems_of_all_layers_in_one_message() -> None:
    found = problems(
        "--lr -1 --stpes 5 --shape ring --shape.outer.radius 0 stray", Layer("my.toml", {"steps": 0, "sorce": {}, "limits": {"batch": 1}})
    )
    assert [line.split(" is ")[0].split(";")[0] for line in found] == [
        *("unknown flag '--stpes'", "unexpected argument 'stray'", "my.toml: unknown key 'sorce'", "my.toml: steps", "--lr"),
        *("--shape.outer.radius", "my.toml: unknown key 'limits.batch'"),
    ]


def test_help_says_defaults_and_ranges_and_hides_the_members_settings() -> None:
    made = parser()
    text = " ".join(made.format_help().split())
    assert "--steps N updates (default 3000, >= 1 and <= 1000000)" in text
    assert "--data TEXT folder or file (default digits)" in text
    assert "--flip, --no-flip mirror at random (default off)" in text
    assert "--precision {auto,bf16} arithmetic (default auto)" in text
    assert "--shape NAME the shape (default Circle, one of Circle, VPBox, Ring)" in text
    assert "-b N, --limits.batch-size N samples a step" in text
    options = text.split("options:")[1]
    assert "--shape.radius" not in options and "--compile" not in options and "--help-all" in options


def test_help_all_shows_every_member(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["--help-all"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Circle: from the centre to the rim (default 5.0, > 0)" in text  # of the default circle, not of any
    assert "VPBox: left to right (default 2.0, > 0); Ring: rim (default 0.5, > 0)" in text
    assert "100% of bottom to top (default 3.0, > 0, or none)" in text
    assert "--compile" in text and "--second.outer NAME" in text
    assert "Circle: from the centre to the rim (default 2.0" not in text  # a shape in a shape is explained once


def test_mistakes_of_the_program_are_not_blamed_on_the_user() -> None:
    @dataclass(frozen=True)
    class Twice:
        size: int = 1
        source: Source = setting(Source(), flat=True)

    Twice.__annotations__ = {"size": int, "source": Source}
    with pytest.raises(TypeError, match="--size would set size and source.size"):
        add_flags(Parser(), Twice)
    with pytest.raises(TypeError, match="Shape is abstract; list its members"):
        from_dict(Run, {"shape": "circle"})


def test_files(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("lr = 0.1\n[shape]\nname = 'ring'\n", encoding="utf-8")
    (tmp_path / "my.json").write_text('{"lr": 0.1, "shape": {"name": "ring"}}', encoding="utf-8")
    for name in ("my.toml", "my.json"):
        assert resolve(Run, [read_file(tmp_path / name)], FAMILIES) == Run(lr=0.1, shape=Ring())


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("lr = 0.1\nbatch = = 3\n", encoding="utf-8")
    (tmp_path / "my.json").write_text("[1]", encoding="utf-8")
    (tmp_path / "odd.toml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder").mkdir()
    expected = {
        "my2.toml": r"no such file; did you mean .*my\.toml\?",
        "my.toml": "line 2",
        "my.json": "expected a table",
        "odd.toml": "UTF-8",
        "folder": "cannot be read",
    }
    for name, message in expected.items():
        with pytest.raises(ConfigError, match=rf"{name}: .*{message}"):
            read_file(tmp_path / name)
