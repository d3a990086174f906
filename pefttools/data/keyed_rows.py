"""Rows of one file with hashes of what makes them repeats of each other, in arrays of 8 bytes a row.

Two of ten million different rows have the same hash with a probability of 3e-6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pefttools.data.rows import Row, RowReader, key
from pefttools.data.spool import take

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class KeyedRows:
    """Rows with their ids and hashes."""

    rows: Sequence[Row]
    ids: Sequence[str]
    keys: NDArray[Any]
    """A hash of every row's key (`rows.key`); shape (rows), uint64."""
    inputs: NDArray[Any]
    """A hash of every row's inputs; shape (rows), uint64."""
    targets: NDArray[Any]
    """A hash of every row's targets; shape (rows), uint64."""

    @classmethod
    def of(cls, rows: Sequence[Row], ids: Sequence[str], task: RowReader) -> KeyedRows:
        import numpy

        keys, targets = (numpy.empty(len(rows), numpy.uint64) for _ in range(2))
        inputs = numpy.empty_like(keys) if task.generates else keys
        width = -len(task.targets) or None
        for i, row in enumerate(rows):
            known = key(row, task)
            keys[i] = _hash(known)
            if task.generates:
                inputs[i] = _hash(known[:width])
            targets[i] = _hash([row.get(name) for name in task.targets])
        return cls(rows, ids, keys, inputs, targets)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: NDArray[Any]) -> KeyedRows:
        """The rows with these indices, in their order."""
        keys = self.keys[indices]
        inputs = keys if self.inputs is self.keys else self.inputs[indices]
        return KeyedRows(
            take(self.rows, indices), take(self.ids, indices), keys, inputs, self.targets[indices]
        )  # fmt: skip


def _hash(value: Any) -> int:
    from xxhash import xxh3_64_intdigest

    return xxh3_64_intdigest(repr(value).encode("utf-8", "surrogatepass"))
