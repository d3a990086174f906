"""Pearson's correlation: how linear the relation of predictions and references is.

If all predictions or all references are equal, the correlation is undefined, and the result is 0.
"""

from scipy.stats import pearsonr

from pefttools.metrics.base import NumberMetric, correlation


class Pearson(NumberMetric):
    """`pearson`, from -1 to 1."""

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:  # type: ignore[override]
        return {"pearson": correlation(pearsonr, predictions, references)}
