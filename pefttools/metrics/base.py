"""Base classes of metrics for class ids, sets of classes, numbers and texts."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import datasets
from evaluate import Metric, MetricInfo


class ClassMetric(Metric):
    """A metric of predicted against true class ids; the subclass's module docstring is its description."""

    modules: ClassVar[tuple[str, ...]] = ()
    """Modules that it imports and that the core does not install (see `extras`)."""
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
    """A metric of predicted against true sets of classes."""

    feature = datasets.List(datasets.Value("int64"))
    what = "rows of 0 and 1, one value per class"


class NumberMetric(ClassMetric):
    """A metric of predicted against true numbers."""

    feature = datasets.Value("float64")
    what = "numbers"


class TextMetric(Metric):
    """A metric of texts against one or several references each."""

    modules: ClassVar[tuple[str, ...]] = ()
    """Modules that it imports and that the core does not install (see `extras`)."""

    def _info(self) -> MetricInfo:
        text = datasets.Value("string")
        return MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description="predictions: texts; references: one text, or a list of texts, per prediction",
            features=[
                datasets.Features({"predictions": text, "references": references})
                for references in (text, datasets.Sequence(text))
            ],
        )


def mean_f1(scores: Mapping[str, Mapping[Any, float]]) -> float:
    """Macro-F1: the mean over the classes that occur in the references; 0 if there are none.

    Args:
        scores: class -> `f1` and `support`.
    """
    found = [row["f1"] for row in scores.values() if row["support"]]
    return sum(found) / len(found) if found else 0.0


def correlation(measure: Callable[..., Any], predictions: Sequence[float], references: Sequence[float]) -> float:
    """The correlation that scipy computes; 0 if one side is constant or there are fewer than two rows."""
    if len(predictions) < 2 or len(set(predictions)) == 1 or len(set(references)) == 1:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns if one side is nearly constant
        value = float(measure(predictions, references).statistic)
    return value if math.isfinite(value) else 0.0
