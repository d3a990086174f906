"""Rows that a program has in memory, written to files that a recipe can name.

A table becomes a parquet file, a list of dictionaries JSON lines, whose values stay as they are. A run keeps these
files in its folder (`given/`), so that its recipe gives the same run again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pefttools import atomic
from pefttools.errors import UserError
from pefttools.hashes import file_sha256

TEXTS = "text", "label"
"""Columns of `(texts, labels)`."""
SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)
}  # fmt: skip
"""Split -> names that it may have in a DatasetDict or another mapping of splits."""
BATCH = 10_000
"""Number of rows of a data set that are written at once."""
KINDS = (
    "a path, a pandas or polars DataFrame, an Arrow table, a datasets.Dataset, a list of dictionaries, or (texts,"
    " labels)"
)


def splits(data: Any) -> dict[str, Any]:
    """The parts of `data` by split: those of a DatasetDict, or all of it as training rows.

    Raises:
        UserError: a mapping of splits has none for training, or two for one.
    """
    if not isinstance(data, Mapping) or not data or any(_is_column(one) for one in data.values()):
        return {"train": data}
    found: dict[str, Any] = {}
    for name, part in data.items():
        split = next((split for split, names in SPLITS.items() if str(name).lower() in names), None)
        if split is None:
            raise UserError(f"data: {name!r} is no split; name them train, validation and test, or pass one of them")
        if split in found:
            raise UserError(f"data: two splits are for {split}; pass one of them")
        found[split] = part
    if "train" not in found:
        raise UserError(f"data: has no training rows, but {', '.join(map(str, data))}")
    return found


def _is_column(value: Any) -> bool:
    """Whether a mapping's value is a column of a table, not a table."""
    return isinstance(value, (list, tuple)) and not (value and isinstance(value[0], Mapping))


def written(value: Any, folder: Path, name: str, key: str = "data") -> str:
    """The path of a file with these rows; `value` itself if it is a path or another source that a recipe can name.

    A new file's name contains a hash of its content, so that other rows never replace those of a run.

    Args:
        name: the first part of the new file's name.
        key: what messages call the value.

    Raises:
        UserError: this is no kind of rows that is known, or there are none.
    """
    if isinstance(value, (str, Path)):
        return str(value)
    if isinstance(value, tuple) and len(value) == len(TEXTS):
        texts, labels = value
        value = _labelled(texts, labels, key)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        file = _as_lines(value, folder / f"{name}.jsonl", key)
    else:
        file = _as_table(value, folder / f"{name}.parquet", key)
    return str(file.replace(file.with_stem(f"{name}-{file_sha256(file)[:12]}")))


def as_rows(value: Any, key: str = "rows") -> list[dict[str, Any]]:
    """Rows as dictionaries, from the same kinds as `written` takes, except paths.

    Raises:
        UserError: this is no kind of rows that is known.
    """
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_plain(row, key, number) for number, row in enumerate(value, 1)]
    return _table(value, key).to_pylist()


def _labelled(texts: Any, labels: Any, key: str) -> list[dict[str, Any]]:
    texts, labels = list(texts), [_scalar(label) for label in labels]
    if len(texts) != len(labels):
        raise UserError(f"{key}: there are {len(texts):,} texts, but {len(labels):,} labels")
    return [dict(zip(TEXTS, pair, strict=True)) for pair in zip(map(_scalar, texts), labels, strict=True)]


def _as_lines(rows: Sequence[Any], file: Path, key: str) -> Path:
    if not rows:
        raise UserError(f"{key}: there are no rows")
    try:
        lines = [json.dumps(_plain(row, key, number), ensure_ascii=False) for number, row in enumerate(rows, 1)]
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: a row cannot be written as JSON: {error}") from error
    atomic.write_text(file, "\n".join([*lines, ""]))
    return file


def _plain(row: Any, key: str, number: int) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise UserError(f"{key}: row {number} is {type(row).__name__}, but must be a dictionary; pass {KINDS}")
    return {str(name): _scalar(value) for name, value in row.items()}


def _scalar(value: Any) -> Any:
    """A number of numpy as Python's, and a missing value of pandas as None."""
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    if value is None or isinstance(value, (str, list, dict, tuple)):
        return value
    is_missing = value != value or type(value).__name__ in ("NAType", "NaTType")
    return None if is_missing else value


def _as_table(value: Any, file: Path, key: str) -> Path:
    import pyarrow.parquet

    if kind(value) == "datasets.Dataset":  # its schema has the names of classes; it may be larger than memory
        schema, tables = value.features.arrow_schema, value.with_format("arrow").iter(BATCH)
        number = len(value)
    else:
        table = _table(value, key)
        schema, tables, number = table.schema, [table], table.num_rows
    if not number:
        raise UserError(f"{key}: there are no rows")
    with atomic.new_file(file) as part, pyarrow.parquet.ParquetWriter(part, schema) as writer:
        for one in tables:
            writer.write_table(one.cast(schema))
    return file


def kind(value: Any) -> str:
    """Package and class of a value: `pandas.DataFrame`."""
    return f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"


def _table(value: Any, key: str) -> Any:
    """The rows as an Arrow table."""
    import pyarrow

    if isinstance(value, pyarrow.Table):
        return value
    found = kind(value)
    if found == "pandas.DataFrame":
        return pyarrow.Table.from_pandas(value.rename(columns=str), preserve_index=False).replace_schema_metadata()
    if found == "polars.LazyFrame":
        value, found = value.collect(), "polars.DataFrame"
    if found == "polars.DataFrame":
        return value.to_arrow()
    if found == "datasets.Dataset":
        return value.with_format("arrow")[:]
    if isinstance(value, Mapping):
        try:
            return pyarrow.table({str(name): list(column) for name, column in value.items()})
        except (pyarrow.ArrowException, TypeError) as error:
            raise UserError(f"{key}: the columns do not make a table: {error}") from error
    raise UserError(f"{key}: must be {KINDS}, not {found.removeprefix('builtins.')}")
