"""Load one file's rows: map columns, let the task check each row, and rename or bin labels.

A row that the task cannot use rejects its file, or is skipped and listed (`data.invalid_rows`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pefttools.data.fields import UNREAD
from pefttools.data.files import format_of
from pefttools.data.headers import ROWS, missing_header
from pefttools.data.reading import Placed, Raw, read_placed
from pefttools.data.rows import ID, LeftOut, Row, RowReader, labels_of, refuse_half_characters
from pefttools.data.settings import BinSettings, DataSettings, FileSettings
from pefttools.data.spool import Collector
from pefttools.errors import UserError, nearest
from pefttools.reporter import SILENT, Reporter

UNREADABLE = "cannot be read"
"""The reason for skipping a line that cannot be read as a row."""
SHOWN = 20
"""Number of row numbers that a message lists per reason."""


@dataclass(frozen=True)
class Loaded:
    """The content of one file."""

    rows: Sequence[Row]
    ids: Sequence[str]
    """The rows' own ids, or their numbers in the file."""
    values: Sequence[Any]
    """The rows' values in the column that was asked for; empty if there is none."""
    invalid: Mapping[str, Sequence[str]]
    """Problem of skipped rows -> their numbers."""
    unread: Sequence[str]
    """Columns that the task does not read."""
    labels: frozenset[str] = frozenset()
    """The labels in the file, before `data.labels` renames them."""
    columns: Sequence[str] = ()
    """All columns of the file."""


def load_rows(
    name: str, settings: DataSettings, task: RowReader, counts: Counter[str], reporter: Reporter = SILENT
) -> Sequence[Row]:
    """The checked rows of one file (`train`, `validation` or `test`), except those in a bin without a name."""
    return load_file(name, settings, task, counts, reporter).rows


def load_file(
    name: str,
    settings: DataSettings,
    task: RowReader,
    counts: Counter[str],
    reporter: Reporter = SILENT,
    column: str | None = None,
) -> Loaded:
    """The rows of one file with their ids, and the problems and unread columns of the file.

    Args:
        counts: reason -> number of skipped rows, which this function increases.
        column: of the file, whose value each row gets besides.

    Raises:
        UserError: the file cannot be read, a column is missing, or the task cannot use a row.
    """
    file, key = getattr(settings, name), f"data.{name}"
    where = f"{key}: {file.name}"
    placed = read_placed(file, key, reporter, errors_in_place=settings.invalid_rows == "skip")
    first, unreadable = _readable(placed, where)
    known = list(dict.fromkeys(chain.from_iterable(raw for _, raw in placed if not isinstance(raw, UserError))))
    columns = _columns(known, key, file, settings, task, missing_header(first, key, file))
    rows, ids, values = Collector[Row](), Collector[str](), Collector[Any]()
    invalid: dict[str, list[str]] = {}
    inside, written = Counter[str](), set[str]()
    for place, raw in placed:
        if isinstance(raw, UserError):
            invalid.setdefault(UNREADABLE, []).append(place)
            continue
        try:
            row = _checked({f: raw.get(column) for f, column in columns.items()}, settings, task, written)
        except LeftOut as reason:
            counts[str(reason)] += 1
            continue
        except UserError as error:
            raise UserError(*(f"{where} {problem}" for problem in error.problems)) from error
        except ValueError as error:
            invalid.setdefault(str(error), []).append(place)
            continue
        inside.update(row.pop(UNREAD, ()))
        rows.add(row)
        ids.add(str(row.get(ID, place)))
        if column:
            values.add(raw.get(column))
    if invalid:
        _refuse_or_warn(where, invalid, (place for place, _ in placed), settings, counts, reporter)
    if unreadable:
        reporter.warn(f"{key}: the lines that cannot be read: {_first_three(unreadable)}")
    _warn_unread(where, inside, reporter)
    if not rows.items:
        raise UserError(f"{where}: no row can be used ({'; '.join(f'{n} rows: {why}' for why, n in counts.items())})")
    unread = [one for one in known if one not in columns.values()]
    return Loaded(rows.items, ids.items, values.items, invalid, unread, frozenset(written), known)


def _readable(placed: Sequence[Placed], where: str) -> tuple[list[Raw], list[str]]:
    """The first rows, and the problems of lines without one. Raises UserError when there are only such lines."""
    readable = list(islice((raw for _, raw in placed if not isinstance(raw, UserError)), ROWS))
    unreadable = [str(raw) for _, raw in placed if isinstance(raw, UserError)]
    if not readable:
        raise UserError(f"{where}: no line can be read: {_first_three(unreadable)}")
    return readable, unreadable


def _refuse_or_warn(
    where: str,
    invalid: Mapping[str, list[str]],
    places: Iterable[str],
    settings: DataSettings,
    counts: Counter[str],
    reporter: Reporter,
) -> None:
    """Raise an error or warn about invalid rows: problem -> their places; `places` has those of all rows, in order."""
    number = sum(map(len, invalid.values()))
    if settings.invalid_rows == "refuse":
        reasons = {place: reason for reason, numbers in invalid.items() for place in numbers}
        first = list(islice((place for place in places if place in reasons), 3))
        more = f" (and {number - 3} more rows)" if number > 3 else ""
        raise UserError(
            f"{where}: {'; '.join(f'row {place} {reasons[place]}' for place in first)}{more};"
            " correct the file, or set data.invalid_rows=skip to leave such rows out"
        )
    counts["invalid"] += number
    listed = "; ".join(
        f"{reason}: {'rows' if len(numbers) > 1 else 'row'} {_shown(numbers)}" for reason, numbers in invalid.items()
    )
    reporter.warn(f"{where}: {number} rows cannot be used and are skipped: {listed}")


def _warn_unread(where: str, inside: Mapping[str, int], reporter: Reporter) -> None:
    """Warn about parts of rows that were not read: part -> number of rows with it."""
    if inside:
        listed = ", ".join(f"{what} ({number} rows)" for what, number in sorted(inside.items()))
        reporter.warn(f"{where}: not read: {listed}")


def _some(columns: Sequence[str]) -> str:
    more = f" and {len(columns) - SHOWN} more" if len(columns) > SHOWN else ""
    return ", ".join(columns[:SHOWN]) + more


def _shown(numbers: Sequence[str]) -> str:
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return ", ".join(numbers[:SHOWN]) + more


def _first_three(problems: Sequence[str]) -> str:
    """The first three problems in one line, and the number of further ones."""
    more = f"; and {len(problems) - 3} more lines" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more


def _checked(values: dict[str, Any], settings: DataSettings, task: RowReader, written: set[str]) -> Row:
    """The row that the task reads; adds its original label to `written`."""
    row = task.read(values)
    refuse_half_characters(row)
    if "label" in row:
        written.update(one for one in labels_of(row) if isinstance(one, str))
        row["label"] = _renamed(row["label"], settings.labels)
        if settings.bins:
            row["label"] = _binned(row["label"], settings.bins)
    return row


def _renamed(label: Any, names: Mapping[str, str]) -> Any:
    """The new name of a label, or of each label in a list."""
    if isinstance(label, list):
        return [_renamed(one, names) for one in label]
    return names.get(label, label) if isinstance(label, str) else label


def _binned(label: Any, bins: BinSettings) -> str:
    try:
        value = float(label)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"has the label {label!r}, but data.bins needs numbers; correct the label or remove data.bins"
        ) from error
    name = bins.names[sum(value >= edge for edge in bins.edges)]
    if name is None:
        raise LeftOut("in a bin without a name")
    return name


def _columns(
    known: list[str], key: str, file: FileSettings, settings: DataSettings, task: RowReader, no_header: str | None
) -> dict[str, str]:
    """Field -> column, for the fields that this file has."""
    chosen, problems = {}, []
    for name, required in task.fields.items():
        column = settings.columns.get(name, name)
        if column in known:
            chosen[name] = column
        elif required or name in settings.columns:
            match = nearest(column, known)
            hint = f"; set data.columns.{name}={match}" if match else f"; set data.columns.{name}"
            if known == ["text"] and "tokens" in task.fields:
                hint = f"; set {key}.format=conll for a file with one word per line"
            if len(known) == 1 and format_of(Path(file.sources[0])) in ("csv", "tsv"):
                hint = f": its lines have one column; set {key}.separator to the character between columns"
            if no_header:
                hint = f": {no_header}"
            problems.append(f"{key}: {file.name} has no column {column!r} for {name}{hint}. Columns: {_some(known)}")
    if unknown := sorted(set(settings.columns) - set(task.fields)):
        problems.append(
            f"data.columns: the task {task.name} has no field {', '.join(unknown)}. Fields: {', '.join(task.fields)}"
        )
    if problems:
        raise UserError(*problems)
    return chosen
