"""Whether the prediction on a row is right, and how wrong it is, by the forms of the prediction and the reference.

reference             prediction             error
number                number                 absolute difference
text, class           text, class            0 or 1; for generated texts 1 − F1 of their words
list of answers       text                   1 − the best F1 of their words, as SQuAD's
set of labels         set, probabilities     1 − Jaccard's similarity
tags of words         tags                   share of words with another tag
text                  likelihood alone       mean negative log-likelihood of a token
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ALMOST = 0.999
"""Upper limit of the F1 of a generated text that is not right."""


def is_right(prediction: Mapping[str, Any], reference: Any, pattern: str | None = None) -> bool | None:
    """Whether the prediction is correct; None for numbers, and for texts that were scored but not generated.

    Args:
        pattern: a regular expression for the part of a generated text that counts, see `metrics._language.matched`.
    """
    found = prediction.get("prediction")
    if found is None or reference is None or isinstance(reference, float):
        return None
    if _is_generated(prediction):
        return _same_answer(found, reference, pattern)
    if isinstance(reference, list) and isinstance(found, str):
        from pefttools.metrics.squad import exact_match

        return bool(_best(exact_match, found, reference))
    return found == reference


def row_error(prediction: Mapping[str, Any], reference: Any, pattern: str | None = None) -> float | None:
    """0 if the prediction is right, the larger the worse; None if the row was not scored."""
    found = prediction.get("prediction")
    if found is None:
        return prediction["nll"] / max(1, prediction["num_targets"]) if prediction.get("nll") is not None else None
    if reference is None:
        return None
    if isinstance(reference, float):
        return abs(float(found) - reference)
    if isinstance(reference, list):
        return _error_of_list(prediction, found, reference)
    if _is_generated(prediction):
        from pefttools.metrics.squad import f1

        return 0.0 if _same_answer(found, reference, pattern) else 1 - min(f1(found, reference), ALMOST)
    return float(found != reference)


def _error_of_list(prediction: Mapping[str, Any], found: Any, reference: Sequence[Any]) -> float:
    if isinstance(found, str):
        from pefttools.metrics.squad import f1

        return 1 - _best(f1, found, reference)
    if "probabilities" in prediction:
        either = {*found} | {*reference}
        return 1 - len({*found} & {*reference}) / len(either) if either else 0.0
    return sum(one != other for one, other in zip(found, reference, strict=True)) / max(1, len(reference))


def _best(measure: Any, found: str, answers: Sequence[str]) -> float:
    """The best score over the answers; compared with the empty text if there are none."""
    from pefttools.metrics.squad import words

    return max(measure(found, answer) for answer in [one for one in answers if words(one)] or [""])


def _is_generated(prediction: Mapping[str, Any]) -> bool:
    return "finish" in prediction


def _same_answer(found: str, reference: str, pattern: str | None) -> bool:
    from pefttools.metrics._language import matched

    expected = matched(reference, pattern) or reference
    return matched(found, pattern).split() == expected.split()
