"""Detect csv files, tsv files and sheets without a header line, whose first row was taken for the columns' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pefttools.data.files import format_of
from pefttools.data.settings import FileSettings

ROWS = 1000
"""Number of rows to check."""


def missing_header(rows: Sequence[Mapping[str, Any]], key: str, file: FileSettings) -> str | None:
    """A hint for the user if the columns' names look like values; None if they look like names.

    Args:
        key: the file's key in the recipe (`data.train`).
    """
    kind = format_of(Path(file.sources[0])) if file.format == "auto" else file.format
    names = list(rows[0]) if rows and not file.header and kind in ("csv", "tsv", "workbook") else []
    if not any(_is_value(name, rows) for name in names):
        return None
    return (
        f"its first line ({', '.join(names)[:80]!r}) looks like a row, not like column names; if it is a row,"
        f" set {key}.header to {len(names)} names, in the order of the columns"
    )


def _is_value(name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a column's name is a number, a sentence, or one of the column's own values."""
    try:
        float(name)
    except ValueError:
        return len(name.split()) > 3 or any(row.get(name) == name for row in rows[:ROWS])
    return True
