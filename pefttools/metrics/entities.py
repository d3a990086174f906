"""Precision, recall and F1 of entities in BIO tags as in seqeval, overall and per type.

An entity is correct if its type, first word and last word are. The overall numbers are micro-averages; `f1_macro` is
the mean over the types that occur in the references. A ratio with denominator 0 counts as 0.
"""

from typing import Any, ClassVar

import datasets

from pefttools.metrics.base import ClassMetric, mean_f1

NAMES = ("precision", "recall", "f1", "support")


class Entities(ClassMetric):
    """`precision`, `recall`, `f1`, `f1_macro`, and `entities`: type -> precision, recall, F1 and support."""

    modules: ClassVar[tuple[str, ...]] = ("seqeval",)
    feature = datasets.List(datasets.Value("string"))
    what = "BIO tags, one list per sentence"

    def _compute(self, predictions: list[list[str]], references: list[list[str]]) -> dict[str, Any]:  # type: ignore[override]
        from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support

        types = sorted({kind for tags in (references, predictions) for kind, *_ in get_entities(tags)})
        if not types:
            return {**dict.fromkeys((*NAMES[:3], "f1_macro"), 0.0), "entities": {}}
        whole, columns = (
            precision_recall_fscore_support(references, predictions, average=average, zero_division=0)  # type: ignore[arg-type]
            for average in ("micro", None)
        )
        rows = zip(*(column.tolist() for column in columns), strict=True)  # type: ignore[union-attr]
        entities = {kind: dict(zip(NAMES, row, strict=True)) for kind, row in zip(types, rows, strict=True)}
        return {
            **{name: float(value) for name, value in zip(NAMES[:3], whole, strict=False)},  # type: ignore[arg-type]
            "f1_macro": mean_f1(entities),
            "entities": entities,
        }
