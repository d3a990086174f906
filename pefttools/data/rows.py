"""Checked rows, where they came from, and the hashes they are known by.

A row has an id: its own, or its number in its file, counted from 1, after the file's name where there are several
(`b.csv:17`). None of them is part of what it is: `content_hash` is of all its other values, so that the row is known
again in a file that has grown, moved or been written anew, and `key` is what makes two rows repeats of each other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

Row = dict[str, Any]
NAMES = ("train", "validation", "test")
ID = "id"
HASH_BYTES = 8
"""Of a row's sha256 that are written down."""


class LeftOut(ValueError):
    """Why a row cannot be used; it is counted and skipped, where any other ValueError refuses its file."""


class Fields(Protocol):
    """What of a task decides which rows repeat each other."""

    inputs: ClassVar[tuple[str, ...]]
    targets: ClassVar[tuple[str, ...]]
    generates: ClassVar[bool]


class RowReader(Fields, Protocol):
    """What of a task reads the rows of a file."""

    name: ClassVar[str]
    fields: ClassVar[Mapping[str, bool]]

    def read(self, values: Mapping[str, Any]) -> Row: ...


@dataclass(frozen=True)
class Splits:
    """Checked rows of one task, and what was left out of them."""

    train: list[Row]
    validation: list[Row]
    test: list[Row]
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> number of rows."""
    spare: list[Row] = field(default_factory=list)
    """Training rows that `train_rows` leaves aside; their labels are known all the same."""
    ids: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Split -> one a row: its own id, or its number in its file."""
    invalid: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    """File (`train`, `validation`, `test`) -> what is wrong with rows that were skipped -> their numbers."""
    unread: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """File -> its columns that no field of the task reads."""

    @property
    def digest(self) -> str:
        """The sha256 of the rows: the same rows give the same digest, whatever file format they came from."""
        text = json.dumps([self.train, self.validation, self.test], ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def named(self) -> dict[str, list[Row]]:
        return {name: getattr(self, name) for name in NAMES}

    def ids_of(self, name: str) -> Sequence[str]:
        """The ids of a split's rows; their numbers in the split where nothing else is known."""
        found = self.ids.get(name)
        return [str(row.get(ID, n)) for n, row in enumerate(self.named()[name], 1)] if found is None else found


@dataclass(frozen=True, slots=True)
class Found:
    """A row and what it is called."""

    row: Row
    id: str
    """Its own id, or its number in its file."""


def labels_of(row: Row) -> list[Any]:
    """The row's classes: one, several, or none."""
    label = row.get("label")
    return label if isinstance(label, list) else [] if label is None else [label]


def key(row: Row, task: Fields) -> tuple[str, ...]:
    """What rows that repeat each other share: their inputs, spaces aside; and where the task generates, their targets.

    One prompt may have many good answers, and each of them is worth learning and scoring.
    """
    inputs = tuple(one_line(row[name]) for name in task.inputs if name in row)
    if not task.generates:
        return inputs
    return (*inputs, *(json.dumps(row.get(name), ensure_ascii=False, sort_keys=True) for name in task.targets))


def one_line(value: Any) -> str:
    """A field's value as one text, spaces made one."""
    return " ".join(str(value).split())


def content_hash(row: Row) -> bytes:
    """A hash of everything in a row but its id."""
    return _hashed({name: value for name, value in row.items() if name != ID})


def key_hash(row: Row, task: Fields) -> bytes:
    """A hash of a row's `key`."""
    return _hashed(key(row, task))


def _hashed(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).digest()[:HASH_BYTES]
