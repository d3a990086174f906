"""Spearman's correlation: how similarly predictions and references rank the rows.

If all predictions or all references are equal, the correlation is undefined, and the result is 0.
"""

from scipy.stats import spearmanr

from pefttools.metrics.base import NumberMetric, correlation


class Spearman(NumberMetric):
    """`spearman`, from -1 to 1."""

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:  # type: ignore[override]
        return {"spearman": correlation(spearmanr, predictions, references)}
