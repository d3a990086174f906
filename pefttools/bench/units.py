"""Scores by row, or by block of rows, that average to a metric: what intervals and paired tests are computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LIKELIHOOD = {"perplexity"}
"""Metrics for which generated texts do not count."""
BLOCKS = 100
"""Number of blocks of test rows, for metrics that are not means over rows."""


def row_scores(predictions: Sequence[Any], references: Sequence[Any], score: float) -> list[float]:
    """1 for each row whose prediction equals its reference, else 0; empty if their mean is not the score."""
    right = [float(p.get("prediction") == r) for p, r in zip(predictions, references, strict=True)]
    return right if right and abs(sum(right) / len(right) - score) < 1e-9 else []


def pseudo_values(task: Any, predictions: Sequence[Any], references: Sequence[Any], score: float) -> list[float]:
    """Pseudo-values of the task's primary metric, see `all_pseudo_values`: (G,)."""
    return all_pseudo_values(task, predictions, references, {task.primary: score})[task.primary]


def all_pseudo_values(
    task: Any,
    predictions: Sequence[Any],
    references: Sequence[Any],
    scores: Mapping[str, float],
    blocks: int = BLOCKS,
) -> dict[str, list[float]]:
    """Metric -> jackknife pseudo-values G·θ − (G−1)·θ₍₋g₎ (Tukey 1958) of G blocks of rows, at most `blocks`: (G,).

    For a metric that is not a mean over rows (F1, BLEU, a correlation), their mean is close to the metric, and they
    vary like the scores of G rows.

    Args:
        scores: metric -> its value on all rows.
    """
    number = min(blocks, len(predictions))
    predictions = _without_texts(predictions) if {*scores} <= LIKELIHOOD else predictions
    values: dict[str, list[float]] = {name: [] for name in scores}
    for block in range(number):
        others = [i for i in range(len(predictions)) if i % number != block]
        metrics = task.metrics([predictions[i] for i in others], [references[i] for i in others]) if others else {}
        for name, score in scores.items():
            values[name].append(number * score - (number - 1) * metrics.get(name, score))
    return values


def _without_texts(predictions: Sequence[Any]) -> list[Any]:
    """The predictions without generated texts, whose metrics take much longer than that of the likelihoods."""
    return [{key: value for key, value in one.items() if key != "prediction"} for one in predictions]


def paired(
    task: Any, scored: Mapping[str, tuple[Sequence[Any], Sequence[Any], float]]
) -> tuple[dict[str, list[float]], bool]:
    """Name -> scores that average to the primary metric, and whether they are scores of rows, not of blocks of rows.

    Args:
        scored: name -> predictions, references and the metric's value, on the same rows for all.
    """
    by_row = {name: row_scores(*one) for name, one in scored.items()}
    if all(by_row.values()):
        return by_row, True
    return {name: pseudo_values(task, *one) for name, one in scored.items()}, False
