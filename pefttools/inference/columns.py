"""The values of a column for the rows that a run is scored on, also of columns that its task does not read."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools.data.loading import load_file
from pefttools.data.rows import content_hash
from pefttools.errors import UserError, unknown
from pefttools.training.run import Run

if TYPE_CHECKING:
    from pefttools.data.rows import Row
    from pefttools.tasks.base import Task

LENGTH = "length"
"""Stands for the number of characters of a row's inputs, if no column has this name."""


def column_values(path: Path, overrides: Sequence[str], split: str, rows: Sequence[Row], column: str) -> list[Any]:
    """The column's value of each row.

    A field that the task reads is in the rows; any other column is looked up in their file, by the rows' content.

    Args:
        split: of the rows, in the run's data with these overrides.

    Raises:
        UserError: there is no such column, or its file does not have the rows any more.
    """
    if any(column in row for row in rows):
        return [row.get(column) for row in rows]
    run = Run.open(path)
    task, settings = run.recipe().task, run.recipe(overrides).data
    name = "train" if getattr(settings, split) is None else split
    source = getattr(settings, name).name
    try:
        loaded = load_file(name, settings, task, Counter(), column=column)
    except (UserError, OSError) as error:
        if column == LENGTH:
            return lengths(rows, task)
        reason = error.problems[0] if isinstance(error, UserError) else str(error)
        problem = f"--by: {column!r} is not a field of the saved rows, and their file cannot be read"
        raise UserError(f"{problem}: {reason}") from error
    if column not in loaded.columns:
        if column == LENGTH:
            return lengths(rows, task)
        names = list(dict.fromkeys((*loaded.columns, *(field for row in rows[:1] for field in row), LENGTH)))
        raise UserError(f"--by: {unknown('column', column, names)}")
    values: dict[bytes, deque[Any]] = defaultdict(deque)
    for row, value in zip(loaded.rows, loaded.values, strict=True):
        values[content_hash(row)].append(value)
    keys = [content_hash(row) for row in rows]
    wanted = Counter(keys)
    if missing := sum(max(0, number - len(values[key])) for key, number in wanted.items()):
        raise UserError(
            f"--by: {missing} of the {len(rows)} rows are no longer in {source}, or were changed there, so their"
            f" {column!r} is not known; restore the file, or score it as it is now with data.test={source}"
        )
    return [values[key].popleft() for key in keys]


def lengths(rows: Sequence[Row], task: Task) -> list[int]:
    """The number of characters of each row's inputs."""
    return [sum(_length(row[name]) for name in task.inputs if name in row) for row in rows]


def _length(value: Any) -> int:
    """The number of characters of all texts in a value."""
    if isinstance(value, dict):
        return sum(map(_length, value.values()))
    if isinstance(value, list):
        return sum(map(_length, value)) + max(0, len(value) - 1)
    return len(str(value)) if value is not None else 0
