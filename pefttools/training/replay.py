"""Rows of earlier runs: a share of them to train on again, some of them for penalties, and all runs before a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from pefttools.data.hash_split import place
from pefttools.data.rows import Row, Splits, content_hash, key, labels_of
from pefttools.errors import UserError
from pefttools.recipe.start import find
from pefttools.reporter import Reporter
from pefttools.training.own_rows import unchanged_rows
from pefttools.training.run import Run

if TYPE_CHECKING:
    from pefttools.recipe.recipe import Recipe
    from pefttools.tasks.base import Task


def lineage(run: Run) -> list[Run]:
    """The runs that a run went on from, the first one first, and the run itself at the end.

    Raises:
        UserError: one of them is gone, damaged, or was changed.
    """
    start = run.recipe().start
    if start is None:
        return [run]
    try:
        found = find(start.source)
    except UserError as error:
        raise UserError(*(f"{run.path} went on from another run: {problem}" for problem in error.problems)) from error
    if found.sha256 != start.sha256:
        raise UserError(
            f"{run.path} went on from {found.path}, which has changed since; restore that folder from a copy"
        )
    return [*(lineage(Run.open(found.path)) if found.kind == "run" else ()), run]


def training_rows(run: Run, key: str) -> Sequence[Row]:
    """A run's own training rows, read again. Raises UserError when they are gone or changed."""
    try:
        return unchanged_rows(run, "train", run.recipe().task)
    except UserError as error:
        raise UserError(
            f"{key}: the training rows of {run.path} are gone or were changed ({error.problems[0]}); restore their"
            " file, or leave out this setting"
        ) from error


def some_rows(run: Run, number: int, where: str) -> list[Row]:
    """About `number` training rows of a run and the runs before it, the same number of each."""
    runs = lineage(run)
    each = -(-number // len(runs))
    return [row for one in runs for row in _first(training_rows(one, where), each)]


def replayed(recipe: Recipe, task: Task, splits: Splits, reporter: Reporter) -> dict[str, list[Row]]:
    """Run -> the rows of it that are trained on again; empty without `data.replay`.

    Every class has its share of rows, at least one. Rows that are now in validation or test are left out.

    Raises:
        UserError: the rows are gone or changed, or have classes that the task does not.
    """
    settings = recipe.data.replay
    if settings is None:
        return {}
    assert settings.run is not None
    where, run = "data.replay", Run.open(find(settings.run).path)
    if run.result()["data"]["digest"] != settings.sha256:
        raise UserError(
            f"{where}: {run.path} has other rows than when this recipe was resolved; restore it from a copy, or name it"
            " again with data.replay.run"
        )
    former = run.recipe().task
    if former.name != task.name:
        raise UserError(f"{where}: {run.path} has rows of task={former.name}, but the recipe's task is {task.name}")
    evaluated = {key(row, task) for row in (*splits.validation, *splits.test)}
    found: dict[str, list[Row]] = {}
    for one in lineage(run):
        rows = _share(training_rows(one, where), settings.share)
        found[str(one.path)] = [row for row in rows if key(row, task) not in evaluated]
        _check(found[str(one.path)], task, splits)
    counts = ", ".join(f"{path} {len(rows)}" for path, rows in found.items())
    reporter.note(f"{sum(map(len, found.values()))} rows of earlier runs are trained on again: {counts}")
    return found


def _check(rows: Sequence[Row], task: Task, splits: Splits) -> None:
    """Raises UserError when rows do not go with the training rows."""
    task.check_scorable("data.replay", rows)
    fields = [{name for name in task.inputs if name in row} for row in (*rows[:1], *splits.train[:1])]
    if len(fields) == 2 and fields[0] != fields[1]:
        theirs, ours = (" and ".join(sorted(names)) for names in fields)
        raise UserError(f"data.replay: the earlier rows have {theirs}, but the training rows have {ours}")


def _share(rows: Sequence[Row], share: float) -> list[Row]:
    """A share of the rows of every class, at least one, chosen by a hash of the text; a larger share has all rows of a
    smaller one."""
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault("|".join(map(str, labels_of(row))), []).append(i)
    chosen = {i for group in groups.values() for i in _by_hash(rows, group)[: max(1, round(share * len(group)))]}
    return [row for i, row in enumerate(rows) if i in chosen]


def _first(rows: Sequence[Row], number: int) -> Iterator[Row]:
    return (rows[i] for i in _by_hash(rows, range(len(rows)))[:number])


def _by_hash(rows: Sequence[Row], indices: Iterable[int]) -> list[int]:
    """The indices in the order of their rows' hashes, which depends on nothing else."""
    return sorted(indices, key=lambda i: place(content_hash(rows[i]).hex(), -1))
