"""What a field of a settings class says about itself: help, legal range, flag; and what its annotation means."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Union


class Preset(NamedTuple):
    """A member of a family with settings of its own, under a name of its own."""

    name: str
    value: Any


Families = Mapping[type, tuple["type | Preset", ...]]
"""The members of each family, keyed by the base class that settings are annotated with: `{Schedule: (Linear, Cosine)}`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """The legal values of a number, or of every entry of a tuple of numbers; None means no limit on that side."""

    low: float | None = None  # x >= low
    high: float | None = None  # x <= high
    above: float | None = None  # x > above
    below: float | None = None  # x < below

    def allows(self, x: float) -> bool:
        """Whether `x` lies inside; NaN never does."""
        return (
            (self.low is None or x >= self.low)
            and (self.high is None or x <= self.high)
            and (self.above is None or x > self.above)
            and (self.below is None or x < self.below)
        )

    def __str__(self) -> str:
        """The range in words, `> 0 and <= 1`; empty where there is no limit."""
        sides = ((">=", self.low), (">", self.above), ("<=", self.high), ("<", self.below))
        return " and ".join(f"{sign} {int(limit) if limit == int(limit) else limit}" for sign, limit in sides if limit is not None)


def setting(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    group: str | None = None,
    short: str | None = None,
    flag: str | None = None,
    flat: bool = False,
    advanced: bool = False,
    repeat: bool = False,
    unset: str = "none",
    inherits: str = "",
    filled: bool = False,
) -> Any:
    """A dataclass field whose help and legal range are written once, for files, flags, `--help` and Python alike.

    Args:
        default: the value when nothing is said; left out, the setting is required.
        help: one line, without the default and the range: those are added.
        low: smallest legal value (`>=`); on a tuple, of each entry. Likewise `high` (`<=`), `above` (`>`), `below` (`<`).
        group: heading under which `--help` lists the flag.
        short: one-letter flag, `"n"` for `-n`.
        flag: name of the flag where it differs from the field, `"data"` for `--data`.
        flat: the fields of this nested dataclass become flags without a prefix: `--size`, not `--data.size`.
        advanced: listed by `--help-all` only.
        repeat: of a tuple of texts: the flag is given once for each, so that they may hold commas.
        unset: the word for None in files and flags.
        inherits: of a nested dataclass: where its values come from when nothing is said, "the run", instead of its defaults.
        filled: the program's own to fill in: kept in files, and no flag.
    """
    limits = Range(low=low, high=high, above=above, below=below)
    about = {"help": help, "range": limits, "group": group, "short": short, "flag": flag, "flat": flat, "advanced": advanced}
    about |= {"repeat": repeat, "unset": unset, "inherits": inherits, "filled": filled}
    return dataclasses.field(default=default, metadata=about)


def settings_of(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a dataclass that its constructor takes, by name, in order."""
    return {f.name: f for f in dataclasses.fields(cls) if f.init}


def hints_of(cls: type) -> dict[str, Any]:
    """The annotations of a class as types; every one must be importable at run time, not only while type checking."""
    return typing.get_type_hints(cls)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a field, made by its factory if it has one; `dataclasses.MISSING` for a required field."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def limits_of(field: dataclasses.Field[Any]) -> Range:
    """The legal range written in the field's metadata; without one, everything finite is legal."""
    return field.metadata.get("range", Range())


def unset_of(field: dataclasses.Field[Any]) -> str:
    """The word for None, as files and flags have it."""
    return field.metadata.get("unset", "none")


def arms(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, `(int, None)` for `int | None`; any other annotation is its own only alternative."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return tuple(None if arm is type(None) else arm for arm in typing.get_args(hint))
    return (hint,)


def members(hint: Any, families: Families) -> tuple[type, ...]:
    """The settings classes a value of this annotation may be an instance of; empty for plain values.

    Raises:
        TypeError: for an abstract base that `families` does not list (a mistake in the program, not of its user).
    """
    found: list[type] = []
    for arm in arms(hint):
        if not isinstance(arm, type):
            continue
        if arm in families:
            found += [member for member in families[arm] if isinstance(member, type)]
        elif inspect.isabstract(arm):
            raise TypeError(f"{arm.__name__} is abstract; list its members: families={{{arm.__name__}: (...,)}}")
        elif dataclasses.is_dataclass(arm):
            found.append(arm)
    return tuple(found)


def presets(hint: Any, families: Families) -> dict[str, Any]:
    """The named settings of the families in an annotation, by name."""
    listed = [member for arm in arms(hint) if isinstance(arm, type) for member in families.get(arm, ())]
    return {member.name: member.value for member in listed if isinstance(member, Preset)}


def has_name(hint: Any, member: type) -> bool:
    """Whether a value of this class needs its class's name written beside its fields: always, unless the annotation settles it."""
    return [arm for arm in arms(hint) if arm is not None] != [member]


def plain(name: str) -> str:
    """A name as compared: `vp-sde`, `VP_SDE` and `VPSDE` are the same, and so are `dpm++2m` and `DPMpp_2M`."""
    return name.lower().replace("++", "pp").replace("-", "").replace("_", "").replace(" ", "")


def called(member: type) -> set[str]:
    """What a class may be called, as `plain` has it: `unet` is UNetConfig."""
    return {plain(member.__name__), plain(member.__name__.removesuffix("Config"))}


ELSEWHERE = {  # what other libraries call the same, as `plain` has it
    "dpmsolverpp": "dpm++2m",
    "dpmsolvermultistep": "dpm++2m",
    "timesteps": "--schedule.T",
    "numtraintimesteps": "--schedule.T",
    "betaschedule": "--schedule",
    "numinferencesteps": "--steps",
    "guidancescale": "--guidance",
    "predictiontype": "--parameterization",
    "batchsize": "--batch",
    "trainbatchsize": "--batch",
    "learningrate": "--lr",
    "imagesize": "--size",
    "resolution": "--size",
    "maxtrainsteps": "--steps",
    "outputdir": "--out",
    "float32": "fp32",
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
}


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name a person most likely meant, or None."""
    by_plain: dict[str, str] = {}
    for candidate in known:
        by_plain.setdefault(plain(candidate), candidate)
    if (same := plain(ELSEWHERE.get(plain(name), ""))) in by_plain:
        return by_plain[same]
    close = difflib.get_close_matches(plain(name), list(by_plain), n=1, cutoff=0.6 if len(plain(name)) > 3 else 0.5)
    return by_plain[close[0]] if close else None
