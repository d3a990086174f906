"""Spearman's correlation: how alike predictions and references order the rows.

Where one of them is always the same number there is no order, and the answer is 0.
"""

from scipy.stats import spearmanr

from pefttools.metrics.base import NumberMetric, correlation


class Spearman(NumberMetric):
    """`spearman`, from -1 to 1."""

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:  # type: ignore[override]
        return {"spearman": correlation(spearmanr, predictions, references)}
