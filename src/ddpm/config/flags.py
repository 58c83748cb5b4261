"""Command-line flags made from the fields of a settings class, and what was typed as a layer of settings."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from ddpm.config.build import Layer, Typed
from ddpm.config.field_info import Families, arms, default_of, hints_of, limits_of, members, nearest, presets, settings_of, unset_of
from ddpm.errors import ConfigError


class _Short(argparse.RawDescriptionHelpFormatter):
    """Help without the flags marked advanced."""

    def add_argument(self, action: argparse.Action) -> None:
        if not action.dest.endswith(_ADVANCED):
            super().add_argument(action)


class _HelpAll(argparse.Action):
    """`--help-all`: help with every flag."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: object, option_string: str | None = None) -> NoReturn:
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.print_help()
        parser.exit()


_DEST = "setting:"  # keeps the values of settings apart from a command's own arguments
_ADVANCED = ":advanced"


class Parser(argparse.ArgumentParser):
    """argparse that raises `ConfigError` instead of exiting, takes no abbreviations, and can hide advanced flags."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": _Short, **options})

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


class Flag(NamedTuple):
    """One flag: what it is called, the setting it gives, and how it is explained."""

    option: str  # "--schedule.clip"
    path: tuple[str, ...]  # keys of the nested mapping
    field: dataclasses.Field[Any]
    hint: Any
    group: str
    advanced: bool
    help: dict[str, tuple[str, ...]]  # each explanation with the members it is true of, none outside a family
    family: tuple[type, ...]  # members to choose from, for a flag that names one
    listed: bool  # in --help-all

    @property
    def dest(self) -> str:
        """Where argparse keeps the value."""
        return _DEST + ".".join(self.path) + (_ADVANCED if self.advanced else "")

    def explanation(self) -> str:
        """`peak learning rate (default 0.0002, > 0)`; inside a family, the members it belongs to come first."""
        return "; ".join(f"{', '.join(owners)}: {text}" if owners else text for text, owners in self.help.items())


def walk(cls: type, families: Families) -> list[Flag]:
    """All flags of a settings class in order; a flag that several members of a family share appears once.

    Raises:
        TypeError: where two settings would get the same flag (a mistake in the program).
    """
    flags: dict[str, Flag] = {}
    for flag in _walk(cls, families, cls, (), "--", "settings", False, (), ""):
        first = flags.setdefault(flag.option, flag)
        if first.path != flag.path:
            raise TypeError(f"{flag.option} would set {'.'.join(first.path)} and {'.'.join(flag.path)}; rename one with setting(flag=...)")
        if first is not flag:
            for text, owners in flag.help.items():
                first.help[text] = tuple(dict.fromkeys((*first.help.get(text, ()), *owners)))
    return list(flags.values())


def _walk(
    cls: type,
    families: Families,
    values: Any,
    path: tuple[str, ...],
    prefix: str,
    group: str,
    advanced: bool,
    above: tuple[Any, ...],
    inherits: str,
) -> Iterator[Flag]:
    """Flags of one class; `values` is where defaults come from: the instance that is itself a default, else the class.

    `above` holds the families passed on the way. A schedule made from a schedule gets its flags, but they are not listed once more;
    deeper still, only files can say it. Where values are inherited, `inherits` says from what.
    """
    hints = hints_of(cls)
    for name, field in settings_of(cls).items():
        about, hint, here = field.metadata, hints[name], (*path, name)
        if about.get("filled", False):
            continue
        known = members(hint, families)
        default = getattr(values, name) if values is not cls else default_of(field)
        option = prefix + (about.get("flag") or name).replace("_", "-")
        named = len(known) > 1
        title = about.get("group") or group
        hidden = advanced or about.get("advanced", False)
        if not known or named:
            choices = [*(member.__name__ for member in known), *presets(hint, families)]
            help = {_explain(field, default, choices, None in arms(hint), inherits): (cls.__name__,) if above else ()}
            yield Flag(option, here, field, hint, title, hidden, help, known, len(above) == len(set(above)))
        if above.count(known) > 1:
            continue
        for member in known:
            inner = default if isinstance(default, member) else member
            flat = about.get("flat", False) and not named
            deeper = (*above, known) if named else above
            heading = title if flat else f"{option}.*"
            source = about.get("inherits") or inherits
            yield from _walk(member, families, inner, here, "--" if flat else f"{option}.", heading, hidden or named, deeper, source)


def _explain(field: dataclasses.Field[Any], default: Any, choices: list[str], optional: bool, inherits: str) -> str:
    shown = unset_of(field) if default is None else _show_default(default)
    parts = ["required" if default is dataclasses.MISSING else f"default: that of {inherits}" if inherits else f"default {shown}"]
    if str(limits_of(field)):
        parts.append(str(limits_of(field)))
    if choices:
        parts.append(f"one of {', '.join(choices)}")
    if optional and (default is not None or inherits):
        parts.append(f"or {unset_of(field)}")
    return f"{field.metadata.get('help', '')} ({', '.join(parts)})".strip()


def _show_default(value: Any) -> str:
    if dataclasses.is_dataclass(value):
        return type(value).__name__
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "empty"
    return "empty" if value == "" else str(value)


def _metavar(hint: Any, known: tuple[type, ...]) -> str:
    if known:
        return "NAME"
    kind = next(arm for arm in arms(hint) if arm is not None)
    if typing.get_origin(kind) is Literal:
        return "{" + ",".join(map(str, typing.get_args(kind))) + "}"
    if typing.get_origin(kind) is tuple:
        return _metavar(typing.get_args(kind)[0], ()) + ",..."
    return {int: "N", float: "X", Path: "PATH", bool: "BOOL"}.get(kind, "TEXT")


def add_flags(parser: argparse.ArgumentParser, cls: type, families: Families | None = None) -> None:
    """Add a flag for each setting of the class, grouped; `flags_layer` reads what was typed.

    A family's member is chosen by name, `--schedule cosine`, and set by dotted flags, `--schedule.clip 0.99`. These and settings marked
    advanced are listed by `--help-all` only. Nothing is checked here: `resolve` checks everything at once.
    """
    groups: dict[str, Any] = {}
    flags = walk(cls, families or {})
    for flag in flags:
        if flag.group not in groups:
            groups[flag.group] = parser.add_argument_group(flag.group)
        short = [f"-{flag.field.metadata['short']}"] if flag.field.metadata.get("short") else []
        options: dict[str, Any] = {"dest": flag.dest, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        if flag.listed:
            options["help"] = flag.explanation().replace("%", "%%")
        if flag.hint is bool:
            groups[flag.group].add_argument(*short, flag.option, action=argparse.BooleanOptionalAction, **options)
        elif flag.field.metadata.get("repeat"):
            groups[flag.group].add_argument(*short, flag.option, action="append", metavar="TEXT", **options)
        else:
            groups[flag.group].add_argument(*short, flag.option, metavar=_metavar(flag.hint, flag.family), **options)
    everything = "show the settings of every member of every family too, and exit"
    shown = everything if any(flag.advanced for flag in flags) else argparse.SUPPRESS  # elsewhere it says what --help does
    parser.add_argument("--help-all", action=_HelpAll, nargs=0, help=shown)


def flags_layer(
    args: argparse.Namespace, extra: Sequence[str], parser: argparse.ArgumentParser, cls: type, families: Families | None = None
) -> Layer:
    """What was typed, as the layer that wins over all others; its problems are the arguments nobody knows.

    Args:
        args: parsed by a parser that `add_flags` has extended.
        extra: the arguments left over by `parse_known_args`.
        parser: that parser, for the nearest known flag.
        cls: the settings class; families: as everywhere.
    """
    values: dict[str, Any] = {}
    for flag in walk(cls, families or {}):
        if not hasattr(args, flag.dest):
            continue
        typed = getattr(args, flag.dest)
        table = values
        for key in flag.path[:-1]:
            table = table.setdefault(key, {})
        no = "--no-" + flag.option.removeprefix("--")
        leaf = Typed(no if typed is False else flag.option, typed if isinstance(typed, list) else str(typed))
        if flag.family:
            table.setdefault(flag.path[-1], {})["name"] = leaf
        else:
            table[flag.path[-1]] = leaf
    return Layer("", values, text=True, problems=tuple(unknown_arguments(extra, parser)))


def unknown_arguments(extra: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """A sentence for each argument the parser did not know, with the nearest flag it knows."""
    known = [option for action in parser._actions for option in action.option_strings]  # argparse has no public list of them
    problems: list[str] = []
    after_flag = False
    for token in extra:
        if token.startswith("-") and token.strip("-"):
            name = token.split("=", 1)[0]
            near = next((option for option in known if option.endswith("." + name.lstrip("-"))), None) or nearest(name, known)
            advice = f"did you mean '{near}'?" if near else f"see {parser.prog} --help"
            problems.append(f"unknown flag '{name}'; {advice}")
        elif not after_flag:
            switch = token.lower() in ("true", "false", "on", "off", "yes", "no")
            advice = (
                "a switch takes no value: --flip is on, --no-flip off" if switch else "lists are written with commas and no spaces, 1,2,2"
            )
            problems.append(f"unexpected argument '{token}'; {advice}")
        after_flag = token.startswith("-") and "=" not in token
    return problems


def tidy(argv: Sequence[str]) -> list[str]:
    """Arguments as argparse reads them best: `--batch_size` as `--batch-size`, and a negative value tied to its flag, `--lr=-1e-4`."""
    out: list[str] = []
    for position, token in enumerate(argv):
        if token == "--":
            return out + list(argv[position:])
        if token.startswith("--"):
            name, equals, value = token.partition("=")
            out.append("--" + name[2:].replace("_", "-") + equals + value)
        elif out and out[-1].startswith("-") and "=" not in out[-1] and _negative(token):
            out[-1] += f"={token}"
        else:
            out.append(token)
    return out


def _negative(token: str) -> bool:
    first = token.split(",")[0]
    try:
        float(first)
    except ValueError:
        return False
    return first.startswith("-")
