"""Share of predictions that equal their reference."""

from sklearn.metrics import accuracy_score

from pefttools.metrics.base import ClassMetric


class Accuracy(ClassMetric):
    """`accuracy`, a fraction."""

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:  # type: ignore[override]
        return {"accuracy": float(accuracy_score(references, predictions))}
