"""One file's rows: columns mapped, each row checked by the task, labels renamed or made of numbers.

A row that the task cannot use refuses its file, or is skipped and listed (`data.invalid_rows`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from pefttools.data.fields import UNREAD
from pefttools.data.files import format_of
from pefttools.data.headers import missing_header
from pefttools.data.reading import read_placed
from pefttools.data.rows import ID, Found, LeftOut, Row, RowReader, labels_of
from pefttools.data.settings import BinSettings, DataSettings, FileSettings
from pefttools.errors import UserError, nearest
from pefttools.reporter import SILENT, Reporter

UNREADABLE = "cannot be read"
"""The reason for a line from which no row can be read."""
SHOWN = 20
"""Row numbers of one reason that a message lists."""


@dataclass(frozen=True)
class Loaded:
    """What one file gave."""

    rows: list[Found]
    invalid: Mapping[str, Sequence[str]]
    """What is wrong with rows that were skipped -> their numbers."""
    unread: Sequence[str]
    """Columns that no field of the task reads."""
    labels: frozenset[str] = frozenset()
    """Its rows' labels as they are written, before `data.labels` renames them."""


def load_rows(
    name: str, settings: DataSettings, task: RowReader, counts: Counter[str], reporter: Reporter = SILENT
) -> list[Row]:
    """The checked rows of one file (`train`, `validation` or `test`), all of them but those in a nameless bin."""
    return [found.row for found in load_file(name, settings, task, counts, reporter).rows]


def load_file(
    name: str, settings: DataSettings, task: RowReader, counts: Counter[str], reporter: Reporter = SILENT
) -> Loaded:
    """The same with the rows' ids, and what was not read.

    Args:
        counts: reason -> number of rows that were left out; added to.

    Raises:
        UserError: a file that cannot be read, a missing column, rows the task cannot use.
    """
    file, key = getattr(settings, name), f"data.{name}"
    where = f"{key}: {file.name}"
    placed = read_placed(file, key, reporter, errors_in_place=settings.invalid_rows == "skip")
    readable = [raw for _, raw in placed if not isinstance(raw, UserError)]
    unreadable = [str(raw) for _, raw in placed if isinstance(raw, UserError)]
    shown = _first_three(unreadable)
    if not readable:
        raise UserError(f"{where}: no line can be read: {shown}")
    known = list(dict.fromkeys(chain.from_iterable(readable)))
    columns = _columns(known, key, file, settings, task, missing_header(readable, key, file))
    rows: list[Found] = []
    invalid: dict[str, list[str]] = {}
    inside: Counter[str] = Counter()
    written: set[str] = set()
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
        rows.append(Found(row, str(row.get(ID, place))))
    if invalid:
        order = {place: number for number, (place, _) in enumerate(placed)}
        _refuse_or_warn(where, invalid, order, settings, counts, reporter)
    if unreadable:
        reporter.warn(f"{key}: the lines that cannot be read: {shown}")
    _warn_unread(where, inside, reporter)
    if not rows:
        raise UserError(f"{where}: no row can be used ({'; '.join(f'{n} rows: {why}' for why, n in counts.items())})")
    return Loaded(rows, invalid, [column for column in known if column not in columns.values()], frozenset(written))


def _refuse_or_warn(
    where: str,
    invalid: Mapping[str, list[str]],
    order: Mapping[str, int],
    settings: DataSettings,
    counts: Counter[str],
    reporter: Reporter,
) -> None:
    """What is wrong with rows -> their places; `order` is that of all places."""
    number = sum(map(len, invalid.values()))
    if settings.invalid_rows == "refuse":
        first = [(i, reason) for reason, numbers in invalid.items() for i in numbers]
        first.sort(key=lambda one: order[one[0]])
        more = f" (and {number - 3} rows more)" if number > 3 else ""
        raise UserError(
            f"{where}: {'; '.join(f'row {i} {reason}' for i, reason in first[:3])}{more};"
            " correct the file, or set data.invalid_rows=skip to leave such rows out"
        )
    counts["invalid"] += number
    listed = "; ".join(
        f"{reason}: {'rows' if len(numbers) > 1 else 'row'} {_shown(numbers)}" for reason, numbers in invalid.items()
    )
    reporter.warn(f"{where}: {number} rows cannot be used and are left out: {listed}")


def _warn_unread(where: str, inside: Mapping[str, int], reporter: Reporter) -> None:
    """Warn of what stands inside rows and was not read: what -> the number of rows that have it."""
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
    """The first problems in one line, and how many more there are."""
    more = f"; and {len(problems) - 3} lines more" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more


def _checked(values: dict[str, Any], settings: DataSettings, task: RowReader, written: set[str]) -> Row:
    """The row as the task reads it; its label as it is written is added to the set."""
    row = task.read(values)
    if "label" in row:
        written.update(one for one in labels_of(row) if isinstance(one, str))
        row["label"] = _renamed(row["label"], settings.labels)
        if settings.bins:
            row["label"] = _binned(row["label"], settings.bins)
    return row


def _renamed(label: Any, names: Mapping[str, str]) -> Any:
    """A label, or each of a list of them, by its new name."""
    if isinstance(label, list):
        return [_renamed(one, names) for one in label]
    return names.get(label, label) if isinstance(label, str) else label


def _binned(label: Any, bins: BinSettings) -> str:
    try:
        value = float(label)
    except (ValueError, TypeError) as error:
        raise ValueError(f"has a label that is not a number, {label!r}, but data.bins needs numbers") from error
    name = bins.names[sum(value >= edge for edge in bins.edges)]
    if name is None:
        raise LeftOut("in a bin without a name")
    return name


def _columns(
    known: list[str], key: str, file: FileSettings, settings: DataSettings, task: RowReader, no_header: str | None
) -> dict[str, str]:
    """Field -> column, for the fields this file has."""
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
                hint = f": its lines were not split; set {key}.separator to the character between columns"
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
