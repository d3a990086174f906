"""Encoded rows in Arrow files of one folder: written chunk by chunk, then memory-mapped, so that neither needs memory
for all rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

BUFFERED = 32
"""Number of chunks that are written as one batch of a file; reading is faster with few batches."""


@contextmanager
def writer(folder: Path) -> Iterator[Writer]:
    """A writer into this folder; it closes its file at the end."""
    with ExitStack() as stack:
        parts = Writer(folder, stack)
        yield parts
        parts.flush()


class Writer:
    """Writes columns of rows; begins a new file where the types of columns change."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.tables: list[pyarrow.Table] = []
        self.file: Any = None
        self.number = 0

    def write(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Append rows, as one list of values for each column."""
        from datasets import Dataset

        table = _narrowed(Dataset.from_dict({**columns}).data.table)
        if self.tables and (table.schema != self.tables[0].schema or len(self.tables) == BUFFERED):
            self.flush()
        self.tables.append(table)

    def flush(self) -> None:
        """Write what is buffered."""
        import pyarrow

        if not self.tables:
            return
        table = pyarrow.concat_tables(self.tables).combine_chunks()
        self.tables = []
        if self.file is None or table.schema != self.file.schema:
            self.stack.close()
            path = self.folder / f"rows-{self.number:05d}.arrow"
            stream = self.stack.enter_context(pyarrow.OSFile(str(path), "wb"))
            self.file = self.stack.enter_context(_Stream(stream, table.schema))
            self.number += 1
        self.file.writer.write_table(table)


class _Stream:
    """An Arrow stream with its schema."""

    def __init__(self, stream: Any, schema: pyarrow.Schema) -> None:
        import pyarrow

        self.schema, self.writer = schema, pyarrow.ipc.new_stream(stream, schema)

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()


def _narrowed(table: pyarrow.Table) -> pyarrow.Table:
    """The table with its integers in half the bytes, if they all fit."""
    import pyarrow
    from datasets import Features

    types = [_narrow(field.type) for field in table.schema]
    schema = pyarrow.schema([(name, kind) for name, kind in zip(table.column_names, types, strict=True)])
    try:
        table = table.cast(schema)
    except pyarrow.ArrowInvalid:
        return table
    return table.replace_schema_metadata(Features.from_arrow_schema(schema).arrow_schema.metadata)


def _narrow(kind: pyarrow.DataType) -> pyarrow.DataType:
    import pyarrow

    if pyarrow.types.is_int64(kind):
        return pyarrow.int32()
    if pyarrow.types.is_list(kind):
        return pyarrow.list_(_narrow(kind.value_type))
    return kind


def read(folder: Path) -> Dataset:
    """All rows of the folder's files, memory-mapped; in memory where their types differ."""
    import pyarrow
    from datasets import Dataset, concatenate_datasets

    parts = [Dataset.from_file(str(path)) for path in sorted(folder.glob("*.arrow"))]
    if any(part.features != parts[0].features for part in parts):
        tables = [part.data.table.replace_schema_metadata(None) for part in parts]
        schema = pyarrow.unify_schemas([table.schema for table in tables], promote_options="permissive")
        return Dataset(pyarrow.concat_tables([table.cast(schema) for table in tables]))
    return concatenate_datasets(parts)
