"""Rows to predict on: from a file, standard input or the command line, with columns mapped as in training.

Labels are not needed. A row that cannot be read becomes an error in its place; the other rows are still read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools.data.files import format_of
from pefttools.data.lines import json_object
from pefttools.data.reading import Raw, stream
from pefttools.data.rows import refuse_half_characters
from pefttools.errors import UserError, nearest
from pefttools.recipe import typed_yaml
from pefttools.reporter import SILENT, Reporter

if TYPE_CHECKING:
    from pefttools.data.splitting import Row
    from pefttools.recipe.recipe import Recipe

STDIN = ("-", "/dev/stdin")
OVERRIDES = re.compile(r"data\.(columns\.\w+|train\.(?!source=|sha256=|last_rows=)\w+)=")
"""The overrides of a recipe that affect how rows to predict on are read."""


class TextRow(dict[str, Any]):
    """A row from `--text`. Its keys are the task's field names, whatever the names of the run's columns."""


def rows_to_predict(
    recipe: Recipe,
    file: str | None,
    texts: Sequence[str],
    stdin: Iterable[str | bytes],
    reporter: Reporter = SILENT,
    command: str = "predict",
) -> Iterable[Raw | UserError]:
    """Rows from `--text`, a data file, or JSON lines on standard input (`-`); an error for a line that is not a row.

    A file is read like the run's training rows, unless its extension names another format.

    Args:
        command: with which messages about the file begin.

    Raises:
        UserError: there is neither a file nor a text, or the file cannot be read.
    """
    if not texts and file is None:
        raise UserError("name a file, - for standard input, or use --text")
    if texts and "text" not in recipe.task.fields:
        fields = ", ".join(name for name in recipe.task.fields if name not in recipe.task.targets)
        raise UserError(f"--text: {recipe.task.name} has no field `text`; name a file with the columns {fields}")
    rows: Iterable[Raw | UserError] = (TextRow(text=text) for text in texts)
    if file in STDIN:
        return chain(rows, _json_lines(stdin))
    if file is None:
        return rows
    sources = _sources(file)
    source = file if sources == (file,) else sources
    values: dict[str, Any] = {"source": source, "sha256": None, "last_rows": None, "parallel_files": {}, "split": None}
    kinds = {"folder" if Path(one).is_dir() else format_of(Path(one)) for one in sources}
    if kinds != {""}:
        values |= {"format": "auto", "pattern": None}
        values |= {} if kinds <= {"csv", "tsv"} else {"separator": None, "escape": None}
    found = stream(recipe.data.train.with_values(**values), command, reporter, errors_in_place=True)
    return chain(rows, [next(found)], found)  # read the first row now, so that a bad file fails before all else


def _sources(file: str) -> tuple[str, ...]:
    """The files of a list like `[a.csv,b.csv]`; any other name stands for itself."""
    if Path(file).exists() or not (file.startswith("[") and file.endswith("]")):
        return (file,)
    names = typed_yaml.parse(file, tuple[str, ...])
    return tuple(names) if isinstance(names, list) and names else (file,)


def _json_lines(lines: Iterable[str | bytes]) -> Iterator[Raw | UserError]:
    for number, line in enumerate(lines, 1):
        where = f"standard input line {number}"
        try:
            text = line.decode("utf-8-sig") if isinstance(line, bytes) else line
            if text.strip():
                yield json_object(text, where)
        except UnicodeDecodeError as error:
            yield UserError(f"{where}: not UTF-8: byte {line[error.start]:#04x} at position {error.start}")
        except UserError as error:
            yield error


class FieldColumns:
    """Maps the fields of a run's task to columns of the rows to predict on."""

    def __init__(self, recipe: Recipe) -> None:
        self.task = recipe.task
        self.named: Mapping[str, str] = recipe.data.columns
        """Field -> column in the run's training rows."""
        self.fields = [field for field in self.task.fields if field not in self.task.targets]
        self.columns = {field: self.named.get(field, field) for field in self.fields}

    def fit(self, rows: Sequence[Raw | UserError], reporter: Reporter = SILENT) -> None:
        """Choose the columns by the first rows: those of training, or those named like the task's fields.

        Raises:
            UserError: the rows have no column for a field that the run needs.
        """
        known = columns_of(rows)
        if not known:
            return
        problems = []
        for field in self.fields:
            column = self.named.get(field, field)
            if column in known:
                continue
            if field in known:
                reporter.warn(f"the rows lack the training data's column {column!r}; {field!r} is read instead")
                self.columns[field] = field
            elif self.task.fields[field] or (field in self.named and field != "id"):
                match = nearest(column, known)
                hint = f"add data.columns.{field}={match}" if match else f"name its column with data.columns.{field}="
                problems.append(f"the rows have no column {column!r} for {field}; {hint}. Columns: {', '.join(known)}")
        inputs = [self.columns[field] for field in self.fields if field != "id"]
        if not problems and not {*inputs} & {*known}:
            problems = [
                f"the rows have none of the columns {', '.join(inputs)};"
                f" name one with data.columns.FIELD=COLUMN. Columns: {', '.join(known)}"
            ]
        if problems:
            raise UserError(*problems)

    def read(self, number: int, raw: Raw | UserError) -> Row | UserError:
        """The row as the task reads it, or an error; `id` keeps its type."""
        if isinstance(raw, UserError):
            return raw
        values = {field: raw.get(column) for field, column in self._of(raw).items()}
        try:
            row = self.task.read_unlabeled({f: v for f, v in values.items() if v is not None or self.task.fields[f]})
            refuse_half_characters(row)
        except (ValueError, UserError) as error:
            return UserError(f"row {number} {error}")
        return {**row, "id": values["id"]} if values.get("id") is not None else row

    def identity(self, raw: Raw | UserError) -> dict[str, Any]:
        """The row's `id`, where it has one."""
        value = None if isinstance(raw, UserError) else raw.get(self.columns.get("id", "id"))
        return {} if value is None else {"id": value}

    def _of(self, raw: Raw) -> Mapping[str, str]:
        return {field: field for field in self.fields} if isinstance(raw, TextRow) else self.columns


class CarriedColumns:
    """Further columns that are copied from the rows to the predictions (`--keep`)."""

    def __init__(self, names: Sequence[str] | None, fields: FieldColumns) -> None:
        """Args: names: columns to copy, one or several (with commas) a text; empty for all others; None for none."""
        self.names, self.fields = names, fields
        self.taken = {"row", "error", "answers", "prediction", *fields.fields}
        """Names that predictions use themselves."""

    def fit(self, rows: Sequence[Raw | UserError]) -> None:
        """Raises UserError when none of the first rows has a requested column."""
        known = columns_of(rows)
        if not self.names or not known:
            return
        self.names = [n for name in self.names for n in ([name] if name in known else name.split(",")) if n]
        if missing := [name for name in self.names if name not in known]:
            match = nearest(missing[0], known)
            hint = f"; did you mean {match!r}?" if match else "."
            raise UserError(f"--keep: the rows have no column {missing[0]!r}{hint} Columns: {', '.join(known)}")

    def of(self, raw: Raw | UserError, row: Row | UserError) -> dict[str, Any]:
        """The copied columns of a row; one whose name predictions use themselves becomes `input.NAME`.

        Args:
            row: the row as the task read it; columns that are in it are not copied again.
        """
        if self.names is None or isinstance(raw, UserError | TextRow):
            return {}
        if self.names:
            present = set() if isinstance(row, UserError) else {f for f in row if self.fields.columns.get(f) == f}
        else:
            present = set(self.fields.columns.values())
        names = [name for name in self.names or raw if name in raw and name not in present]
        return {f"input.{name}" if name in self.taken else name: raw[name] for name in names}


def columns_of(rows: Sequence[Raw | UserError]) -> list[str]:
    """All columns of some rows, in order of appearance."""
    return list(dict.fromkeys(name for row in rows if not isinstance(row, UserError | TextRow) for name in row))
