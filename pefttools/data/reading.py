"""Read rows from csv, tsv, json, jsonl, parquet, arrow, conll, lines, workbooks, folders of texts, and hub data sets.

A row is a dict of column -> value. Columns of text files are strings; values of json, parquet, arrow and the hub keep
their types, and class numbers are replaced by their names. Rows of csv, jsonl, parquet, arrow and lines are streamed,
so that files may be larger than memory. A file is either read completely or rejected with the position of the error.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pefttools.data import arrow_rows, delimited, hub_rows, json_rows, text_rows, workbooks
from pefttools.data.files import files
from pefttools.data.lines import LINE_BY_LINE
from pefttools.data.parts import NAMES, Implied
from pefttools.data.settings import FileSettings
from pefttools.data.spool import spooled
from pefttools.errors import UnreadableLine, UserError
from pefttools.reporter import Reporter

Raw = dict[str, Any]
Placed = tuple[str, Raw | UserError]
"""A row's place and the row, or the error of a line without one. The place is the row's number in its file, counted
from 1, with the file's name if the source has several files (`b.csv:17`)."""
READERS: dict[str, Callable[[Path, FileSettings, Reporter], Iterable[Raw | UserError]]] = {
    "csv": delimited.rows,
    "tsv": delimited.rows,
    "json": json_rows.from_document,
    "jsonl": json_rows.from_lines,
    "parquet": arrow_rows.parquet,
    "arrow": arrow_rows.arrow,
    "conll": text_rows.of_conll,
    "lines": text_rows.of_lines,
    "workbook": workbooks.rows,
    "folders": text_rows.of_folders,
}
DELIMITED = ("separator", "escape")
"""Settings that apply only to csv and tsv files."""
SKIP = "correct the file, or set data.invalid_rows=skip to leave such lines out"
SHOWN = 3
"""Number of unreadable lines that one error lists."""


def read(settings: FileSettings, key: str, reporter: Reporter) -> list[Raw]:
    """All rows of one source, or its last rows if `last_rows` is set.

    Args:
        key: the settings' key in the recipe (`data.train`), for messages.

    Raises:
        UserError: the source does not exist, does not match its format, or has no rows.
    """
    rows: list[Any] = [row for _, row in read_placed(settings, key, reporter)]
    return rows


def read_placed(
    settings: FileSettings, key: str, reporter: Reporter, errors_in_place: bool = False
) -> Sequence[Placed]:
    """The rows of `read` with their places; many rows are in a temporary file. Raises as `read` does.

    Args:
        errors_in_place: as in `stream`.
    """
    rows = _stream(settings, key, reporter, errors_in_place)
    return list(deque(rows, settings.last_rows)) if settings.last_rows else spooled(rows)


def stream(
    settings: FileSettings, key: str, reporter: Reporter, errors_in_place: bool = False
) -> Iterator[Raw | UserError]:
    """Yield the rows of one source. Raises as `read` does, when it reaches the error.

    Args:
        errors_in_place: yield the error of an unreadable line instead of a row, and continue with the next line.
    """
    return (row for _, row in _stream(settings, key, reporter, errors_in_place))


def _stream(settings: FileSettings, key: str, reporter: Reporter, errors_in_place: bool) -> Iterator[Placed]:
    if settings.split is None:
        name = key.rpartition(".")[2]
        settings = settings.model_copy(update={"split": Implied(name if name in NAMES else "train")})
    if errors_in_place and settings.decode_errors == "strict":
        settings = settings.model_copy(update={"decode_errors": LINE_BY_LINE})
    try:
        rows = iter(_rows(settings, reporter))
        if (first := next(rows, None)) is None:
            raise UserError(f"{settings.name} is empty: it has no rows")
        for place, row in chain([first], rows):
            if isinstance(row, UserError) and not errors_in_place:
                raise _with_others(row, rows)
            yield place, row
    except UserError as error:
        cure = [SKIP] if isinstance(error, UnreadableLine) and key.startswith("data.") else []
        raise UserError(*(f"{key}: {problem}" for problem in (*error.problems, *cure))) from error


def _with_others(first: UserError, rest: Iterator[Placed]) -> UnreadableLine:
    """One error that lists the first unreadable lines and the number of the others."""
    bad, others = [first], 0
    try:
        for _, row in rest:
            if isinstance(row, UserError):
                others += len(bad) == SHOWN
                bad += [row] * (len(bad) < SHOWN)
    except UserError:  # a fatal error appears again once these lines are corrected
        pass
    problems = [problem for error in bad for problem in error.problems]
    return UnreadableLine(*problems, *([f"{others} more lines cannot be read"] if others else []))


def _rows(settings: FileSettings, reporter: Reporter) -> Iterable[Placed]:
    if settings.name.startswith("hf:"):
        return _numbered(hub_rows.rows(settings, reporter))
    found = list(files(settings, reporter))
    for _, file in found:
        present = [name for name in DELIMITED if getattr(settings, name) is not None]
        if present and file.format not in ("csv", "tsv"):
            raise UserError(f"{file.name}: `{present[0]}` is for csv and tsv files, but this is {file.format}")
        if file.sheet is not None and file.format != "workbook":
            raise UserError(f"{file.name}: `sheet` is for workbooks, but this is {file.format}")
    if len(found) > 1:
        if settings.parallel_files:
            raise UserError(f"{settings.name}: `parallel_files` needs one file, but the source has {len(found)}")
        return _joined(found, reporter)
    path, file = found[0]
    rows = READERS[file.format](path, file, reporter)
    return _numbered(text_rows.with_parallel(rows, file, reporter) if settings.parallel_files else rows)


def _numbered(rows: Iterable[Raw | UserError], name: str = "") -> Iterator[Placed]:
    return ((f"{name}:{number}" if name else str(number), row) for number, row in enumerate(rows, 1))


def _names(paths: Sequence[Path]) -> list[str]:
    """Distinct names of the files: their file names, or their paths below the common folder."""
    if len({path.name for path in paths}) == len(paths):
        return [path.name for path in paths]
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    return [path.relative_to(folder).as_posix() for path in paths]


def _joined(found: list[tuple[Path, FileSettings]], reporter: Reporter) -> Iterator[Placed]:
    """Yield the rows of several files in sequence, and warn of files whose columns differ from the first file's."""
    once, first = _Once(reporter), None
    names = _names([path for path, _ in found])
    for name, (path, file) in zip(names, found, strict=True):
        once.name = file.name
        columns = None
        for place, row in _numbered(READERS[file.format](path, file, once), name):
            if columns is None and not isinstance(row, UserError):
                columns = list(row)
                first = first or (file.name, columns)
                if {*columns} != {*first[1]}:
                    reporter.warn(
                        f"{file.name} has the columns {', '.join(columns)}, but {first[0]} has {', '.join(first[1])}"
                    )
            yield place, row
        if columns is None:
            reporter.warn(f"{file.name} is empty: it has no rows")


class _Once(Reporter):
    """A reporter that forwards a message that applies to many files only for the first of them."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter, self.name, self.seen = reporter, "", set[str]()

    def _new(self, message: str) -> bool:
        kind = message.replace(self.name, "")
        new = kind not in self.seen
        self.seen.add(kind)
        return new

    def note(self, message: str) -> None:
        if self._new(message):
            self.reporter.note(message)

    def warn(self, message: str) -> None:
        if self._new(message):
            self.reporter.warn(message)
