"""Macro-F1: the mean over classes of the harmonic mean of precision and recall.

The mean covers the classes that occur in the references, so that models evaluated on the same rows are averaged over
the same classes. A class that is never predicted counts as 0.
"""

from sklearn.metrics import f1_score

from pefttools.metrics.base import ClassMetric


class F1(ClassMetric):
    """`f1`, a fraction, macro-averaged."""

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:  # type: ignore[override]
        classes = sorted({*references})
        score = f1_score(references, predictions, labels=classes, average="macro", zero_division=0)  # type: ignore[arg-type]
        return {"f1": float(score)}
