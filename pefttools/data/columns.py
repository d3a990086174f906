"""Read encoded rows directly from memory-mapped Arrow columns, which is far faster than through a `Dataset`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

Reader = Callable[[int], Any]


class Columns:
    """Columns of rows by row indices, as `Dataset` returns them; columns of strings and other types are read through
    it."""

    def __init__(self, rows: Dataset) -> None:
        names = rows.column_names if rows._indices is None else []
        self.readers: dict[str, list[Reader]] = {}
        self.starts: dict[str, list[int]] = {}
        for name in names:
            chunks = rows.data.column(name).chunks
            readers = [reader for chunk in chunks if (reader := _reader(chunk))]
            if len(readers) == len(chunks):
                self.readers[name], self.starts[name] = readers, _starts(chunks)
        self.others = rows.select_columns([name for name in rows.column_names if name not in self.readers])

    def __getitem__(self, indices: Sequence[int]) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = dict(self.others[list(indices)]) if self.others.column_names else {}
        places: list[tuple[int, int]] = []
        former: list[int] = []
        for name, readers in self.readers.items():
            if (starts := self.starts[name]) != former:  # most columns have the same chunks
                chunks = [bisect_right(starts, index) - 1 for index in indices]
                places = [(chunk, index - starts[chunk]) for chunk, index in zip(chunks, indices, strict=True)]
                former = starts
            columns[name] = [readers[chunk](row) for chunk, row in places]
        return columns


def _starts(chunks: Sequence[pyarrow.Array]) -> list[int]:
    """The index of each chunk's first row."""
    starts = [0]
    for chunk in chunks[:-1]:
        starts.append(starts[-1] + len(chunk))
    return starts


def _reader(chunk: pyarrow.Array) -> Reader | None:
    """A function that reads a row of a column of numbers, or of lists of numbers; None for other types."""
    import pyarrow

    kind = chunk.type
    if chunk.null_count:
        return None
    if pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind):
        numbers = chunk.to_numpy()
        return lambda row: numbers[row].item()
    if not (pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)):
        return None
    inner = chunk.values
    if inner.null_count or not (pyarrow.types.is_integer(inner.type) or pyarrow.types.is_floating(inner.type)):
        return None
    values, offsets = inner.to_numpy(), chunk.offsets.to_numpy()
    return lambda row: values[offsets[row] : offsets[row + 1]].tolist()
