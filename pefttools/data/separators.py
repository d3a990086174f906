"""Detect the layout of a csv or tsv file from its first lines: separator, spaces after it, columns of categories."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from pefttools.data.settings import FileSettings

CANDIDATES = (",", "\t", ";", "|")
NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
SAMPLE = 200
"""Number of lines to check."""


@dataclass(frozen=True)
class Layout:
    """The layout of a file, detected from its first lines."""

    separator: str
    spaced: bool
    """Whether a space after a separator belongs to the separator."""
    doubtful: bool
    """Whether another separator would split the lines just as evenly."""
    quotes: bool
    escape: str | None = None
    categories: dict[int, set[str]] = field(default_factory=dict)
    """Column -> its values, for columns with repeated values (labels)."""

    def reader(self, lines: Iterable[str], strict: bool = True) -> Any:
        """The csv module's reader for lines with this layout."""
        return csv.reader(
            lines,
            delimiter=self.separator,
            quoting=csv.QUOTE_MINIMAL if self.quotes else csv.QUOTE_NONE,
            escapechar=self.escape,
            skipinitialspace=self.spaced,
            strict=strict,
        )

    def hides_rows(self, fields: Sequence[str]) -> bool:
        """Whether a record of several lines is really one row per line, swallowed by a quote that is part of a text.

        It is if every line has as many separators as a row, and either the lines contain values of the columns of
        categories, or no separator is followed by a space or a line end, as most commas in a text are.
        """
        lines = [line.split(self.separator) for line in re.split(r"\r\n|\r|\n", self.separator.join(fields))]
        if len(fields) < 2 or any(len(line) != len(fields) for line in lines):
            return False
        known = [sum(line[column].strip() in values for line in lines) for column, values in self.categories.items()]
        if any(number > 1 and number >= len(lines) / 2 for number in known):
            return True
        clean = all(value and not value[0].isspace() for line in lines for value in line[1:])
        return clean and (len(lines) > 2 or self.separator != ",")


def layout(lines: Sequence[str], settings: FileSettings, kind: str) -> Layout:
    """The layout of the lines at a file's start.

    Args:
        kind: csv or tsv, which decides if the lines are ambiguous.
    """
    usual = "\t" if kind == "tsv" else ","
    quotes = settings.quotes if settings.quotes is not None else kind != "tsv"
    doubtful = False
    separator = settings.separator
    if separator is None:
        even = [s for s in CANDIDATES if _is_even(lines, Layout(s, False, False, quotes, settings.escape), settings)]
        doubtful = len(even) > 1
        even.sort(key=lambda s: (_spaces(lines, s), s != usual))
        separator = even[0] if even else _most(lines[:1], usual)
    found = Layout(separator, False, doubtful, quotes, settings.escape)
    rows = _rows(lines, found)
    behind = [value for row in rows for value in row[1:] if value]
    spaced = bool(behind) and all(value.startswith(" ") for value in behind)
    return Layout(separator, spaced, doubtful, quotes, settings.escape, _categories(lines, separator))


def _rows(lines: Sequence[str], layout: Layout) -> list[list[str]]:
    """The rows of the lines, without the last one, which may be incomplete; a single row is returned."""
    try:
        rows = [row for row in islice(layout.reader(lines, strict=False), SAMPLE) if row]
    except csv.Error:
        return []
    return rows[:-1] if len(rows) > 2 else rows


def _is_even(lines: Sequence[str], layout: Layout, settings: FileSettings) -> bool:
    """Whether nearly all rows have as many fields as the first row, or as `header` has names, and at least two."""
    rows = _rows(lines, layout)
    width = len(settings.header) if settings.header else len(rows[0]) if rows else 0
    return width > 1 and sum(len(row) == width for row in rows) >= 0.9 * len(rows)


def _spaces(lines: Sequence[str], separator: str) -> bool:
    """Whether the character is mostly followed by a space, as in sentences."""
    text = "".join(lines)
    return text.count(f"{separator} ") > text.count(separator) / 2


def _most(first: Sequence[str], usual: str) -> str:
    """The most frequent separator of the first line; the usual one if the line contains it."""
    line = first[0] if first else ""
    return usual if usual in line else max(CANDIDATES, key=lambda s: (line.count(s), s == usual))


def _categories(lines: Sequence[str], separator: str) -> dict[int, set[str]]:
    """The columns with repeated values, where quotes are treated as text."""
    rows = [line.rstrip("\r\n").split(separator) for line in lines[1:]]
    width = len(lines[0].rstrip("\r\n").split(separator)) if lines else 0
    rows = [row for row in rows if len(row) == width]
    columns = {i: [row[i].strip().strip('"') for row in rows] for i in range(width)}
    counts = {i: Counter(values) for i, values in columns.items() if len({*values}) <= len(values) / 2}
    return {i: {value for value, number in found.items() if value and number > 1} for i, found in counts.items()}
