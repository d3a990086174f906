"""Metrics of tags per word: accuracy, macro-F1 over the tags, and precision, recall, F1 and support of every tag.

`per_tag` has the tags of references and predictions, with O; the mean covers the tags that occur in the references.
Tags are sorted by type, with O last.
"""

from itertools import chain
from typing import Any

import datasets
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from pefttools.metrics.base import ClassMetric, mean_f1


class PerTag(ClassMetric):
    """`accuracy`, `tag_f1` (macro), and `per_tag`: tag -> precision, recall, F1 and support."""

    feature = datasets.List(datasets.Value("string"))
    what = "tags, one list per sentence"

    def _compute(self, predictions: list[list[str]], references: list[list[str]]) -> dict[str, Any]:  # type: ignore[override]
        predicted, true = list(chain.from_iterable(predictions)), list(chain.from_iterable(references))
        tags = sorted({*predicted, *true}, key=_order)
        columns = precision_recall_fscore_support(true, predicted, labels=tags, zero_division=0)  # type: ignore[arg-type]
        rows = zip(*(column.tolist() for column in columns), strict=True)  # type: ignore[union-attr]
        names = ("precision", "recall", "f1", "support")
        per_tag = {tag: dict(zip(names, row, strict=True)) for tag, row in zip(tags, rows, strict=True)}
        return {
            "accuracy": float(accuracy_score(true, predicted)),
            "tag_f1": mean_f1(per_tag),
            "per_tag": per_tag,
        }


def _order(tag: str) -> tuple[bool, str, str]:
    prefix, _, kind = tag.partition("-")
    return tag == "O", kind or prefix, prefix
