"""One plain value: from what a file or a command line holds to what the annotation asks for, or a sentence why not."""

from __future__ import annotations

import json
import math
import re
import typing
from pathlib import Path
from typing import Any, Literal

from ddpm.config.field_info import Range, arms, nearest


class Refused(Exception):
    """A value that cannot be used; the text starts with "is", to follow the name of the setting."""


def show(value: object, *, typed: bool = False) -> str:
    """A value as its file would spell it, or as it was typed, cut to one short line."""
    if typed and isinstance(value, str) and value and value.isprintable():
        text = value
    else:
        try:
            text = json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError):  # no JSON; or, oddly, a whole number of more digits than Python prints
            text = repr(value) if not isinstance(value, int) else "a very large number"
    return text if len(text) <= 80 else text[:77] + "..."


def expects(hint: Any, limits: Range, unset: str = "none") -> str:
    """What a setting accepts, in words: "a whole number >= 1", "auto, fp32 or bf16", "a number > 0, or none"."""
    parts = [unset if arm is None else _expects_one(arm, limits) for arm in arms(hint)]
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + f", or {parts[-1]}"


def _expects_one(hint: Any, limits: Range) -> str:
    if hint in (int, float):
        return f"{'a whole number' if hint is int else 'a number'} {limits}".rstrip()
    if typing.get_origin(hint) is Literal:
        names = [str(choice) for choice in typing.get_args(hint)]
        return names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" or {names[-1]}"
    if typing.get_origin(hint) is tuple:
        kinds = typing.get_args(hint)
        each = {int: "whole numbers", float: "numbers"}.get(kinds[0], "values")
        many = each if len(kinds) == 2 and kinds[1] is ... else f"{len(kinds)} {each}"
        return f"{many}{f' each {limits}' if str(limits) else ''}, separated by commas"
    return {bool: "true or false", str: "text", Path: "a path"}.get(hint, str(hint))


def read_value(hint: Any, value: object, limits: Range, *, text: bool = False, unset: str = "none") -> Any:
    """The value as the annotation asks for it.

    Args:
        hint: int, float, bool, str, Path, Literal, tuples of these, or a union of these and None.
        value: what was given.
        limits: legal range of a number, or of every entry of a tuple.
        text: the value comes from a command line, where everything is a string; elsewhere a string is no number.
        unset: the word for None.

    Raises:
        Refused: with the value and what is allowed, ready to follow the name of the setting.
        TypeError: for an annotation this module does not know (a mistake in the program).
    """
    kinds = arms(hint)
    if None in kinds and (value is None or (isinstance(value, str) and value.lower() == unset)):
        return None
    kinds = sorted((kind for kind in kinds if kind is not None), key=lambda kind: kind is str)  # text reads as str only if as nothing else
    advice = ""
    for kind in kinds:
        try:
            return _read_one(kind, value, limits, text)
        except Refused as refusal:
            advice = advice or str(refusal)
    raise Refused(f"is {show(value, typed=text)}{advice}{'' if advice.endswith('?') else ';'} allowed: {expects(hint, limits, unset)}")


def _read_one(kind: Any, value: object, limits: Range, text: bool) -> Any:
    if typing.get_origin(kind) is Literal:
        return _read_choice(typing.get_args(kind), value, text)
    if typing.get_origin(kind) is tuple:
        return _read_tuple(typing.get_args(kind), value, limits, text)
    if kind is bool:
        if text and str(value).lower() in ("true", "yes", "on", "1", "false", "no", "off", "0"):
            return str(value).lower() in ("true", "yes", "on", "1")
        if isinstance(value, bool):
            return value
        raise Refused
    if kind is int or kind is float:
        return _read_number(kind, value, limits, text)
    if kind is str or kind is Path:
        if isinstance(value, str | Path) and not (kind is str and isinstance(value, Path)):
            if "\0" in str(value) or (kind is Path and str(value) == ""):
                raise Refused
            return kind(value)
        raise Refused
    raise TypeError(f"settings cannot be annotated {kind!r}")


def _read_number(kind: type[int] | type[float], value: object, limits: Range, text: bool) -> int | float:
    if isinstance(value, str) and not text:
        raise Refused(" (a string: write it without quotes)")
    if isinstance(value, str):
        value = _parse(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused
    if isinstance(value, float) and not math.isfinite(value):
        raise Refused(" (not finite)")
    if kind is int and isinstance(value, float):
        if not (text and value.is_integer()):  # `--steps 1e5` is clear; a file can say 100000
            raise Refused(" (write it without a decimal point or exponent)" if value.is_integer() else "")
        value = int(value)
    try:
        number = kind(value)
    except OverflowError:
        raise Refused(" (too large)") from None
    if not limits.allows(number):
        raise Refused
    return number


def _parse(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:  # also "too many digits", which then reads as an infinite float
            continue
    return None


def _read_choice(choices: tuple[Any, ...], value: object, text: bool) -> Any:
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
    if text or isinstance(value, str):
        same = [choice for choice in choices if (text or isinstance(choice, str)) and str(choice).lower() == str(value).lower()]
        if same:
            return same[0]
    near = nearest(str(value), [str(choice) for choice in choices])
    raise Refused(f"; did you mean {near}?" if near else "")


def _read_tuple(kinds: tuple[Any, ...], value: object, limits: Range, text: bool) -> tuple[Any, ...]:
    numbers = kinds[0] in (int, float)
    if isinstance(value, str):
        parsed = text or kinds[0] is int  # a size may be written "32x48" in a file too
        if numbers and not parsed:
            raise Refused(" (a string: write a list of numbers)")
        separator = r"[,x×]" if kinds[0] is int else ","
        entries = [part.strip() for part in re.split(separator, value.strip("[]() "))] if value.strip("[]() ") else []
        text = parsed
    elif isinstance(value, list | tuple):
        entries = list(typing.cast("list[object]", value))
    else:
        entries = [value]  # one number is a list of one
    if kinds[1:] == (...,):
        kinds = (kinds[0],) * len(entries)
    if len(kinds) != len(entries):
        raise Refused(f" ({len(entries)} entries)")
    out: list[Any] = []
    for kind, entry in zip(kinds, entries, strict=True):
        try:
            out.append(_read_one(kind, entry, limits, text))
        except Refused as refusal:
            raise Refused(f" (entry {len(out) + 1}{refusal})") from None
    return tuple(out)
