"""Probabilities from which on a class is predicted, found on validation rows.

With several labels a row every class has its own: the one with the best F1, or the one with the highest recall among
those with the wanted precision, or the other way round. With two classes, one of which has to be found or avoided, that
one has a threshold, and only for a wanted precision or recall.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pefttools.errors import UserError, unknown

if TYPE_CHECKING:
    from pefttools.tasks.base import Prediction, Task

Array = np.ndarray[Any, np.dtype[Any]]
ROUNDING = 1e-5
"""Probabilities that differ by less count as equal, so that no threshold depends on rounding."""
FEWEST = 10
"""Number of validation rows of a class from which on it gets a threshold of its own."""


@dataclass(frozen=True)
class Wanted:
    """The precision or the recall that a class must reach."""

    precision: float | None = None
    recall: float | None = None
    of: str | None = None
    """The class; with several labels a row all classes, if it is None."""

    def check(self, task: Task) -> None:
        """Raises UserError when the task cannot have these thresholds."""
        problems = [
            f"--{name}: {value:g} is not between 0 and 1"
            for name, value in (("precision", self.precision), ("recall", self.recall))
            if value is not None and not 0 < value <= 1
        ]
        if self.precision is not None and self.recall is not None:
            problems.append("--precision, --recall: give one of the two; a threshold cannot reach both")
        names = task.class_names
        if not _has_thresholds(task):
            given = ", ".join(f"--{name}" for name in ("precision", "recall", "of") if getattr(self, name) is not None)
            raise UserError(
                f"{given}: thresholds are for several labels a row, or for two classes; {task.name} has"
                f" {len(names)} classes, of which one is predicted" if names else f"{given}: {task.name} has no classes"
            )  # fmt: skip
        if self.precision is None and self.recall is None:
            problems.append("--of: give --precision or --recall, too")
        if self.of is not None and self.of not in names:
            problems.append(f"--of: {unknown('class', self.of, names)}")
        elif self.of is None and not getattr(task, "multi_label", False):
            problems.append(f"--of: name the class that must reach it: {' or '.join(names)}")
        if problems:
            raise UserError(*problems)


def _has_thresholds(task: Task) -> bool:
    return "thresholds" in type(task).model_fields and (
        getattr(task, "multi_label", False) or len(task.class_names) == 2
    )


def thresholds(
    task: Task, predictions: Sequence[Prediction], references: Sequence[Any], wanted: Wanted | None
) -> tuple[dict[str, float], dict[str, str]]:
    """Class -> its threshold, and class -> the reason why it has none."""
    several = bool(getattr(task, "multi_label", False))
    if not _has_thresholds(task) or (not several and wanted is None):
        return {}, {}
    names = [wanted.of] if wanted and wanted.of is not None else [*task.class_names]
    found: dict[str, float] = {}
    missed: dict[str, str] = {}
    for name in names:
        probability = np.array([one["probabilities"][name] for one in predictions])
        is_class = np.array([name in one if several else name == one for one in references])
        if (number := int(is_class.sum())) < FEWEST:
            missed[name] = f"only {number} validation rows have it, and {FEWEST} are needed"
        elif (best := best_threshold(probability, is_class, wanted)) is None:
            assert wanted is not None
            goal = f"a precision of {wanted.precision:g}" if wanted.precision else f"a recall of {wanted.recall:g}"
            missed[name] = f"no threshold has {goal} on the validation rows"
        else:
            found[name] = best
    return found, missed


def best_threshold(probability: Array, is_class: Array, wanted: Wanted | None = None) -> float | None:
    """The threshold with the best F1, or with the best recall or precision where the other one is wanted.

    It is half-way between two probabilities, and of equally good ones that nearest to 0.5. None if no threshold has the
    wanted precision or recall.
    """
    values = np.unique(probability)
    apart = np.flatnonzero(np.diff(values) > ROUNDING)
    cuts = np.concatenate(([values[0] / 2], (values[apart] + values[apart + 1]) / 2))
    order = np.argsort(probability)
    below = np.searchsorted(probability[order], cuts)
    hits = is_class.sum() - np.concatenate(([0], np.cumsum(is_class[order])))[below]
    predicted = len(probability) - below
    precision, recall = hits / predicted, hits / is_class.sum()
    goal = 2 * hits / (predicted + is_class.sum())
    if wanted and wanted.precision is not None:
        goal = np.where(precision >= wanted.precision, recall, -1.0)
    elif wanted and wanted.recall is not None:
        goal = np.where(recall >= wanted.recall, precision, -1.0)
    if goal.max() < 0:
        return None
    best = cuts[goal >= goal.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])
