"""What the metrics over class ids, sets of classes, numbers and texts share."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import datasets
from evaluate import Metric, MetricInfo


class ClassMetric(Metric):
    """A metric of predicted against true class ids; the subclass's module docstring is its description."""

    feature: ClassVar[datasets.Value | datasets.List] = datasets.Value("int64")
    what: ClassVar[str] = "class ids"

    def _info(self) -> MetricInfo:
        return MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description=f"predictions, references: {self.what}",
            features=datasets.Features({"predictions": self.feature, "references": self.feature}),
        )


class SetMetric(ClassMetric):
    """The same of sets of classes."""

    feature = datasets.List(datasets.Value("int64"))
    what = "rows of 0 and 1, one for every class"


class NumberMetric(ClassMetric):
    """The same of numbers."""

    feature = datasets.Value("float64")
    what = "numbers"


class TextMetric(Metric):
    """A metric of texts against one reference each, or several."""

    def _info(self) -> MetricInfo:
        text = datasets.Value("string")
        return MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description="predictions: texts; references: a text each, or a list of texts each",
            features=[
                datasets.Features({"predictions": text, "references": references})
                for references in (text, datasets.Sequence(text))
            ],
        )


def mean_f1(scores: Mapping[str, Mapping[Any, float]]) -> float:
    """Macro-F1: the mean over the classes that the references have; 0 where they have none.

    Args:
        scores: class -> `f1` and `support`.
    """
    found = [row["f1"] for row in scores.values() if row["support"]]
    return sum(found) / len(found) if found else 0.0


def correlation(measure: Callable[..., Any], predictions: Sequence[float], references: Sequence[float]) -> float:
    """What scipy measures; 0 where it cannot, since one side is constant or there are fewer than two rows."""
    if len(predictions) < 2 or len(set(predictions)) == 1 or len(set(references)) == 1:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one side is nearly constant: the number is what it is
        value = float(measure(predictions, references).statistic)
    return value if math.isfinite(value) else 0.0
