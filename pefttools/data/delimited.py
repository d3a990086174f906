"""Read csv and tsv files as rows: every line belongs to a row, or an error gives the line.

A quote that is part of a text makes the csv parser join everything up to the next quote. So a field that closes before
its separator, never closes, or contains whole rows raises an error. Texts of several lines are read, and counted in a
note. In tsv files quotes are part of the text unless the settings change that.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from pefttools.data import lines
from pefttools.data.separators import NAMES, SAMPLE, Layout, layout
from pefttools.data.settings import FileSettings
from pefttools.errors import UnreadableLine, UserError
from pefttools.reporter import Reporter

LONGEST_FIELD = 1 << 27
"""Maximum characters of a field, so that an unclosed quote does not read a whole file into memory."""


def rows(path: Path, settings: FileSettings, reporter: Reporter) -> Iterator[dict[str, str] | UserError]:
    """Yield one row per record: column -> text. A record with more or fewer columns than the header yields its error.

    Raises:
        UserError: quotes do not enclose a field, or two columns have the same name.
    """
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_FIELD))
    kind = "tsv" if settings.format == "tsv" else "csv"
    with lines.open_text(path, settings, reporter, newline="", by_line=True) as stream:
        head = list(islice(stream, SAMPLE))
        if not head:
            return
        head[0] = head[0].removeprefix(lines.MARK)
        skipped = 0
        if (declared := re.fullmatch(r"sep=(.)\s*", head[0])) and settings.separator is None:  # Excel's first line
            settings = settings.model_copy(update={"separator": declared[1]})
            head, skipped = head[1:], 1
        found = layout(head, settings, kind)
        _report(found, settings, kind, reporter)
        records = _Records(found, chain(head, stream), settings, skipped)
        names, first = _names(records, settings, reporter)
        if names is None:
            return
        repeated, enclosed = 0, 0
        for number, fields in chain(first, records):
            if len(fields) > 1 and not settings.header and [field.strip() for field in fields] == list(names):
                repeated += 1  # concatenated files repeat the header line
                continue
            enclosed += not found.quotes and any(map(_is_enclosed, fields))
            if len(fields) > len(names) and not any(field.strip() for field in fields[len(names) :]):
                fields = fields[: len(names)]  # separators at the line's end
            if bad := lines.undecodable(found.separator.join(fields), f"{settings.name} line {number}"):
                yield bad
            elif len(fields) == len(names):
                yield dict(zip(names, fields, strict=True))
            else:
                yield _ragged(fields, names, number, found, settings)
        _report_oddities(settings, repeated, enclosed, records.long, reporter)


def _report_oddities(
    settings: FileSettings, repeated: int, enclosed: int, long: Sequence[tuple[int, int]], reporter: Reporter
) -> None:
    """Report contents of a file that its author may not have intended.

    Args:
        repeated: number of repeated header lines.
        enclosed: number of rows with quotes around a text, which were read as part of the text.
        long: first and last line of every record that spans several lines.
    """
    if repeated:
        reporter.warn(
            f"{settings.name}: the header line occurs {repeated + 1} times; its repeats were not read as rows"
        )
    if enclosed and settings.quotes is None:
        reporter.warn(
            f"{settings.name}: {enclosed} rows have a text in quotes; the quotes were read as part of the text;"
            " set `quotes: true` next to its `source` if they enclose the text"
        )
    if long:
        start, end = max(long, key=lambda place: place[1] - place[0])
        many = (
            f"{len(long)} rows have texts of several lines, the longest in"
            if len(long) > 1
            else "1 row has a text of several lines, in"
        )
        reporter.note(f"{settings.name}: {many} lines {start} to {end}")


class _Records:
    """Iterates over (line number, fields) of a file's records; blank lines are skipped."""

    def __init__(self, found: Layout, text: Iterator[str], settings: FileSettings, skipped: int) -> None:
        self.layout, self.settings, self.skipped = found, settings, skipped
        self.reader = found.reader(text)
        self.end = skipped
        self.long: list[tuple[int, int]] = []
        """First and last line of every record that spans several lines."""

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        reader, skipped = self.reader, self.skipped
        while True:
            start = self.end + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise self.refusal(error, start) from error
            self.end = end = reader.line_num + skipped
            if end > start and any("\n" in f or "\r" in f for f in fields):
                self._check(fields, start, end)
            if fields and (len(fields) > 1 or fields[0].strip() or end > start or fields[0] == ""):
                yield start, fields

    def _check(self, fields: Sequence[str], start: int, end: int) -> None:
        self.long.append((start, end))
        if self.layout.hides_rows(fields):
            raise UserError(
                f"{self.settings.name} line {start}: the quote that opens here closes in line {end}, and each line"
                f" between looks like a row of its own; set `quotes: false` if quotes are part of the text"
            )

    def refusal(self, error: csv.Error, start: int) -> UserError:
        """The error for invalid quotes in the record that begins at line `start`."""
        place, end = f"{self.settings.name} line {start}", self.reader.line_num + self.skipped
        cure = "set `quotes: false` if quotes are part of the text, or write quotes inside of a field twice"
        if self.settings.escape is None:
            cure += ", or set `escape` if a character such as a backslash precedes them"
        if "expected after" in str(error):
            where = f" in line {end}" if end > start else ""
            return UserError(
                f"{place}: a field begins with a quote, but text follows after its closing quote{where}; {cure}"
            )
        if "unexpected end" in str(error):
            return UserError(f"{place}: the quote that opens here is never closed; {cure}")
        if "field limit" in str(error):
            return UserError(f"{place}: a field has more than {csv.field_size_limit()} characters; {cure}")
        return UserError(f"{place}: cannot be divided into columns ({error}); {cure}")


def _report(found: Layout, settings: FileSettings, kind: str, reporter: Reporter) -> None:
    usual = "\t" if kind == "tsv" else ","
    if settings.separator is None and (found.separator != usual or found.doubtful):
        name = NAMES[found.separator]
        reporter.note(f"{settings.name}: its columns were split at {name}; set `separator` to use another character")


def _names(
    records: _Records, settings: FileSettings, reporter: Reporter
) -> tuple[Sequence[str] | None, list[tuple[int, list[str]]]]:
    """The columns' names, or None for an empty file, and the rows that were read with them."""
    number, fields = next(iter(records), (0, None))
    if fields is None:
        return None, []
    found = [name.strip() for name in fields]
    if settings.header:
        if [name.casefold() for name in found] != [name.casefold() for name in settings.header]:
            return settings.header, [(number, fields)]
        reporter.warn(f"{settings.name}: its first line equals the names in `header`; it was not read as a row")
        return settings.header, []
    while len(found) > 1 and not found[-1]:  # a separator at the end of each line
        found.pop()
    if settings.quotes is None and not records.layout.quotes and all(map(_is_enclosed, found)):
        raise UserError(
            f"{settings.name} line {number}: its names are in quotes, which tsv files treat as text; set `quotes: true`"
            " next to its `source` if they enclose the columns, or `quotes: false` if they are part of the names"
        )
    names = [name or f"column{i}" for i, name in enumerate(found, 1)]
    if bad := lines.undecodable(", ".join(names), f"{settings.name} line {number}"):
        raise UserError(*bad.problems)
    if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise UserError(
            f"{settings.name} line {number}: has two columns with the name {twice!r}; rename one of them,"
            " or set `header` if the file has no header line"
        )
    return names, []


def _ragged(
    fields: Sequence[str], names: Sequence[str], number: int, found: Layout, settings: FileSettings
) -> UnreadableLine:
    what = "`header` names" if settings.header else "the header line has"
    mark = NAMES.get(found.separator, repr(found.separator))
    shown = (found.separator + " " * found.spaced).join(fields)[:80]
    cure = "needs quotes around it" if found.quotes else "is ambiguous"
    return UnreadableLine(
        f"{settings.name} line {number} has {_columns(len(fields))} but {what} {len(names)} ({', '.join(names)[:80]}):"
        f" {shown!r}; columns are separated by {mark}, and a text that contains one {cure}"
    )


def _is_enclosed(field: str) -> bool:
    return len(field) > 1 and field[0] == field[-1] == '"'


def _columns(number: int) -> str:
    return f"{number} column{'s' * (number != 1)}"
