"""Files to rows: csv, tsv, json, jsonl, parquet, conll, lines, folders of text files, and hub sets.

A row is a dict of column -> value. Columns of text files are text; json, parquet and hub values keep their types.
Rows come one by one: of csv, jsonl, parquet and lines no more is in memory than is looked at.
"""

from __future__ import annotations

import csv
import json
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools.data import conll, lines, squad
from pefttools.data.settings import FileSettings
from pefttools.errors import UserError
from pefttools.reporter import Reporter
from pefttools.sources import fetch, hub

if TYPE_CHECKING:
    from datasets import ClassLabel

Raw = dict[str, Any]
ENDINGS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".conll": "conll",
    ".conllu": "conll",
    ".bio": "conll",
    ".iob": "conll",
    ".iob2": "conll",
    ".bmes": "conll",
    ".txt": "lines",
}
CSV_ROWS = 10_000
"""Rows of a csv file that are parsed at once."""


def read(settings: FileSettings, key: str, reporter: Reporter) -> list[Raw]:
    """All rows of one source, or the last of them.

    Args:
        key: where the settings stand in the recipe (`data.train`), for messages.

    Raises:
        UserError: nothing there, not readable as its format, or no rows in it.
    """
    rows: list[Any] = list(stream(settings, key, reporter))
    return rows[-settings.last_rows :] if settings.last_rows else rows


def stream(
    settings: FileSettings, key: str, reporter: Reporter, errors_in_place: bool = False
) -> Iterator[Raw | UserError]:
    """The rows of one source one by one. Raises as `read` does, as soon as it is seen.

    Args:
        errors_in_place: yield the error of a line that holds no row in the place of the row, and go on behind it.
    """
    try:
        rows = iter(_rows(settings, reporter))
        if (first := next(rows, None)) is None:
            raise UserError(f"{settings.source} is empty: it holds no rows")
        for row in chain([first], rows):
            if isinstance(row, UserError) and not errors_in_place:
                raise row
            yield row
    except UserError as error:
        raise UserError(*(f"{key}: {problem}" for problem in error.problems)) from error


def _rows(settings: FileSettings, reporter: Reporter) -> Iterable[Raw | UserError]:
    if settings.source.startswith("hf:"):
        return _hub(settings, reporter)
    path = fetch(settings.source, settings.sha256, reporter)
    kind = settings.format
    if kind == "auto" and (settings.pattern or settings.beside):
        kind = "lines"
    if kind == "auto":
        kind = "folders" if path.is_dir() else ENDINGS.get(path.suffix.lower(), "")
    if kind not in READERS:
        raise UserError(
            f"{settings.source}: its format cannot be told from the ending {path.suffix!r}; set `format`"
            f" to one of {', '.join(READERS)}"
        )
    if path.is_dir() != (kind == "folders"):
        raise UserError(f"{settings.source}: is a {'folder' if path.is_dir() else 'file'}, but the format is {kind}")
    rows = READERS[kind](path, settings.model_copy(update={"format": kind}))
    return _with_beside(rows, settings, reporter) if settings.beside else rows


def _csv(path: Path, settings: FileSettings) -> Iterator[Raw]:
    import pandas

    hint = "; set `quotes: false` if quotes are part of the text" if settings.quotes else ""
    try:
        with path.open(encoding=settings.encoding, errors=settings.decode_errors, newline="") as text:
            frames = pandas.read_csv(
                text,
                sep="\t" if settings.format == "tsv" else ",",
                dtype=str,
                keep_default_na=False,  # "NA" and "null" are words
                header=None if settings.header else 0,
                names=list(settings.header) if settings.header else None,
                quoting=csv.QUOTE_MINIMAL if settings.quotes else csv.QUOTE_NONE,
                index_col=False,
                chunksize=CSV_ROWS,
            )
            while (frame := _next_frame(frames)) is not None:
                columns = [[v if isinstance(v, str) else None for v in frame[c]] for c in frame.columns]
                names = [str(name) for name in frame.columns]
                yield from (dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True))
    except pandas.errors.EmptyDataError:
        return
    except (LookupError, UnicodeDecodeError):
        lines.text(path, settings)  # its message knows the place in the file
        raise
    except (pandas.errors.ParserError, pandas.errors.ParserWarning, ValueError) as error:
        raise UserError(f"{settings.source}: {str(error).strip()}{hint}") from error


def _next_frame(frames: Any) -> Any:
    """The next of a file's frames; None behind the last."""
    import pandas

    with warnings.catch_warnings():
        warnings.simplefilter("error", pandas.errors.ParserWarning)  # a first row too long would be cut
        return next(frames, None)


def _jsonl(path: Path, settings: FileSettings) -> Iterator[Raw | UserError]:
    """The objects, and in the place of a line that holds none its error: the next line is found all the same."""
    for number, line in enumerate(lines.each(path, settings), 1):
        if line.strip():
            try:
                yield lines.json_object(line, f"{settings.source} line {number}")
            except UserError as error:
                yield error


def _json(path: Path, settings: FileSettings) -> list[Raw]:
    text = lines.text(path, settings)
    if not text.strip():
        return []
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{settings.source}: not JSON: {error}") from error
    rows = value.get("data") if isinstance(value, dict) else value
    if squad.is_squad(value):
        return squad.rows(value, settings.source)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{settings.source}: takes a list of objects, or an object with such a list under `data`")
    return rows


def _parquet(path: Path, settings: FileSettings) -> Iterator[Raw]:
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{settings.source}: not a parquet file: {error}") from error


def _conll(path: Path, settings: FileSettings) -> list[Raw]:
    return conll.rows(list(lines.each(path, settings)), settings.header, settings.source)


def _lines(path: Path, settings: FileSettings) -> Iterator[Raw]:
    if not settings.pattern:
        yield from ({"text": line} for line in lines.each(path, settings) if settings.beside or line.strip())
        return
    pattern = re.compile(settings.pattern)
    numbered: Iterable[tuple[int, str]] = enumerate(lines.each(path, settings), 1)
    if settings.last_rows and not settings.beside:  # those before may be of another form
        numbered = deque(numbered, settings.last_rows)
    for number, line in numbered:
        match = pattern.fullmatch(line)
        if not match:
            raise UserError(
                f"{settings.source} line {number}: does not match the pattern {settings.pattern!r}: {line[:80]!r}"
            )
        yield match.groupdict()


def _with_beside(lines_read: Iterable[Any], settings: FileSettings, reporter: Reporter) -> list[Raw]:
    """The rows of a file of lines with the columns that are the same lines of other files; all blank ones left out."""
    rows = list(lines_read)
    for column, source in settings.beside.items():
        path = fetch(source, None, reporter)
        if path.is_dir():
            raise UserError(f"{source}: is a folder, but the lines of a file are asked for (`beside.{column}`)")
        values = list(lines.each(path, settings, source))
        if len(values) != len(rows):
            raise UserError(
                f"{source} has {len(values)} lines and {settings.source} has {len(rows)};"
                " the lines of files beside each other belong together one by one"
            )
        for row, line in zip(rows, values, strict=True):
            row[column] = line
    return [row for row in rows if any(value and value.strip() for value in row.values())]


def _folders(path: Path, settings: FileSettings) -> list[Raw]:
    files = sorted(f for f in path.glob("*/*") if f.is_file() and not f.name.startswith("."))
    return [
        {"text": lines.text(f, settings), "label": f.parent.name, "id": f.relative_to(path).as_posix()} for f in files
    ]


def _hub(settings: FileSettings, reporter: Reporter) -> list[Raw]:
    from datasets import ClassLabel, load_dataset

    rest = settings.source.removeprefix("hf:")
    name, revision = hub.split(rest)
    reporter.note(f"{settings.source}: loading its {settings.split} split from the hub")
    try:
        table = load_dataset(name, settings.config, split=settings.split, revision=revision)
    except (ValueError, RuntimeError) as error:  # no such configuration or split; a loading script
        raise UserError(f"{settings.source}: {error}") from error
    except Exception as error:
        raise hub.explained(rest, error) from error
    rows = table.to_list()
    for column, feature in table.features.items():
        inner = getattr(feature, "feature", feature)  # of a list: one class a token
        if isinstance(inner, ClassLabel):
            for row in rows:
                row[column] = _class_names(row[column], inner)
    return rows


def _class_names(value: Any, classes: ClassLabel) -> Any:
    if isinstance(value, list):
        return [_class_names(item, classes) for item in value]
    return classes.int2str(value) if value is not None and value >= 0 else None  # a hidden test split's are -1


READERS: dict[str, Callable[[Path, FileSettings], Iterable[Raw | UserError]]] = {
    "csv": _csv,
    "tsv": _csv,
    "json": _json,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "conll": _conll,
    "lines": _lines,
    "folders": _folders,
}
