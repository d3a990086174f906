"""Pearson's correlation: how close predictions and references are to a line.

Where one of them is always the same number no line can be told, and the answer is 0.
"""

from scipy.stats import pearsonr

from pefttools.metrics.base import NumberMetric, correlation


class Pearson(NumberMetric):
    """`pearson`, from -1 to 1."""

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:  # type: ignore[override]
        return {"pearson": correlation(pearsonr, predictions, references)}
