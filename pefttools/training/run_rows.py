"""The rows in a run folder: hashes of all rows by split, and the complete rows it was scored on, with predictions.

    rows.parquet          split, id, key (of the inputs), content (of everything but the id; not of training rows)
    predictions.parquet   id, the row's fields, reference, prediction, probabilities …

A row field that is not a text, a list of texts or a float is stored as JSON text, marked in the column's metadata.
Rows that are read back are checked against their hashes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools import atomic
from pefttools.data.rows import HASH_BYTES, ID, NAMES, Fields, Row, Splits, content_hash, key_hash
from pefttools.errors import UserError, damage_of

if TYPE_CHECKING:
    import pyarrow

PART, OWN = b"row", b"own"
"""Column metadata of predictions.parquet: PART marks a field of the rows and how it is stored, OWN marks an id column
whose values all come from the rows."""
BLOCK = 100_000
"""Number of rows to write at once."""
ADVICE = "restore it from a copy of the run, or train the run again"


@dataclass(frozen=True)
class RowHashes:
    """The hashes of one split's rows, in their order."""

    ids: list[str]
    keys: list[bytes]
    """Hashes of the model's inputs and of the texts it is to generate."""
    contents: list[bytes]
    """Hashes of everything but the id; training rows have none."""


@dataclass(frozen=True)
class ScoredRows:
    """The rows that a run was scored on at its end, exactly as it read them."""

    split: str
    """`test`, or `validation` where no test rows were scored."""
    ids: list[str]
    """The rows' ids, or their numbers in their file where they have none."""
    rows: Sequence[Row]


def write_hashes(file: Path, splits: Splits, task: Fields) -> None:
    """Write rows.parquet."""
    import pyarrow
    import pyarrow.parquet

    binary = pyarrow.binary(HASH_BYTES)
    types = {"split": pyarrow.string(), "id": pyarrow.string(), "key": binary, "content": binary}
    schema = pyarrow.schema([*types.items()])
    with (
        atomic.new_file(file) as part,
        pyarrow.parquet.ParquetWriter(part, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for name, rows in splits.named().items():
            ids = splits.ids_of(name)
            for start in range(0, len(rows), BLOCK):
                block = rows[start : start + BLOCK]
                columns = [
                    [name] * len(block),
                    ids[start : start + BLOCK],
                    [key_hash(row, task) for row in block],
                    [None if name == "train" else content_hash(row) for row in block],
                ]
                arrays = [pyarrow.array(values, kind) for values, kind in zip(columns, schema.types, strict=True)]
                writer.write_table(pyarrow.table(arrays, schema=schema))


def read_hashes(file: Path) -> dict[str, RowHashes]:
    """Split -> its rows' hashes. Raises UserError when the file is damaged."""
    found = {name: RowHashes([], [], []) for name in NAMES}
    with damage_of(file, ADVICE):
        for row in _table(file).select(["split", "id", "key", "content"]).to_pylist():
            one = found[row["split"]]
            one.ids.append(row["id"])
            one.keys.append(row["key"])
            one.contents.append(row["content"])
    return found


def _table(file: Path) -> pyarrow.Table:
    """The file's table. Raises whatever the library raises for damaged bytes."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(file, page_checksum_verification=True)
    table.validate(full=True)  # damaged offsets would make the library crash
    return table


def write_predictions(
    file: Path,
    split: str,
    ids: Sequence[str],
    rows: Sequence[Row],
    references: Sequence[Any],
    predictions: Sequence[dict[str, Any]],
) -> None:
    """Write predictions.parquet, one record a row."""
    import pyarrow
    import pyarrow.parquet

    own = bool(rows) and all(row.get(ID) == i for row, i in zip(rows, ids, strict=True))
    fields = [pyarrow.field(ID, pyarrow.string(), metadata={OWN: b"all"} if own else None)]
    arrays = [pyarrow.array(ids, pyarrow.string())]
    for name in dict.fromkeys(name for row in rows for name in row if name != ID):
        how, array = _column([row.get(name) for row in rows], [name in row for row in rows])
        fields.append(pyarrow.field(name, array.type, metadata={PART: how}))
        arrays.append(array)
    table = _references_and_predictions(references, predictions)
    if same := {field.name for field in fields} & {*table.column_names}:
        raise AssertionError(f"these names are used both by row fields and by predictions: {', '.join(same)}")
    schema = pyarrow.schema([*fields, *table.schema], metadata={b"split": split.encode()})
    with atomic.new_file(file) as part:
        whole = pyarrow.table([*arrays, *table.columns], schema=schema)
        pyarrow.parquet.write_table(whole, part, write_page_checksum=True)


def _references_and_predictions(references: Sequence[Any], predictions: Sequence[dict[str, Any]]) -> pyarrow.Table:
    """A table of the column `reference` and the predictions' columns, with probabilities as a list."""
    import pyarrow

    lines = [{"reference": r, **p} for r, p in zip(references, predictions, strict=True)]
    for line in lines:
        if "probabilities" in line:
            line["probabilities"] = list(line["probabilities"].values())
    names = dict.fromkeys(name for line in lines for name in line)  # `from_pylist` reads those of the first line only
    return pyarrow.table({name: [line.get(name) for line in lines] for name in names})


def _column(values: list[Any], present: list[bool]) -> tuple[bytes, pyarrow.Array]:
    """The storage format of a field (`plain` or `json`), and its values; null where a row lacks it."""
    import pyarrow

    found = [value for value, is_present in zip(values, present, strict=True) if is_present]
    if all(type(value) is str for value in found):
        return b"plain", pyarrow.array(values, pyarrow.string())
    if all(type(value) is float for value in found):
        return b"plain", pyarrow.array(values, pyarrow.float64())
    if all(type(value) is list and all(type(one) is str for one in value) for value in found):
        return b"plain", pyarrow.array(values, pyarrow.list_(pyarrow.string()))
    texts = [
        json.dumps(value, ensure_ascii=False) if is_present else None
        for value, is_present in zip(values, present, strict=True)
    ]
    return b"json", pyarrow.array(texts, pyarrow.string())


def read_predictions(file: Path) -> tuple[list[str], list[Any], list[dict[str, Any]]]:
    """The ids, references and predictions, with probabilities as a list. Raises UserError when the file is damaged."""
    with damage_of(file, ADVICE):
        table = _table(file)
        names = [f.name for f in table.schema if f.name not in (ID, "reference") and PART not in (f.metadata or {})]
        return table["id"].to_pylist(), table["reference"].to_pylist(), table.select(names).to_pylist()


def read_scored(file: Path, hashes: dict[str, RowHashes]) -> ScoredRows:
    """The rows of predictions.parquet.

    Raises:
        UserError: the file is damaged, or the rows' hashes are not those of the rows scored.
    """
    with damage_of(file, ADVICE):
        split, ids, rows = _scored(_table(file))
        is_unchanged = split in hashes and [content_hash(row) for row in rows] == hashes[split].contents
    if not is_unchanged:
        raise UserError(
            f"{file}: these are not the rows that the run was scored on (their hashes in"
            f" {file.parent / 'rows.parquet'} differ); one of the two files was changed. Name the rows to score with"
            " data.test=FILE"
        )
    return ScoredRows(split, ids, rows)


def _scored(table: pyarrow.Table) -> tuple[str, list[str], list[Row]]:
    """The split, and the ids and rows of its table."""
    marks = {field.name: field.metadata or {} for field in table.schema}
    ids: list[str] = table[ID].to_pylist()
    rows: list[Row] = [{} for _ in ids]
    for name in (name for name in table.column_names if PART in marks[name]):
        for row, value in zip(rows, table[name].to_pylist(), strict=True):
            if value is not None:
                row[name] = json.loads(value) if marks[name][PART] == b"json" else value
    if OWN in marks[ID]:
        for row, row_id in zip(rows, ids, strict=True):
            row[ID] = row_id
    return (table.schema.metadata or {}).get(b"split", b"").decode(), ids, rows
