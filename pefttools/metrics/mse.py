"""Mean squared error, in the square of the labels' unit."""

from sklearn.metrics import mean_squared_error

from pefttools.metrics.base import NumberMetric


class MeanSquaredError(NumberMetric):
    """`mse`, lower is better."""

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:  # type: ignore[override]
        return {"mse": float(mean_squared_error(references, predictions))}
