"""Mean absolute error, in the labels' unit."""

from sklearn.metrics import mean_absolute_error

from pefttools.metrics.base import NumberMetric


class MeanAbsoluteError(NumberMetric):
    """`mae`, lower is better."""

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:  # type: ignore[override]
        return {"mae": float(mean_absolute_error(references, predictions))}
