"""Metrics of the user's own, which are computed besides a task's: functions, and objects or classes of `evaluate`.

A function gets the rows' references and predictions, as a run's predictions show them; with a parameter `probabilities`
also the probability of every class, a dictionary for each row. It returns a number, or a mapping of names to numbers.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pefttools.errors import UserError, shown
from pefttools.metrics import metrics
from pefttools.registry import PLUGINS
from pefttools.sources.cache import cache_dir

PROBABILITIES = "probabilities"
ARGUMENTS = ("references", "predictions", PROBABILITIES)
HOW = (
    "a metric of your own is known in the process that registers it (`pefttools.register`), and everywhere as a class"
    f" in a file metrics/NAME.py of a folder that {PLUGINS} names"
)


def unknown_names(names: Sequence[str]) -> list[str]:
    """A message for every metric that this process does not know."""
    known = metrics.names() if names else []
    return [f"{metrics.unknown_name(name, known)}; {HOW}" for name in names if name not in known]


def refuse_unknown(names: Sequence[str]) -> None:
    """Raises UserError when this process does not know one of the metrics."""
    if problems := unknown_names(names):
        raise UserError(*(f"task.extra_metrics: {problem}" for problem in problems))


def scores(
    names: Sequence[str], predictions: Sequence[Mapping[str, Any]], references: Sequence[Any], classes: Sequence[str]
) -> dict[str, float]:
    """The numbers of the named metrics on the rows that have a prediction and a reference; without those that are not
    finite.

    Args:
        names: of metrics that are known.
        classes: the task's classes, in whose order `evaluate`'s metrics number them.

    Raises:
        UserError: a metric fails, or returns no numbers.
    """
    rows = [
        (one["prediction"], reference, one.get(PROBABILITIES))
        for one, reference in zip(predictions, references, strict=True)
        if "prediction" in one and reference is not None
    ]
    if not rows:
        return {}
    predicted, expected, shares = (list(column) for column in zip(*rows, strict=True))
    found: dict[str, float] = {}
    for name in names:
        metric = metrics.get(name)
        try:
            if inspect.isfunction(metric):
                value = metric(**_arguments(name, metric, expected, predicted, shares, classes))
            else:
                value = _by_evaluate(metric, expected, predicted, classes)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"metric {name!r} failed: {type(error).__name__}: {error}") from error
        found |= _numbers(name, value)
    return {key: value for key, value in found.items() if math.isfinite(value)}


def refuse_wrong_function(name: str, function: Any) -> None:
    """Raises UserError when a function cannot be called with the arguments of a metric."""
    parameters = inspect.signature(function).parameters
    needed = [key for key, one in parameters.items() if one.default is one.empty and one.kind not in (2, 4)]
    if not {*ARGUMENTS[:2]} <= {*parameters} or {*needed} - {*ARGUMENTS}:
        raise UserError(
            f"metric {name!r}: the parameters must be `references` and `predictions`, and may be `{PROBABILITIES}`,"
            f" but they are {', '.join(parameters) or 'missing'}"
        )


def _arguments(
    name: str, metric: Any, references: list[Any], predictions: list[Any], shares: list[Any], classes: Sequence[str]
) -> dict[str, Any]:
    given: dict[str, Any] = {"references": references, "predictions": predictions}
    if PROBABILITIES not in inspect.signature(metric).parameters:
        return given
    if any(one is None for one in shares):
        raise UserError(f"metric {name!r}: has a parameter `{PROBABILITIES}`, but this task predicts none")
    each = [one if isinstance(one, Mapping) else dict(zip(classes, one, strict=True)) for one in shares]
    return {**given, PROBABILITIES: each}


def _by_evaluate(metric: Any, references: list[Any], predictions: list[Any], classes: Sequence[str]) -> Any:
    """What a metric of `evaluate` computes; one of integers gets the numbers of the classes."""
    if isinstance(metric, type):
        metric = metric(keep_in_memory=True, cache_dir=str(cache_dir("metrics")))
    features = metric.features[0] if isinstance(metric.features, list) else metric.features
    feature = features["references"]
    dtype = str(getattr(getattr(feature, "feature", feature), "dtype", ""))
    if classes and dtype.startswith("int"):
        references, predictions = ([_number(one, classes) for one in side] for side in (references, predictions))
    return metric.compute(references=references, predictions=predictions)


def _number(value: Any, classes: Sequence[str]) -> Any:
    """The place of a class; for several classes a 1 or 0 for each that exists."""
    return [int(name in value) for name in classes] if isinstance(value, list) else classes.index(value)


def _numbers(name: str, value: Any) -> dict[str, float]:
    found = value if isinstance(value, Mapping) else {name: value}
    try:
        return {str(key): float(one) for key, one in found.items()}
    except (TypeError, ValueError):
        raise UserError(
            f"metric {name!r}: must return a number, or a mapping of names to numbers, not {shown(value)}"
        ) from None
