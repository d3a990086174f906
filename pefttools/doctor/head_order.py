"""Labels that do not line up with the outputs of the base's trained head.

`base.trained_head=keep` takes `task.labels` in the order of the head's outputs. If the order is wrong, the base
predicts one class where the rows have another, always the same one. So the check compares the base's predictions with
the labels, and finds the order of the labels in which most of them are right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pefttools.bases import class_heads
from pefttools.data.encoding import Encoded, columns_of
from pefttools.reporter import Finding, Reporter
from pefttools.training.evaluation import Evaluator
from pefttools.training.preparation import Prepared

ROWS = 256
"""Number of rows to predict."""
LEAST = 20
"""Least number of rows."""
GAIN, GOOD = 0.3, 0.6
"""Least gain in accuracy by the other order, and least accuracy with it; a head of another task has neither."""


def why_not(prepared: Prepared) -> str | None:
    """The reason why there is no trained head to check."""
    task, base = prepared.recipe.task, prepared.recipe.base
    labels: Sequence[str] = getattr(task, "labels", ())
    if not task.has_class_head or not task.has_target_logits:
        return "the task has no head with one output per class"
    existing = class_heads.names(base, task.auto_class)
    if not existing or class_heads.matched(labels, existing, base) is None:
        return "the head is new"
    return None if len(prepared.splits.train) >= LEAST else f"there are fewer than {LEAST} rows"


def head_order(prepared: Prepared, reporter: Reporter) -> Iterator[Finding]:
    """A finding if another order of the labels fits the trained head much better."""
    import numpy
    from scipy.optimize import linear_sum_assignment

    task: Any = prepared.recipe.task
    rows = prepared.splits.train[:ROWS]
    if any(not isinstance(row.get("label"), str) for row in rows):
        return
    columns = Encoded(columns_of(rows, task, prepared.base.tokenizer))
    evaluator = Evaluator(prepared.model, task, prepared.base.tokenizer, reporter=reporter)
    predicted, _ = evaluator.predictions(columns, rows, "the base's head")
    order = {name: number for number, name in enumerate(task.labels)}
    table = numpy.zeros((len(order), len(order)), int)
    for one, row in zip(predicted, rows, strict=True):
        table[order[one["prediction"]], order[row["label"]]] += 1
    outputs, classes = linear_sum_assignment(-table)
    now, best = table.trace() / len(rows), table[outputs, classes].sum() / len(rows)
    if best < GOOD or best - now < GAIN:
        return
    names = [task.labels[i] for i in classes]
    yield Finding(
        "labels that do not line up",
        "task.labels are not in the order of the trained head's outputs",
        f"before training the head is right on {now:.0%} of {len(rows)} training rows, and on {best:.0%} if its outputs"
        f" are {', '.join(names)} in this order",
        f"pefttools train RECIPE 'task.labels=[{', '.join(names)}]'",
    )
