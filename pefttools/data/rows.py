"""Checked rows, their ids, and the hashes that identify them.

A row has an id: its own, or its number in its file, counted from 1, with the file's name if there are several
(`b.csv:17`). The id is not part of a row's content: `content_hash` covers all its other values, so that a row is
recognised in a file that was extended, moved or rewritten. Two rows with the same `key` are repeats of each other.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Protocol

Row = dict[str, Any]
NAMES = ("train", "validation", "test")
ID = "id"
HASH_BYTES = 8
"""Number of bytes of a row's sha256 that are stored."""
HALF = re.compile(r"(?<!\\)(?:\\\\)*(\\ud[89a-f][0-9a-f]{2})")
"""A lone surrogate in Python's notation of a text."""


class LeftOut(ValueError):
    """The reason why a row cannot be used. Such a row is counted and skipped; any other ValueError rejects the file."""


class Fields(Protocol):
    """The attributes of a task that determine which rows are repeats of each other."""

    inputs: ClassVar[tuple[str, ...]]
    targets: ClassVar[tuple[str, ...]]
    generates: ClassVar[bool]


class RowReader(Fields, Protocol):
    """The part of a task that reads the rows of a file."""

    name: ClassVar[str]
    fields: ClassVar[Mapping[str, bool]]

    def read(self, values: Mapping[str, Any]) -> Row: ...


@dataclass(frozen=True)
class Splits:
    """Checked rows of one task, and the reasons for skipped rows."""

    train: Sequence[Row]
    validation: Sequence[Row]
    test: Sequence[Row]
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> number of rows."""
    spare: Sequence[Row] = field(default_factory=list)
    """Training rows beyond `train_rows`; they are not trained on, but their labels count as known."""
    ids: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Split -> one id per row: its own, or its number in its file."""
    invalid: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    """File (`train`, `validation`, `test`) -> problem of skipped rows -> their numbers."""
    unread: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """File -> columns that the task does not read."""

    @cached_property
    def digest(self) -> str:
        """The sha256 of the rows: the same rows give the same digest, whatever file format they came from."""
        return rows_digest(self.train, self.validation, self.test)

    def named(self) -> dict[str, Sequence[Row]]:
        return {name: getattr(self, name) for name in NAMES}

    def ids_of(self, name: str) -> Sequence[str]:
        """The ids of a split's rows; by default their numbers in the split."""
        found = self.ids.get(name)
        return [str(row.get(ID, n)) for n, row in enumerate(self.named()[name], 1)] if found is None else found


def rows_digest(*parts: Sequence[Row]) -> str:
    """The sha256 of the rows of several parts: that of `[[row, …], …]` in JSON, which is never in memory as a whole."""
    digest = hashlib.sha256(b"[")
    for number, rows in enumerate(parts):
        digest.update(b", [" if number else b"[")
        separator = ""
        for row in rows:
            digest.update(f"{separator}{json.dumps(row, ensure_ascii=False, sort_keys=True)}".encode())
            separator = ", "
        digest.update(b"]")
    digest.update(b"]")
    return digest.hexdigest()


def labels_of(row: Row) -> list[Any]:
    """The row's classes: one, several, or none."""
    label = row.get("label")
    return label if isinstance(label, list) else [] if label is None else [label]


def key(row: Row, task: Fields) -> tuple[str, ...]:
    """The values that repeats of a row share: its inputs with normalised spaces and, if the task generates, its
    targets.

    Tasks that generate include the targets because one prompt may have several good answers.
    """
    inputs = tuple(one_line(row[name]) for name in task.inputs if name in row)
    if not task.generates:
        return inputs
    return (*inputs, *(json.dumps(row.get(name), ensure_ascii=False, sort_keys=True) for name in task.targets))


def one_line(value: Any) -> str:
    """A field's value as text, with runs of white space replaced by one space."""
    return " ".join(str(value).split())


def refuse_half_characters(row: Row) -> None:
    """Raises ValueError when a text in the row contains a lone surrogate, as JSON can (`"\\ud800"`).

    It is half of a character beyond U+FFFF: no tokenizer takes it, and no file can be written with it.
    """
    notation = repr(row)
    if "\\ud" in notation and (half := HALF.search(notation)):
        raise ValueError(f"has half a character (the lone surrogate {half[1]}) in its fields")


def content_hash(row: Row) -> bytes:
    """A hash of everything in a row except its id."""
    return _hashed({name: value for name, value in row.items() if name != ID})


def key_hash(row: Row, task: Fields) -> bytes:
    """A hash of a row's `key`."""
    return _hashed(key(row, task))


def _hashed(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).digest()[:HASH_BYTES]
