"""Predictions written to a file, whole or not at all: csv, tsv, jsonl or parquet, by the file's ending.

In jsonl a row has what it has. The other three have the same columns for all rows, so rows wait in a temporary file
until the columns of the last one are known; memory stays that of a block. In csv and tsv `probabilities` and `answers`
become a column each, like `probabilities.spam`, and other lists and mappings are JSON.
"""

from __future__ import annotations

import csv
import json
import pickle
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pefttools import atomic
from pefttools.errors import UserError
from pefttools.reporter import SILENT, Reporter

if TYPE_CHECKING:
    import pyarrow

Prediction = dict[str, Any]
BLOCK = 4096
"""Rows that are written at once."""
ERROR = "error"
"""The column of a row that could not be answered; tables always have it."""


def check(path: Path, overwrite: bool, source: str | None = None) -> None:
    """Raises UserError when predictions cannot be written here.

    Args:
        overwrite: whether a file that is there may be replaced.
        source: the file that is read.
    """
    if path.suffix.lower() not in WRITERS:
        raise UserError(f"--out: {path}: takes a file that ends with {', '.join(WRITERS)}")
    if path.is_dir():
        raise UserError(f"--out: {path} is a folder")
    if source is not None and path.exists() and Path(source).exists() and path.samefile(source):
        raise UserError(f"--out: {path} is the file that is read")
    if path.exists() and not overwrite:
        raise UserError(f"--out: {path} exists; name another file, or add --overwrite")
    atomic.refuse_unless_writable(path.absolute().parent)


def write(path: Path, predictions: Iterable[Prediction], reporter: Reporter = SILENT) -> int:
    """Write them all; how many there are. The file appears when it is complete."""
    with atomic.new_file(path) as part:
        return WRITERS[path.suffix.lower()](part, predictions, reporter)


def json_line(value: Any, escape: bool = False) -> str:
    """A value as JSON on one line: what JSON has no form for is text or null, and half a character is escaped.

    Args:
        escape: every character beyond ASCII, for an output that cannot hold them.
    """
    try:
        line = _ENCODER.encode(value)
    except ValueError:  # NaN or infinity
        line = _ENCODER.encode(_finite(value))
    if line.isascii():
        return line
    try:
        line.encode()
    except UnicodeEncodeError:
        escape = True
    return json.dumps(json.loads(line)) if escape else line


def _as_text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_as_text)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and value - value != 0 else value


def _jsonl(part: Path, predictions: Iterable[Prediction], reporter: Reporter) -> int:
    del reporter
    number = 0
    with part.open("w", encoding="utf-8") as file:
        for prediction in predictions:
            file.write(json_line(prediction) + "\n")
            number += 1
    return number


def _csv(part: Path, predictions: Iterable[Prediction], reporter: Reporter) -> int:
    del reporter
    return _text_table(part, predictions, lambda file: csv.writer(file, lineterminator="\n").writerow)


def _tsv(part: Path, predictions: Iterable[Prediction], reporter: Reporter) -> int:
    """Quotes are text in a tsv, so a tab or line break in a text becomes a space."""
    changed = 0

    def writer(file: IO[str]) -> Callable[[list[str]], object]:
        def line(cells: list[str]) -> None:
            nonlocal changed
            clean = [re.sub(r"[\t\r\n]+", " ", cell) for cell in cells]
            changed += clean != cells
            file.write("\t".join(clean) + "\n")

        return line

    number = _text_table(part, predictions, writer)
    if changed:
        reporter.warn(f"--out: {changed:,} rows have a tab or line break, for which a tsv has a space; csv keeps them")
    return number


def _text_table(
    part: Path, predictions: Iterable[Prediction], writer: Callable[[IO[str]], Callable[[list[str]], object]]
) -> int:
    number, names = 0, dict.fromkeys(())
    with part.open("w", encoding="utf-8", newline="") as file, _Spool(part.parent) as spool:
        for block in _blocks(map(_flat, predictions)):
            names |= dict.fromkeys(name for row in block for name in row)
            number += len(block)
            spool.add(block)
        line, columns = writer(file), [*(name for name in names if name != ERROR), ERROR]
        line([*map(_cell, columns)])
        for block in spool:
            for row in block:
                line([_cell(row.get(name)) for name in columns])
    return number


def _flat(row: Prediction, prefix: str = "") -> Prediction:
    """Without the row's number, which its place tells; probabilities and several runs' answers as columns."""
    flat: Prediction = {}
    for name, value in row.items():
        if name == "probabilities" and isinstance(value, Mapping):
            flat |= {f"{prefix}{name}.{label}": share for label, share in value.items()}
        elif name == "answers" and isinstance(value, Mapping) and not prefix:
            for run, answer in value.items():
                flat |= _flat(answer, f"{name}.{run}.")
        elif prefix or name != "row":
            flat[prefix + name] = value
    return flat


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = json_line(value) if isinstance(value, list | tuple | Mapping) else _as_text(value)
    return text.encode("utf-8", "backslashreplace").decode()


def _parquet(part: Path, predictions: Iterable[Prediction], reporter: Reporter) -> int:
    import pyarrow
    import pyarrow.parquet

    number, kinds = 0, dict[str, Any]()
    with _Spool(part.parent) as spool:
        for block in _blocks({name: v for name, v in row.items() if name != "row"} for row in predictions):
            for name in dict.fromkeys(name for row in block for name in row):
                kinds[name] = _kind(kinds.get(name, pyarrow.null()), [row.get(name) for row in block])
            number += len(block)
            spool.add(block)
        if mixed := [name for name, kind in kinds.items() if kind is None]:
            reporter.warn(f"--out: values of several types are written as text: {', '.join(mixed)}")
        kinds[ERROR] = pyarrow.string()
        schema = pyarrow.schema([(name, kind or pyarrow.string()) for name, kind in kinds.items()])
        with pyarrow.parquet.ParquetWriter(part, schema) as writer:
            for block in spool:
                arrays = [_array([row.get(name) for row in block], kinds[name]) for name in kinds]
                writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
    return number


def _kind(former: pyarrow.DataType | None, values: list[Any]) -> pyarrow.DataType | None:
    """The Arrow type of these values and of those before; None where no type but text holds them all."""
    import pyarrow

    try:
        found = _array(values).type if former is not None else None
        if former is None or found is None:
            return None
        schemas = [pyarrow.schema([("column", kind)]) for kind in (former, found)]
        return pyarrow.unify_schemas(schemas, promote_options="permissive").field("column").type
    except pyarrow.ArrowException:
        return None


def _array(values: list[Any], kind: Any = False) -> pyarrow.Array:
    import pyarrow

    if kind is None:
        return pyarrow.array([None if v is None else _cell(v) for v in values], pyarrow.string())
    try:
        return pyarrow.array(values) if kind is False else pyarrow.array(values, kind)
    except UnicodeEncodeError:  # half a character
        whole = [_whole(value) for value in values]
        return pyarrow.array(whole) if kind is False else pyarrow.array(whole, kind)


def _whole(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_whole(key): _whole(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(inner) for inner in value]
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _blocks(rows: Iterable[Prediction]) -> Iterator[list[Prediction]]:
    rows = iter(rows)
    while block := list(islice(rows, BLOCK)):
        yield block


class _Spool:
    """Blocks of rows in a temporary file, read back in their order."""

    def __init__(self, folder: Path) -> None:
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed on leaving

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, block: list[Prediction]) -> None:
        pickle.dump(block, self.file)

    def __iter__(self) -> Iterator[list[Prediction]]:
        end = self.file.tell()
        self.file.seek(0)
        while self.file.tell() < end:
            yield pickle.load(self.file)


WRITERS: Mapping[str, Callable[[Path, Iterable[Prediction], Reporter], int]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
}
