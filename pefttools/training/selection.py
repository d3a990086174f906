"""By which metric the best checkpoint is chosen: the task's primary one, or `train.best_metric`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pefttools.errors import UserError, nearest
from pefttools.recipe.recipe import Recipe
from pefttools.reporter import Reporter

LOWER = frozenset(("loss", "mae", "mse", "perplexity"))
"""Metrics whose lower values are better, where `train.best_mode` leaves it open."""


@dataclass(frozen=True)
class Selection:
    """The metric of validation rows that decides which weights are the best."""

    metric: str
    lower_is_better: bool

    @classmethod
    def of(cls, recipe: Recipe) -> Selection:
        """The one that a recipe chooses."""
        task, chosen, mode = recipe.task, recipe.train.best_metric, recipe.train.best_mode
        if chosen is None:
            return cls(task.primary, task.lower_is_better)
        usual = task.lower_is_better if chosen == task.primary else chosen in LOWER
        return cls(chosen, usual if mode == "auto" else mode == "min")

    def is_better(self, score: float, best: float) -> bool:
        """Whether a value of the metric is better than another."""
        return score < best if self.lower_is_better else score > best

    def check(self, scores: Mapping[str, Any], extra: Sequence[str], reporter: Reporter) -> None:
        """Raises UserError when scores of the base do not contain the metric; warns if it may have no value.

        Args:
            scores: metric -> value; what is no number cannot choose.
            extra: metrics of the user's own, which may have no value on these rows.
        """
        known = [name for name, value in scores.items() if isinstance(value, (int, float))]
        if self.metric in known:
            return
        if self.metric in extra:
            reporter.warn(
                f"train.best_metric: {self.metric!r} has no value before training; if it has none at any evaluation,"
                " the weights with the lowest loss are the best"
            )
        else:
            match = nearest(self.metric, known)
            raise UserError(
                f"train.best_metric: the scores have no {self.metric!r}{f'; did you mean {match!r}?' if match else '.'}"
                f" There are {', '.join(known)}"
            )


def needs_texts(recipe: Recipe) -> bool:
    """Whether validation during training must generate texts, because a metric that the recipe adds may read them."""
    task, chosen = recipe.task, recipe.train.best_metric
    return task.generates and (bool(task.extra_metrics) or chosen not in (None, "loss", task.primary))
