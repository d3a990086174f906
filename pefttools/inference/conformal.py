"""Split conformal prediction (Vovk et al. 2005; Angelopoulos and Bates 2021): sets that contain the right answer.

With n validation rows and their errors e (1 minus the probability of the right class, or the absolute error of a
number), q is the ⌈(n + 1)(1 − α)⌉-th smallest error. The set of a new row has every class with a probability of at
least 1 − q, and the predicted one in any case, or it is the interval prediction ± q. It contains the right answer with
a probability of at least 1 − α, if the row is drawn like those for validation. A row is `unsure` if its set has more
classes than the predicted one; so at most a share α of all rows has a wrong answer that is not marked, and a higher α
never marks more rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pefttools.tasks.base import Prediction, Task

DIGITS = 8
"""Number of decimals of stored errors, which are rounded up."""


def quantile(errors: Sequence[float], error_rate: float) -> float:
    """The error that the right answer of a new row exceeds with a probability of at most `error_rate`.

    It is infinite if there are too few validation rows for so low a rate.

    Args:
        errors: sorted errors of validation rows.
    """
    place = math.ceil((len(errors) + 1) * (1 - error_rate))
    return errors[place - 1] if place <= len(errors) else math.inf


def num_needed(error_rate: float) -> int:
    """Number of validation rows from which on sets can be smaller than all classes."""
    return math.ceil(1 / error_rate) - 1


def errors(task: Task, predictions: Sequence[Prediction], references: Sequence[Any]) -> list[float]:
    """The sorted errors of rows; empty for tasks to which conformal prediction does not apply."""
    if task.answer_kind is None:
        return []
    pairs = zip(predictions, references, strict=True)
    scale = 10**DIGITS
    return sorted(math.ceil(_error(task, prediction, reference) * scale) / scale for prediction, reference in pairs)


def _error(task: Task, prediction: Prediction, reference: Any) -> float:
    if task.answer_kind == "number":
        return abs(prediction["prediction"] - reference)
    return 1 - _of_right(prediction["probabilities"], reference)


def _of_right(probabilities: Mapping[str, float], reference: Any) -> float:
    """The probability of the right class, which is named or, with choices, numbered."""
    return [*probabilities.values()][reference] if isinstance(reference, int) else probabilities[reference]


def answer(task: Task, prediction: Prediction, q: float) -> dict[str, Any]:
    """What a set adds to a prediction: `set` and `unsure`, or `interval`.

    Args:
        q: the quantile of the errors.
    """
    if task.answer_kind == "number":
        value = prediction["prediction"]
        return {"interval": [value - q, value + q] if math.isfinite(q) else None}
    chosen = predicted(prediction)
    inside = [name for name, p in by_probability(prediction["probabilities"]) if 1 - p <= q or name == chosen]
    return {"set": inside, "unsure": len(inside) > 1}


def _named(prediction: Prediction, reference: Any) -> Any:
    """The right class by name; with choices it is numbered."""
    return [*prediction["probabilities"]][reference] if isinstance(reference, int) else reference


def predicted(prediction: Prediction) -> str:
    """The name of the predicted class, which with choices is numbered and with thresholds need not be the likeliest."""
    found = prediction["prediction"]
    return [*prediction["probabilities"]][found] if isinstance(found, int) else found


def by_probability(probabilities: Mapping[str, float]) -> list[tuple[str, float]]:
    """The classes with their probabilities, the likeliest first."""
    return sorted(probabilities.items(), key=lambda item: -item[1])


def coverage(
    task: Task, known: Sequence[float], error_rate: float, predictions: Sequence[Prediction], references: Sequence[Any]
) -> dict[str, float | None]:
    """How often the error of the right answer is at most the quantile (`coverage`).

    For classes also the shares of rows that are `unsure`, and that have a wrong answer without being marked (`wrong`);
    for numbers the width of the `interval`.

    A set that `answer` gives contains the right class at least as often, because it also has the predicted class.
    """
    q = quantile(known, error_rate)
    pairs = [*zip(predictions, references, strict=True)]
    inside = [_error(task, prediction, reference) <= q for prediction, reference in pairs]
    covered = sum(inside) / len(pairs)
    if task.answer_kind == "number":
        return {"coverage": covered, "interval": 2 * q if math.isfinite(q) else None}
    unsure = [answer(task, prediction, q)["unsure"] for prediction, _ in pairs]
    right = [_named(prediction, reference) == predicted(prediction) for prediction, reference in pairs]
    wrong = [not one and not is_right for one, is_right in zip(unsure, right, strict=True)]
    return {"coverage": covered, "unsure": sum(unsure) / len(pairs), "wrong": sum(wrong) / len(pairs)}


def with_temperature(task: Task, predictions: Sequence[Prediction], temperature: float) -> list[Prediction]:
    """Predictions of classes with the probabilities that they have at a temperature; others unchanged.

    Probabilities of one class are p^(1/T), normalised; those of several labels are σ(logit(p) / T).
    """
    several = bool(getattr(task, "multi_label", False))
    if temperature == 1.0 or not (several or task.answer_kind == "class"):
        return [*predictions]
    scaled = _scaled_yes_or_no if several else _scaled
    return [{**one, "probabilities": scaled(one["probabilities"], temperature)} for one in predictions]


def _scaled(probabilities: Mapping[Any, float], temperature: float) -> dict[Any, float]:
    largest = max(probabilities.values())
    shares = {name: (p / largest) ** (1 / temperature) for name, p in probabilities.items()}
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()}


def _scaled_yes_or_no(probabilities: Mapping[Any, float], temperature: float) -> dict[Any, float]:
    found = {}
    for name, p in probabilities.items():
        yes, no = p ** (1 / temperature), (1 - p) ** (1 / temperature)
        found[name] = yes / (yes + no)
    return found
