"""Read lines, parallel files and folders of texts as rows."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pefttools.data import conll, lines
from pefttools.data.settings import FileSettings
from pefttools.errors import UnreadableLine, UserError
from pefttools.reporter import Reporter
from pefttools.sources import fetch

Row = dict[str, Any]


def of_conll(path: Path, settings: FileSettings, reporter: Reporter) -> list[Row]:
    """The rows of a CoNLL file, one per sentence."""
    return conll.rows(list(lines.each(path, settings, reporter=reporter)), settings.header, settings.name)


def of_lines(path: Path, settings: FileSettings, reporter: Reporter) -> Iterator[Row | UserError]:
    """Yield one row per line, with the pattern's groups as columns; a line that does not match yields its error."""
    text = lines.each(path, settings, reporter=reporter, by_line=not settings.parallel_files)
    pattern = re.compile(settings.pattern or "(?s:(?P<text>.*))")
    numbered: Iterable[tuple[int, str]] = enumerate(text, 1)
    if settings.last_rows and not settings.parallel_files:  # earlier lines may have another form
        numbered = deque(numbered, settings.last_rows)
    for number, line in numbered:
        if not (line.strip() or settings.parallel_files or settings.pattern):
            continue
        where, match = f"{settings.name} line {number}", pattern.fullmatch(line)
        if bad := lines.undecodable(line, where):
            yield bad
        elif match:
            yield match.groupdict()
        else:
            yield UnreadableLine(f"{where}: does not match the pattern {settings.pattern!r}: {line[:80]!r}")


def with_parallel(lines_read: Iterable[Any], settings: FileSettings, reporter: Reporter) -> list[Row]:
    """The rows of a file of lines, with the same lines of other files as further columns; blank rows are skipped."""
    rows = list(lines_read)
    if bad := [row for row in rows if isinstance(row, UserError)]:
        raise UserError(*bad[0].problems)  # a skipped line would misalign the other files
    for column, source in settings.parallel_files.items():
        path = fetch(source, None, reporter)
        if path.is_dir():
            raise UserError(f"{source}: is a folder, but `parallel_files.{column}` needs a file")
        values = list(lines.each(path, settings, source, reporter))
        if len(values) != len(rows):
            raise UserError(
                f"{source} has {len(values)} lines and {settings.name} has {len(rows)};"
                " parallel files must have the same number of lines"
            )
        for row, line in zip(rows, values, strict=True):
            row[column] = line
    return [row for row in rows if any(value and value.strip() for value in row.values())]


def of_folders(path: Path, settings: FileSettings, reporter: Reporter) -> list[Row]:
    """One row per text file, labelled by its folder."""
    files = sorted(f for f in path.glob("*/*") if f.is_file() and not f.name.startswith("."))
    if not files:
        raise UserError(
            f"{settings.name}: contains no folders with texts, and no csv, json or parquet files; set `format` to read"
            " its other files as one table"
        )
    return [
        {
            "text": lines.text(f, settings, str(f), reporter),
            "label": f.parent.name,
            "id": f.relative_to(path).as_posix(),
        }
        for f in files
    ]
