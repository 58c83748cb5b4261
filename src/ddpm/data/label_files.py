"""Labels files: labels.csv, metadata.csv, metadata.jsonl and EDM's dataset.json, checked line by line."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.data.captions import TEXT
from ddpm.data.names import natural, safe_name
from ddpm.errors import DataError

FILE, LABEL, TAGS = "file_name", "label", "tags"
OWN = (LABEL, TEXT, TAGS)  # columns that are no numbers of a vector
_BETWEEN = "|"  # tags of a cell
_MOST_CLASSES = 1_000_000
_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a labels file: where it stands ("labels.csv line 17"), the picture's name, and the other columns."""

    where: str
    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Conditions of the pictures (N), in their order; a part that the file does not hold is None."""

    ids: NDArray[np.int64] | None
    classes: tuple[str, ...]
    vector: NDArray[np.float32] | None
    vector_names: tuple[str, ...]
    tags: tuple[str, ...] = ()  # which of these are tags
    notices: tuple[str, ...] = ()
    texts: tuple[str, ...] | None = None


def read_lines(data: bytes, title: str, folder: str = "") -> list[Line]:
    """The lines of a labels file; names are relative to the folder (of the data set) that the file is in.

    CSV and JSON lines have a column `file_name`, and `label` (whole numbers from 0, or names), `text` (captions) or columns of numbers,
    which together are the vector condition; a column `tags`, a list of names, or in CSV names with | between them, is an entry of the
    vector for each name: 1 where a picture has it, else 0. dataset.json is {"labels": [[file_name, label], ...]}, label a whole number or
    a list of
    numbers.

    Raises:
        DataError: not UTF-8, not CSV or JSON, no such columns, or a name that points out of the data set.
    """
    try:
        text = data.decode("utf-8-sig")  # a byte order mark, as spreadsheets write it, is not part of the first column's name
    except UnicodeDecodeError as error:
        raise DataError(f"{title}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    if title.lower().endswith(".csv"):
        rows = _csv(text, title)
    elif title.lower().endswith(".jsonl"):
        rows = _json_lines(text, title)
    elif title.lower().endswith(".json"):
        rows = _dataset_json(text, title)
    else:
        raise DataError(f"{title}: labels are read from .csv, .jsonl or EDM's .json")
    lines: list[Line] = []
    for where, values in rows:
        name = values.pop(FILE, None)
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: no {FILE}; found {', '.join(map(str, values)) or 'nothing'}")
        inner = safe_name(name, where)
        lines.append(Line(where=where, name=f"{folder}/{inner}" if folder else inner, values=values))
    return lines


def match(
    lines: Sequence[Line], names: Sequence[str], inner: Sequence[str], title: str, limit: int | None, unused: Collection[str] = ()
) -> Labels:
    """The labels of the pictures `names`, in their order; `inner` are the same names within their split, which lines may also use.

    Lines of `unused` names are passed over.

    Raises:
        DataError: lists (first 20) lines whose picture does not exist or is named twice, pictures with no line, and values that are
            missing, negative, not below `limit` classes, text among numbers, or not finite.
    """
    rows = {name: i for i, name in enumerate(inner)} | {name: i for i, name in enumerate(names)}
    problems: list[str] = []
    chosen: list[Line | None] = [None] * len(names)
    for line in lines:
        row = rows.get(line.name)
        if row is None and line.name in unused:
            continue
        if row is None:
            problems.append(f"{line.where}: {line.name} is not among the pictures")
        elif (before := chosen[row]) is not None:
            problems.append(f"{line.where}: {line.name} was labelled before, in {before.where}")
        else:
            chosen[row] = line
    problems += [f"{title}: {name} has no line" for name, line in zip(names, chosen, strict=True) if line is None]
    return _columns([line for line in chosen if line is not None], title, limit, problems)


def _columns(lines: list[Line], title: str, limit: int | None, problems: list[str]) -> Labels:
    keys = list(dict.fromkeys(key for line in lines for key in line.values))
    ids, classes = (None, ()) if LABEL not in keys else _classes(lines, limit, problems)
    vectors: dict[str, NDArray[np.float32]] = {}
    notices: list[str] = []
    tags: dict[str, NDArray[np.float32]] = {}
    if LABEL in keys and ids is None:  # EDM: the label is a list of numbers
        vectors = _lists(lines, problems)
    for key in keys:
        if key == TAGS:
            tags = _tags(lines, problems)
            problems += [f"{title}: {name!r} is a tag and a column; give one of the two another name" for name in tags if name in keys]
            vectors |= tags
        elif key not in OWN:
            column = _numbers(lines, key, problems)
            if column is None:
                notices.append(f"{title}: column {key!r} holds no numbers and is not used")
            else:
                vectors[key] = column
    texts = _texts(lines, problems) if TEXT in keys else None
    _stop(problems)
    if ids is None and not vectors and texts is None:
        raise DataError(f"{title}: no column {LABEL!r}, {TEXT!r} or of numbers; found {', '.join(keys) or 'only names'}")
    vector = np.stack(list(vectors.values()), axis=1) if vectors else None
    return Labels(
        ids=ids, classes=classes, vector=vector, vector_names=tuple(vectors), tags=tuple(tags), notices=tuple(notices), texts=texts
    )


def _texts(lines: list[Line], problems: list[str]) -> tuple[str, ...]:
    """The captions; an empty one says nothing of its picture, a missing one is a problem."""
    values = [line.values.get(TEXT) for line in lines]
    for line, value in zip(lines, values, strict=True):
        if not isinstance(value, str):
            problems.append(f"{line.where}: {TEXT} {'is missing' if value is None else f'is {_short(value)}, no text'}")
    return tuple(value if isinstance(value, str) else "" for value in values)


def _classes(lines: list[Line], limit: int | None, problems: list[str]) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    values, before = [line.values.get(LABEL) for line in lines], len(problems)
    if all(isinstance(value, list) for value in values):
        return None, ()
    are_numbers = next((isinstance(value, int) for value in values if isinstance(value, int | str) and value != ""), True)
    for line, value in zip(lines, values, strict=True):
        if value is None or value == "":
            problems.append(f"{line.where}: the label is missing")
        elif isinstance(value, bool) or not isinstance(value, int | str):
            problems.append(f"{line.where}: label {_short(value)} is neither a whole number nor a name")
        elif isinstance(value, int) != are_numbers:
            said = ("text", "whole numbers") if are_numbers else ("a number", "names")
            problems.append(f"{line.where}: label {_short(value)} is {said[0]}, the first labels are {said[1]}")
        elif isinstance(value, int) and value < 0:
            problems.append(f"{line.where}: class {_short(value)} is negative; class ids start at 0")
        elif isinstance(value, int) and value >= (limit or _MOST_CLASSES):
            allowed = limit or _MOST_CLASSES
            problems.append(f"{line.where}: class {_short(value)}, there are {allowed} (0-{allowed - 1})")
    if len(problems) > before:
        return np.zeros(0, dtype=np.int64), ()
    if are_numbers:
        ids = np.array(values, dtype=np.int64)
        return ids, tuple(str(i) for i in range(int(ids.max()) + 1))
    names = sorted({str(value) for value in values}, key=natural)
    position = {name: i for i, name in enumerate(names)}
    return np.array([position[str(value)] for value in values], dtype=np.int64), tuple(names)


def _numbers(lines: list[Line], key: str, problems: list[str]) -> NDArray[np.float32] | None:
    """A column as numbers; None where no line holds one. Lines that do not are problems, if others do."""
    values = [_number(line.values.get(key)) for line in lines]
    if all(value is None for value in values):
        return None
    for line, value in zip(lines, values, strict=True):
        if value is None:
            given = line.values.get(key)
            said = "is missing" if given in (None, "") else f"is {_short(given)}, not a number"
            problems.append(f"{line.where}: {key} {said}")
        elif not math.isfinite(np.float32(value)):
            problems.append(f"{line.where}: {key} is not finite")
    return np.array([0.0 if value is None else value for value in values], dtype=np.float32)


def _tags(lines: list[Line], problems: list[str]) -> dict[str, NDArray[np.float32]]:
    """A column of 0 and 1 for every tag, by its name."""
    sets: list[set[str]] = []
    for line in lines:
        given = line.values.get(TAGS) or []
        names = [name.strip() for name in given.split(_BETWEEN)] if isinstance(given, str) else given
        if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
            problems.append(f"{line.where}: tags {_short(given)} are no list of names")
            names = []
        sets.append({name.strip() for name in names})
    return {name: np.array([name in here for here in sets], dtype=np.float32) for name in sorted(set().union(*sets), key=natural)}


def _lists(lines: list[Line], problems: list[str]) -> dict[str, NDArray[np.float32]]:
    length, before = len(lines[0].values[LABEL]), len(problems)
    for line in lines:
        label = line.values[LABEL]
        if len(label) != length or length == 0:
            problems.append(f"{line.where}: the label has {len(label)} numbers, the first one {length}")
        elif any(_number(value) is None or not math.isfinite(np.float32(value)) for value in label):
            problems.append(f"{line.where}: the label holds something that is not a finite number")
    if len(problems) > before:
        return {}
    table = np.array([line.values[LABEL] for line in lines], dtype=np.float32)
    return {f"v{i}": table[:, i] for i in range(length)}


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _short(value: Any) -> str:
    return reprlib.repr(value)


def _csv(text: str, title: str) -> Iterable[tuple[str, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if FILE not in header or len(set(header)) != len(header):
            found = ", ".join(header) or "nothing"
            raise DataError(f"{title} line 1: expected different column names with {FILE!r} among them, found {found}")
        for fields in reader:
            where = f"{title} line {reader.line_num}"
            if not fields:
                continue
            if len(fields) != len(header):
                raise DataError(f"{where}: {len(fields)} columns, the first line has {len(header)}")
            row: dict[str, Any] = {name: field.strip() for name, field in zip(header, fields, strict=True)}
            if re.fullmatch(r"[+-]?[0-9]{1,18}", str(row.get(LABEL, ""))):
                row[LABEL] = int(row[LABEL])
            yield where, row
    except csv.Error as error:
        raise DataError(f"{title} line {reader.line_num}: not CSV (a quote that is not closed, or a NUL)") from error


def _json_lines(text: str, title: str) -> Iterable[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            where = f"{title} line {number}"
            row = _json(line, where)
            if not isinstance(row, dict):
                raise DataError(f"{where}: expected an object with {FILE!r}, found {type(row).__name__}")
            yield where, row


def _dataset_json(text: str, title: str) -> Iterable[tuple[str, dict[str, Any]]]:
    whole = _json(text, title)
    entries = whole.get("labels") if isinstance(whole, dict) else None
    if not isinstance(entries, list):
        raise DataError(f'{title}: expected {{"labels": [[{FILE}, label], ...]}}')
    for i, entry in enumerate(entries):
        where = f"{title} labels[{i}]"
        if not isinstance(entry, list) or len(entry) != 2:
            raise DataError(f"{where}: expected [{FILE}, label]")
        yield where, {FILE: entry[0], LABEL: entry[1]}


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON") from error


def _stop(problems: list[str]) -> None:
    if problems:
        more = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise DataError("\n".join([*problems[:_SHOWN], *more]))
