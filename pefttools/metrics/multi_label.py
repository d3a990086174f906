"""Metrics for several labels per row: accuracy of whole sets, macro-F1, micro-F1, and the scores of every class.

Macro-F1 is the mean over the classes that occur in the references.
"""

from typing import Any

from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from pefttools.metrics.base import SetMetric, mean_f1


class MultiLabel(SetMetric):
    """`accuracy` (of whole sets), `f1` (macro), `f1_micro`, and `per_class`: class id -> precision, recall, F1 and
    support."""

    def _compute(self, predictions: list[list[int]], references: list[list[int]]) -> dict[str, Any]:  # type: ignore[override]
        import numpy

        predicted, true = numpy.array(predictions), numpy.array(references)
        columns = precision_recall_fscore_support(true, predicted, average=None, zero_division=0)  # type: ignore[arg-type]
        rows = zip(*(column.tolist() for column in columns), strict=True)  # type: ignore[union-attr]
        names = ("precision", "recall", "f1", "support")
        per_class = {str(i): dict(zip(names, row, strict=True)) for i, row in enumerate(rows)}
        return {
            "accuracy": float(accuracy_score(true, predicted)),
            "f1": mean_f1(per_class),
            "f1_micro": float(f1_score(true, predicted, average="micro", zero_division=0)),  # type: ignore[arg-type]
            "per_class": per_class,
        }
