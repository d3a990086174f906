"""F1 of relations between two entities, without the class "no relation".

`f1` is the official measure of SemEval-2010 task 8 (Hendrickx et al. 2010). If labels have a direction,
`Cause-Effect(e1,e2)`, both directions count as one relation, a prediction is correct only with the right direction, and
the F1 of the relations is averaged. Without directions it is macro-F1. `f1_directed` is macro-F1 over the labels with
their directions, `f1_micro` pools all rows. Means cover the relations that occur in the references.
"""

import re
from collections import Counter

import datasets
from evaluate import Metric, MetricInfo
from sklearn.metrics import f1_score

DIRECTED = re.compile(r"(.+)\((?:e1,e2|e2,e1)\)", re.DOTALL)


class RelationF1(Metric):
    """`f1`, `f1_micro` and `f1_directed`, fractions; `other` is the label to leave out, if any."""

    def _info(self) -> MetricInfo:
        labels = datasets.Value("string")
        return MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description="predictions, references: labels",
            features=datasets.Features({"predictions": labels, "references": labels}),
        )

    def _compute(  # type: ignore[override]
        self, predictions: list[str], references: list[str], other: str | None = None
    ) -> dict[str, float]:
        labels = sorted({*predictions, *references} - {other})
        if not labels:
            return {"f1": 0.0, "f1_micro": 0.0, "f1_directed": 0.0}

        true = sorted({*references} - {other})

        def sklearn(average: str, of: list[str]) -> float:
            return float(f1_score(references, predictions, labels=of, average=average, zero_division=0))  # type: ignore[arg-type]

        return {
            "f1": _undirected_f1(predictions, references, true),
            "f1_micro": sklearn("micro", labels),
            "f1_directed": sklearn("macro", true) if true else 0.0,
        }


def relation(label: str) -> str:
    """The label without its direction."""
    match = DIRECTED.fullmatch(label)
    return match[1] if match else label


def _undirected_f1(predictions: list[str], references: list[str], labels: list[str]) -> float:
    predicted, true = (Counter(map(relation, side)) for side in (predictions, references))
    hits = Counter(relation(p) for p, r in zip(predictions, references, strict=True) if p == r)
    relations = {relation(label) for label in labels}
    return sum(2 * hits[name] / (predicted[name] + true[name]) for name in relations) / max(1, len(relations))
