"""Settings from nested mappings, strictly, and back: layers are merged, everything wrong is reported at once."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ddpm.config.field_info import (
    Families,
    arms,
    called,
    default_of,
    has_name,
    hints_of,
    limits_of,
    members,
    nearest,
    plain,
    presets,
    settings_of,
    unset_of,
)
from ddpm.config.values import Refused, read_value, show
from ddpm.errors import ConfigError

T = TypeVar("T")
_FAILED: Any = object()  # stands for a value that could not be read; its problem has been noted


class Layer(NamedTuple):
    """Some of the settings, from one place; a later layer wins over an earlier one."""

    source: str  # named in messages: "my.toml"; "" for none
    values: Mapping[str, Any]
    text: bool = False  # values are strings as typed on a command line
    problems: tuple[str, ...] = ()  # found while reading the source; reported with all others


class Typed(NamedTuple):
    """A value as typed on the command line, with the flag that messages call it by."""

    flag: str
    value: str | list[str]  # several, of a flag that is given once for each


def to_dict(obj: Any, *, named: bool = False, none: bool = True) -> dict[str, Any]:
    """A settings object as nested plain values; `from_dict` is the inverse.

    A member of a family begins with `"name"`, its class's name. Tuples become lists, paths strings.

    Args:
        obj: a dataclass instance.
        named: write the name of the outermost object as well: for an object that is itself a member of a family.
        none: False for formats that know no null (TOML): a None is left out where None is the default and is its word elsewhere,
            "none" (so in a setting that is text or None, that text means None).
    """
    hints = hints_of(type(obj))
    out: dict[str, Any] = {"name": type(obj).__name__} if named else {}
    for name, field in settings_of(type(obj)).items():
        value = getattr(obj, name)
        if value is None and not none:
            if default_of(field) is not None:
                out[name] = unset_of(field)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            out[name] = to_dict(value, named=has_name(hints[name], type(value)), none=none)
        elif isinstance(value, tuple):
            out[name] = list(value)
        else:
            out[name] = str(value) if isinstance(value, Path) else value
    return out


def from_dict(cls: type[T], mapping: Mapping[str, Any], families: Families | None = None, where: str = "", *, text: bool = False) -> T:
    """The settings object a nested mapping describes; what it leaves out keeps its default.

    Args:
        cls: a dataclass, or the base class of a family (then the mapping's `"name"` chooses the member).
        mapping: plain values; a family's member is `{"name": "Cosine", "clip": 0.9}` or just `"cosine"` (case, `-` and `_` do not matter);
            a preset is named likewise, and single settings of it may be said beside.
        families: the members of each base class that annotations use.
        where: file the mapping comes from, named in messages.
        text: all values are strings as typed on a command line.

    Raises:
        ConfigError: listing every unknown key, wrong type, illegal value and failed check.
    """
    return resolve(cls, [Layer(where, mapping, text)], families)


def resolve(cls: type[T], layers: Iterable[Layer | tuple[str, Mapping[str, Any]]], families: Families | None = None) -> T:
    """The settings after all layers: defaults, then each layer in order; a later one wins, setting by setting.

    Where a later layer chooses another member of a family, what earlier ones said about the former member is dropped.

    Raises:
        ConfigError: listing every problem of every layer, each with the file or flag it came from.
    """
    stack = [layer if isinstance(layer, Layer) else Layer(layer[0], layer[1]) for layer in layers]
    builder = _Builder(families or {}, [problem for layer in stack for problem in layer.problems])
    if members(cls, builder.families) == (cls,):
        made = builder.build(cls, stack, "")
    else:
        made = builder.member(cls, dataclasses.MISSING, [(layer, layer.values) for layer in stack], "")
    if builder.problems:
        raise ConfigError.of(list(dict.fromkeys(builder.problems)))
    return made


def check(obj: Any, problems: Sequence[str] = ()) -> None:
    """Refuse an object whose fields break their annotation or legal range, or that has other problems; for `__post_init__`.

    Args:
        obj: a dataclass instance made with `setting` fields.
        problems: what else is wrong, a sentence each that begins with the name of a field.

    Raises:
        ConfigError: listing everything.
    """
    found: list[str] = []
    hints = hints_of(type(obj))
    for name, field in settings_of(type(obj)).items():
        value = getattr(obj, name)
        classes = [arm for arm in arms(hints[name]) if isinstance(arm, type) and arm not in (int, float, bool, str, Path)]
        if classes:
            if not isinstance(value, tuple(classes)) and not (value is None and None in arms(hints[name])):
                allowed = " or ".join("none" if arm is None else arm.__name__ for arm in arms(hints[name]))
                advice = ", an object and not its name" if isinstance(value, str) else ""
                found.append(f"{name} is {value!r}; allowed: {allowed}{advice}")
            continue
        try:
            read_value(hints[name], value, limits_of(field), unset=unset_of(field))
        except Refused as refusal:
            found.append(f"{name} {refusal}")
    refused = [line.split(" ", 1)[0] for line in found]
    found += [line for line in problems if not _mentions(line, refused)]
    if found:
        raise ConfigError.of(found)


def _mentions(line: str, names: Iterable[str]) -> bool:
    """Whether a problem is about one of these settings; about a refused value there is nothing more to say."""
    return any(re.search(rf"\b{name}\b", line) for name in names)


def _label(path: str, layer: Layer, value: object) -> str:
    """What a message calls a setting: its flag, or its file and dotted path."""
    if isinstance(value, Typed):
        return value.flag
    return ": ".join(part for part in (layer.source, path) if part)


class _Builder:
    """Builds objects from stacks of layers and notes what is wrong on the way."""

    def __init__(self, families: Families, problems: list[str]) -> None:
        self.families = families
        self.problems = problems

    def build(self, cls: type, stack: Sequence[Layer], path: str, siblings: Sequence[type] = ()) -> Any:
        """An instance of `cls`, or _FAILED; a layer of the stack holds the values for this object only."""
        hints, fields = hints_of(cls), settings_of(cls)
        self._unknown_keys(cls, stack, path, siblings)
        values: dict[str, Any] = {}
        labels: dict[str, str] = {}
        failed: list[str] = []
        for name, field in fields.items():
            given = [(layer, layer.values[name]) for layer in stack if name in layer.values]
            here = f"{path}{name}"
            labels[name] = _label(here, *given[-1]) if given else here
            if not given and default_of(field) is dataclasses.MISSING:
                self.problems.append(f"{self._place(stack)}missing setting '{here}'{_help(field)}")
                failed.append(name)
            elif given:
                values[name] = self._value(hints[name], field, given, here)
                if values[name] is _FAILED:
                    failed.append(name)
        return self._construct(cls, values, failed, labels, path, stack)

    def _value(self, hint: Any, field: dataclasses.Field[Any], given: list[tuple[Layer, Any]], path: str) -> Any:
        if members(hint, self.families):
            return self.member(hint, default_of(field), given, path)
        layer, value = given[-1]
        text = layer.text or isinstance(value, Typed)
        try:
            return read_value(hint, value.value if isinstance(value, Typed) else value, limits_of(field), text=text, unset=unset_of(field))
        except Refused as refusal:
            self.problems.append(f"{_label(path, layer, value)} {refusal}")
            return _FAILED

    def member(self, hint: Any, default: Any, given: Sequence[tuple[Layer, Any]], path: str) -> Any:
        """The member of a family that was named last, with the settings said of it; None where that was said last; _FAILED."""
        kinds = list(dict.fromkeys(members(hint, self.families)))
        known = {name: cls for cls in kinds for name in called(cls)}
        ready = {plain(name): value for name, value in presets(hint, self.families).items()}
        only = kinds[0] if len(kinds) == 1 else None
        chosen, absent, tables = only, default is None and None in arms(hint), list[Layer]()
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            chosen, tables = type(default), [Layer("", to_dict(default))]
        for layer, value in given:
            if None in arms(hint) and (value is None or _text(_name_in(value)).lower() == "none"):
                chosen, absent, tables = only, True, []
                continue
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                value = to_dict(value, named=only is None or not isinstance(value, only))
            table: Mapping[str, Any] = value if isinstance(value, Mapping) else {"name": value}
            if "name" in table and not (only is not None and "name" in settings_of(only) and isinstance(value, Mapping)):
                wanted = plain(_text(table["name"]))
                if wanted in ready:
                    chosen, tables = type(ready[wanted]), [Layer("", to_dict(ready[wanted]))]
                elif wanted not in known:
                    return self._unknown_member(_label(path, layer, table["name"]), table["name"], hint, kinds)
                else:
                    tables = tables if known[wanted] is chosen else []
                    chosen = known[wanted]
                table = {key: entry for key, entry in table.items() if key != "name"}
            absent = False
            tables.append(Layer(layer.source, table, layer.text))
        if absent:
            return None
        if chosen is None:
            names = ", ".join(cls.__name__ for cls in kinds)
            where = f"{path}.name" if path else "name"
            typed = path and any(layer.text for layer, _ in given)
            advice = f": name it beside its settings, by --{path.rpartition('.')[2].replace('_', '-')}" if typed else ""
            self.problems.append(f"{self._place([layer for layer, _ in given])}missing setting '{where}'{advice}; allowed: {names}")
            return _FAILED
        return self.build(chosen, tables, f"{path}." if path else "", tuple(kinds))

    def _construct(
        self, cls: type, values: dict[str, Any], failed: list[str], labels: dict[str, str], path: str, stack: Sequence[Layer]
    ) -> Any:
        """Make the object. With a bad field its default stands in, so that the checks on the others are still heard."""
        fields = settings_of(cls)
        if any(default_of(fields[name]) is dataclasses.MISSING or dataclasses.is_dataclass(default_of(fields[name])) for name in failed):
            return _FAILED
        complaints: list[str] = []
        made = _FAILED
        try:
            made = cls(**{name: value for name, value in values.items() if name not in failed})
            complaints = list(getattr(made, "problems", list)())
        except (ConfigError, ValueError, ArithmeticError) as error:
            complaints = str(error).splitlines() or [f"{cls.__name__} refused these settings"]
        for line in complaints:
            if _mentions(line, failed):
                continue
            first = re.split(r"\W", line, maxsplit=1)[0]
            owner = f"{path.rstrip('.')}: " if path else ""
            self.problems.append(labels[first] + line[len(first) :] if first in labels else f"{self._place(stack)}{owner}{line}")
        return _FAILED if failed or complaints else made

    def _unknown_keys(self, cls: type, stack: Sequence[Layer], path: str, siblings: Sequence[type]) -> None:
        fields = settings_of(cls)
        for layer in stack:
            for key, value in layer.values.items():
                if key in fields or (key == "name" and plain(_text(value)) in called(cls)):
                    continue
                owners = [other.__name__ for other in siblings if key in settings_of(other)]
                deeper = self._deeper(cls)
                near = next((name for name in deeper if name.endswith(f".{key}")), None) or nearest(key, [*fields, *deeper])
                if owners:
                    advice = f"{cls.__name__} does not have it, {', '.join(owners)} does"
                elif near:
                    advice = f"did you mean '{path}{near}'?"
                else:
                    advice = f"known: {', '.join(fields)}" if fields else f"{cls.__name__} has no settings"
                kind = f"flag '{value.flag}'" if isinstance(value, Typed) else f"key '{path}{key}'"
                source = f"{layer.source}: " if layer.source and not isinstance(value, Typed) else ""
                self.problems.append(f"{source}unknown {kind}; {advice}")

    def _deeper(self, cls: type) -> list[str]:
        """The dotted names one level further down, for a key written outside its table."""
        hints = hints_of(cls)
        nested = [(name, member) for name in settings_of(cls) for member in members(hints[name], self.families)]
        return [f"{name}.{inner}" for name, member in nested for inner in settings_of(member)]

    def _unknown_member(self, label: str, value: object, hint: Any, known: list[type]) -> Any:
        shown = show(_text(value), typed=True) if isinstance(value, Typed) else show(value)
        if len(known) == 1:
            allowed = f"a table of {', '.join(settings_of(known[0]))}"
        else:
            allowed = ", ".join([*(cls.__name__ for cls in known), *presets(hint, self.families)])
        near = nearest(_text(value), [*(cls.__name__ for cls in known), *presets(hint, self.families)])
        self.problems.append(
            f"{label} is {shown}; {f'did you mean {near}? ' if near else ''}allowed: {allowed}{', or none' if None in arms(hint) else ''}"
        )
        return _FAILED

    @staticmethod
    def _place(stack: Sequence[Layer]) -> str:
        sources = [layer.source for layer in stack if layer.source]
        return f"{sources[-1]}: " if sources else ""


def _name_in(value: object) -> object:
    """What names the member: the value itself, or the "name" in its table."""
    return value.get("name", "") if isinstance(value, Mapping) else value


def _text(value: object) -> str:
    return str(value.value if isinstance(value, Typed) else value)


def _help(field: dataclasses.Field[Any]) -> str:
    text = field.metadata.get("help", "")
    return f": {text}" if text else ""
