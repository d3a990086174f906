"""A finished run with the rows it was scored on, its predictions and its scores, read from its folder alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools.errors import UserError
from pefttools.recipe import needed_packages
from pefttools.reporter import SILENT, Reporter
from pefttools.training.own_rows import own_rows
from pefttools.training.run import Run

if TYPE_CHECKING:
    from pefttools.data.rows import Row
    from pefttools.tasks.base import Prediction, Task

ROUNDING = 1e-6
"""Relative difference of a score that is computed again."""


@dataclass(frozen=True)
class ScoredRows:
    """Rows with their predictions and references, in one order, and the metrics of them."""

    task: Task
    ids: Sequence[str]
    rows: Sequence[Row]
    predictions: Sequence[Prediction]
    references: Sequence[Any]
    metrics: Mapping[str, Any]

    @property
    def scores(self) -> dict[str, float]:
        """The metrics that are one number."""
        return {name: float(v) for name, v in self.metrics.items() if isinstance(v, (int, float))}

    @property
    def primary(self) -> float:
        """The value of the task's primary metric."""
        return self.scores[self.task.primary]

    def at(self, places: Sequence[int]) -> ScoredRows:
        """Some of the rows, with the metrics of these."""
        predictions, references = ([values[i] for i in places] for values in (self.predictions, self.references))
        metrics = self.task.all_metrics(predictions, references) if places else {}
        ids, rows = [self.ids[i] for i in places], [self.rows[i] for i in places]
        return ScoredRows(self.task, ids, rows, predictions, references, metrics)

    def right(self) -> list[bool | None]:
        """Whether each prediction is right; None where it is neither right nor wrong."""
        return [self.task.is_right(p, r) for p, r in zip(self.predictions, self.references, strict=True)]

    def errors(self) -> list[float | None]:
        """How wrong each prediction is; None where it was not scored, or only its likelihood was and others' texts."""
        has_texts = any("prediction" in one for one in self.predictions)
        return [
            None if has_texts and "prediction" not in one else self.task.row_error(one, reference)
            for one, reference in zip(self.predictions, self.references, strict=True)
        ]


@dataclass(frozen=True)
class ScoredRun:
    """A finished run and the rows it was scored on."""

    name: str
    """The folder's name, or more of its path where several runs have one name."""
    run: Run
    result: Mapping[str, Any]
    scored_on: str
    """`test`, or `validation` where it has no test rows."""
    scored: ScoredRows

    @property
    def task(self) -> Task:
        return self.scored.task


def open_run(path: Path, reporter: Reporter = SILENT) -> ScoredRun:
    """The run in a folder, with its saved rows and predictions.

    Raises:
        UserError: there is no finished run, its files are damaged, it has no predictions, or they do not give its
            scores.
    """
    run = Run.open(path)
    if not run.predictions_file.is_file():
        raise UserError(
            f"{path}: this run has no {run.predictions_file.name}, so its predictions are not known; train it again"
        )
    result, task = run.result(), run.recipe().task
    needed_packages.refuse_unscored(task)
    ids, references, predictions = run.predictions()
    own = run.scored_rows() or own_rows(run, task, reporter)
    if len(own.rows) != len(predictions) or not predictions:
        raise UserError(
            f"{run.predictions_file}: it has {len(predictions)} predictions for {len(own.rows)} rows; train the run"
            " again"
        )
    known = [{name: value for name, value in one.items() if value is not None} for one in predictions]
    metrics = task.all_metrics(known, references, reporter)
    scored_on = "test" if result["test"] else "validation"
    was, now = result[scored_on].get(task.primary), metrics.get(task.primary)
    if was is None or now is None or not math.isclose(was, now, rel_tol=ROUNDING, abs_tol=ROUNDING):
        raise UserError(
            f"{path}: the saved predictions have a {task.primary} of {now}, but result.json says {was}; the run was"
            f" made by another version or changed: train it again, or score it with `pefttools evaluate {path}`"
        )
    return ScoredRun(run.path.name, run, result, scored_on, ScoredRows(task, ids, own.rows, known, references, metrics))


def with_distinct_names(runs: Sequence[ScoredRun]) -> list[ScoredRun]:
    """The runs, with as much of their paths as it takes to tell their names apart."""
    depth = 1
    while True:
        names = ["/".join(one.run.path.parts[-depth:]) for one in runs]
        if len({*names}) == len(names):
            return [replace(one, name=name) for one, name in zip(runs, names, strict=True)]
        depth += 1
