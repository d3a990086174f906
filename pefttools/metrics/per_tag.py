"""Tags word by word: accuracy, macro-F1 over the tags, and precision, recall, F1 and support of every tag.

Tags are those of references or predictions, and O is one of them; the mean is over those of the references. The tags
of a type stand together; O is last.
"""

from itertools import chain
from typing import Any

import datasets
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from pefttools.metrics.base import ClassMetric, mean_f1


class PerTag(ClassMetric):
    """`accuracy`, `tag_f1` (macro), and `per_tag`: tag -> its four numbers."""

    feature = datasets.List(datasets.Value("string"))
    what = "tags, one list a sentence"

    def _compute(self, predictions: list[list[str]], references: list[list[str]]) -> dict[str, Any]:  # type: ignore[override]
        said, right = list(chain.from_iterable(predictions)), list(chain.from_iterable(references))
        tags = sorted({*said, *right}, key=_place)
        columns = precision_recall_fscore_support(right, said, labels=tags, zero_division=0)  # type: ignore[arg-type]
        rows = zip(*(column.tolist() for column in columns), strict=True)  # type: ignore[union-attr]
        names = ("precision", "recall", "f1", "support")
        per_tag = {tag: dict(zip(names, row, strict=True)) for tag, row in zip(tags, rows, strict=True)}
        return {
            "accuracy": float(accuracy_score(right, said)),
            "tag_f1": mean_f1(per_tag),
            "per_tag": per_tag,
        }


def _place(tag: str) -> tuple[bool, str, str]:
    prefix, _, kind = tag.partition("-")
    return tag == "O", kind or prefix, prefix
