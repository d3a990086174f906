"""Precision, recall, F1 and support of every class."""

from typing import Any

from sklearn.metrics import precision_recall_fscore_support

from pefttools.metrics.base import ClassMetric


class PerClass(ClassMetric):
    """`per_class`: class id -> precision, recall, F1 and support."""

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, Any]:  # type: ignore[override]
        classes = sorted({*predictions, *references})
        columns = precision_recall_fscore_support(references, predictions, labels=classes, zero_division=0)  # type: ignore[arg-type]
        rows = zip(*(column.tolist() for column in columns), strict=True)  # type: ignore[union-attr]
        names = ("precision", "recall", "f1", "support")
        return {"per_class": {str(c): dict(zip(names, row, strict=True)) for c, row in zip(classes, rows, strict=True)}}
