"""Writing predictions to a file, completely or not at all: csv, tsv, jsonl or parquet, by the file's extension.

In jsonl every row has its own keys. In the other formats all rows have the same columns, so rows are first written to a
temporary file, until all columns are known; one block of rows is in memory at a time. In csv and tsv every entry of
`probabilities` and `answers` becomes a column, like `probabilities.spam`; other lists and mappings are JSON.
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
"""Number of rows that are written at once."""
ERROR = "error"
"""The column for errors of rows without prediction; tables always have it."""


def check(path: Path, overwrite: bool, source: str | None = None) -> None:
    """Raises UserError when predictions cannot be written here.

    Args:
        overwrite: whether an existing file may be replaced.
        source: the input file.
    """
    if path.suffix.lower() not in WRITERS:
        raise UserError(f"--out: {path}: name a file that ends with {', '.join(WRITERS)}")
    if path.is_dir():
        raise UserError(f"--out: {path} is a folder; name a file")
    if source is not None and path.exists() and Path(source).exists() and path.samefile(source):
        raise UserError(f"--out: {path} is the input file; name another file")
    if path.exists() and not overwrite:
        raise UserError(f"--out: {path} exists; name another file, or add --overwrite")
    atomic.refuse_unless_writable(path.absolute().parent)


def write(path: Path, predictions: Iterable[Prediction], reporter: Reporter = SILENT) -> int:
    """Write all predictions; returns their number. The file appears when it is complete."""
    with atomic.new_file(path) as part:
        return WRITERS[path.suffix.lower()](part, predictions, reporter)


def json_line(value: Any, escape: bool = False) -> str:
    """A value as JSON on one line. NaN becomes null, other types become text, and lone surrogates are escaped.

    Args:
        escape: escape every character beyond ASCII, for outputs that cannot represent them.
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
    """Write tsv, in which quotes are ordinary characters; tabs and line breaks in texts become spaces."""
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
        reporter.warn(
            f"--out: in {changed:,} rows, tabs or line breaks were replaced by spaces, because tsv cannot contain them;"
            " csv can"
        )
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
    """One cell a column: probabilities and several runs' predictions are split, and the row's number is left out."""
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
    """The common Arrow type of these values and the earlier ones; None where only text can represent them all."""
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
    except UnicodeEncodeError:  # a lone surrogate
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
