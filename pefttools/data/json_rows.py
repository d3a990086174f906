"""Read JSON as rows: a list of
objects, an object of columns, an object with the list under a key, SQuAD's, or JSON lines.

The content decides, not the ending: JSON lines may be in a .json file, and a list or objects over several lines
from a .jsonl file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pefttools.data import lines, squad
from pefttools.data.parts import SPLITS, chosen
from pefttools.data.settings import FileSettings
from pefttools.errors import UserError
from pefttools.reporter import Reporter

Row = dict[str, Any]
WRAPPERS = ("data", "rows", "examples", "instances", "records", "items")
"""Keys that a list of rows may be under."""
CHATS = {"messages", "conversations"}
"""Columns whose list of objects is the chat of one row."""
FORMS = (
    "needs a list of objects, an object of columns (lists of equal length), an object with a list under `data`,"
    " or one object per line"
)


def from_lines(path: Path, settings: FileSettings, reporter: Reporter) -> Iterator[Row | UserError]:
    """Yield one row per line, or the rows of a file that contains a list, or objects over several lines.

    A line without an object yields its error, and reading continues with the next line.
    """
    first = True
    for number, line in enumerate(lines.each(path, settings, reporter=reporter, by_line=True), 1):
        if not line.strip():
            continue
        where = f"{settings.name} line {number}"
        try:
            row: Row | UserError = lines.undecodable(line, where) or lines.json_object(line, where)
        except UserError as error:
            values = _whole(path, settings) if first and line.lstrip()[0] in "[{" else None
            if values and (len(values) == 1 or all(isinstance(value, dict) for value in values)):
                yield from _rows(values, settings, reporter)
                return
            row = error
        first = False
        yield row


def from_document(path: Path, settings: FileSettings, reporter: Reporter) -> Iterator[Row | UserError]:
    """The rows of one JSON value, or of several values in sequence, such as JSON lines."""
    text = lines.text(path, settings, reporter=reporter)
    if not text.strip():
        return
    try:
        values = [json.loads(text)]
    except (ValueError, RecursionError) as error:
        if text.lstrip()[0] == "{" and _is_object(text.lstrip().split("\n", 1)[0]):
            del text
            yield from from_lines(path, settings, reporter)
            return
        several = _values(text)
        if several is None:
            raise UserError(f"{settings.name}: not JSON: {error or 'too deep'}") from error
        values = several
    yield from _rows(values, settings, reporter)


def _whole(path: Path, settings: FileSettings) -> list[Any] | None:
    """The JSON values of a file whose values span lines; None if the file has other content."""
    try:
        return _values(lines.text(path, settings))
    except UserError:
        return None


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _values(text: str) -> list[Any] | None:
    """The JSON values of a text in sequence; None if the text has other content."""
    decoder, values, place = json.JSONDecoder(), [], 0
    text = text.strip()
    try:
        while place < len(text):
            value, place = decoder.raw_decode(text, place)
            values.append(value)
            while place < len(text) and text[place].isspace():
                place += 1
    except (ValueError, RecursionError):
        return None
    return values


def _rows(values: list[Any], settings: FileSettings, reporter: Reporter) -> list[Row]:
    """The rows of one JSON value; several values are rows themselves."""
    if len(values) > 1:
        return _objects(values, settings.name)
    value = values[0]
    if isinstance(value, list):
        return _objects(value, settings.name)
    if not isinstance(value, dict):
        raise UserError(f"{settings.name}: {FORMS}; found {type(value).__name__}")
    if squad.is_squad(value):
        return squad.rows(value, settings.name)
    if isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):  # pandas' orient="split"
        return _split_rows(value["columns"], value["data"], settings.name)
    if lists := [key for key, part in value.items() if key.lower() not in CHATS and _is_list_of_objects(part)]:
        if lists[0] in WRAPPERS and len(lists) == 1:
            return value[lists[0]]
        if {*lists} & {*WRAPPERS}:
            named = ", ".join(map(repr, lists))
            raise UserError(
                f"{settings.name}: contains lists of objects under several keys, {named}; use one file for each"
            )
    if value and all(key.lower() in SPLITS and _is_list_of_objects(part) for key, part in value.items()):
        return value[chosen(list(value), settings, reporter, "key")]
    if value and (set(value) & CHATS or not any(isinstance(part, (list, dict)) for part in value.values())):
        return [value]  # a file of one row
    if value and (columns := _columns(value, settings, reporter)) is not None:
        return columns
    raise UserError(f"{settings.name}: {FORMS}; found an object with the keys {', '.join(map(repr, value))[:200]}")


def _split_rows(names: list[Any], data: list[Any], source: str) -> list[Row]:
    for number, row in enumerate(data, 1):
        if not isinstance(row, list) or len(row) != len(names):
            raise UserError(f"{source}: item {number} of its `data` does not have one value for each of its `columns`")
    return [dict(zip(map(str, names), row, strict=True)) for row in data]


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _objects(values: list[Any], source: str) -> list[Row]:
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise UserError(f"{source}: {FORMS}; item {number} of its list is {type(value).__name__}")
    return values


def _columns(value: Mapping[str, Any], settings: FileSettings, reporter: Reporter) -> list[Row] | None:
    """The rows of an object of columns, which are lists or pandas' objects by row number; None for other objects."""
    if all(isinstance(column, dict) for column in value.values()):
        keys = {name: list(column) for name, column in value.items()}
        first = next(iter(keys.values()))
        if all(key.isdecimal() for key in value):  # pandas' orient="index": one key per row
            return list(value.values())
        if any(one != first for one in keys.values()) or not all(key.isdecimal() for key in first):
            return None
        columns = {name: list(column.values()) for name, column in value.items()}
    elif all(isinstance(column, list) for column in value.values()):
        columns = dict(value)
    else:
        return None
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name!r} {size}" for name, size in sizes.items())
        raise UserError(f"{settings.name}: is an object of columns that differ in length: {shown}")
    reporter.note(f"{settings.name}: read as an object of columns, {next(iter(sizes.values()), 0)} rows")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
