"""The predictions in a run's folder, compared with those that its model makes now.

If they differ, something was changed after training. If one class is always another one, the labels of the recipe no
longer line up with the model's outputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from pefttools.data.encoding import Encoded, columns_of
from pefttools.doctor.saved import RunToCheck, loads
from pefttools.errors import UserError
from pefttools.reporter import Finding
from pefttools.training.evaluation import Evaluator

ROWS = 256
"""Number of rows to predict again."""
LEAST = 8
"""Least number of rows."""
DIFFERENT = 0.1
"""Share of the predictions that may differ by rounding, on another machine or in another precision."""
CONSISTENT = 0.9
"""Share of the predictions that must follow one renaming of the classes."""


def why_not(subject: RunToCheck) -> str | None:
    """The reason why predictions cannot be compared."""
    task = subject.recipe.task
    if not task.class_names or task.generates:
        return "the task has no classes"
    try:
        rows = subject.run.scored_rows()
        saved = subject.run.predictions()[2] if rows else []
    except UserError as error:
        return error.problems[0]
    if not rows or len(rows.rows) < LEAST or not isinstance(saved[0].get("prediction"), str):
        return "the run has no saved predictions of one class each"
    return loads(subject)


def saved_predictions(subject: RunToCheck) -> Iterator[Finding]:
    """A finding if the model predicts other classes than those that were saved."""
    rows, saved = subject.run.scored_rows(), subject.run.predictions()[2]
    assert rows is not None
    some, task = rows.rows[:ROWS], subject.recipe.task
    trained = subject.trained
    columns = Encoded(columns_of(some, task, trained.base.tokenizer))
    evaluator = Evaluator(trained.model, task, trained.base.tokenizer, reporter=subject.reporter)
    now, _ = evaluator.predictions(columns, some, "predicting again")
    pairs = [(one["prediction"], other["prediction"]) for one, other in zip(saved, now, strict=False)]
    different = sum(one != other for one, other in pairs)
    if different < DIFFERENT * len(pairs):
        return
    yield _finding(subject, pairs, different, task.class_names)


def _finding(subject: RunToCheck, pairs: Sequence[tuple[Any, Any]], different: int, names: Sequence[str]) -> Finding:
    renamed: dict[str, str] = {}
    for (before, now), _ in Counter(pairs).most_common():
        if before not in renamed and now not in renamed.values():
            renamed[before] = now
    explained = sum(renamed.get(before) == now for before, now in pairs)
    evidence = f"{different} of {len(pairs)} saved predictions are another class now"
    again = f"pefttools train {subject.run.recipe_file} --out NEW_RUN"
    if explained < CONSISTENT * len(pairs):
        return Finding("labels that do not line up", "the run predicts other classes than it saved", evidence, again)
    swapped = ", ".join(f"{one!r} became {other!r}" for one, other in sorted(renamed.items()) if one != other)
    back = {now: before for before, now in renamed.items()}
    order = ", ".join(back.get(name, name) for name in names)
    return Finding(
        "labels that do not line up",
        "the labels in the run's recipe are not in the order of the model's outputs",
        f"{evidence}, always in the same way: {swapped}",
        f"{again} 'task.labels=[{order}]'",
    )
