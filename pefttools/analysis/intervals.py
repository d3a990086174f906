"""95% intervals of one run's scores, for new rows like these, and of the gap between two groups of rows.

A score that is a mean over rows has Wilson's interval between the metric's bounds, and Student's if it has none. For
other metrics (F1, BLEU, a correlation) the jackknife over blocks of rows gives the variance (`bench.units`). The
difference of two independent scores is bounded by their two intervals (MOVER, Zou and Donner 2008; Newcombe's method 10
for shares).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pefttools.bench import stats
from pefttools.bench.units import all_pseudo_values, row_scores
from pefttools.metrics._bounds import bounds

if TYPE_CHECKING:
    from pefttools.analysis.scored_run import ScoredRows
    from pefttools.tasks.base import Task

Interval = tuple[float, float]
BLOCKS = 30
"""Number of blocks of rows for metrics that are not means over rows; each costs a computation of all metrics."""


def range_of(metric: str, task: Task) -> Interval | None:
    """The bounds of a metric; None if it has none, or they are not known."""
    return task.score_range if metric == task.primary else bounds(metric)


def of_values(
    values: Sequence[float], score: float, number: int, limits: Interval | None, level: float = stats.LEVEL
) -> Interval | None:
    """The interval of a score; None with fewer than two values, or if they are equal and have no bounds.

    Args:
        values: scores of rows or blocks that average to about the score.
        number: number of rows.
        limits: the bounds of the metric.
    """
    if len(values) < 2:
        return None
    variance = float(np.var(values, ddof=1)) / len(values)
    quantile = stats.t_quantile((1 + level) / 2, len(values) - 1)
    if limits is None and variance == 0:
        return None
    if limits is None:
        half = quantile * math.sqrt(variance)
        return score - half, score + half
    low, high = stats.wilson(score, variance, number, quantile, *limits)
    return min(low, score), max(high, score)


def of_metrics(
    scored: ScoredRows, names: Sequence[str] | None = None, blocks: int = BLOCKS, level: float = stats.LEVEL
) -> dict[str, Interval | None]:
    """Metric -> its interval.

    Args:
        names: the metrics, by default all that are one number.
        blocks: number of blocks for metrics that are not means over rows.
    """
    scores: Mapping[str, float] = {n: v for n, v in scored.scores.items() if names is None or n in names}
    by_row = {name: row_scores(scored.predictions, scored.references, score) for name, score in scores.items()}
    others = {name: score for name, score in scores.items() if not by_row[name]}
    by_block = all_pseudo_values(scored.task, scored.predictions, scored.references, others, blocks) if others else {}
    number = len(scored.predictions)
    return {
        name: of_values(by_row[name] or by_block[name], score, number, range_of(name, scored.task), level)
        for name, score in scores.items()
    }


def of_difference(first: float, of_first: Interval, second: float, of_second: Interval) -> Interval:
    """The interval of `first` minus `second`, two independent scores with their intervals."""
    low = math.hypot(first - of_first[0], of_second[1] - second)
    high = math.hypot(of_first[1] - first, second - of_second[0])
    return first - second - low, first - second + high
