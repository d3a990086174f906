"""Calibration: whether predictions with a probability of 0.8 are right in 80% of the cases.

The expected calibration error is that of `inference.calibration`, over bins with equally many predictions; the bins of
the picture have equal widths. With several labels a row, each class of each row counts; otherwise the predicted class
of each row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pefttools.analysis.intervals import of_values
from pefttools.analysis.scored_run import ScoredRows
from pefttools.inference.calibration import calibration_error

BINS = 10


def probabilities(prediction: Mapping[str, Any], classes: Sequence[str]) -> list[float] | None:
    """The probabilities of a prediction, as a list in the order of the classes."""
    found = prediction.get("probabilities")
    if isinstance(found, Mapping):
        return [found[name] for name in classes] if classes and all(n in found for n in classes) else [*found.values()]
    return list(found) if found else None


def confidence(scored: ScoredRows, place: int) -> float | None:
    """The probability of the prediction on a row; for several labels, of the part that is most confidently wrong."""
    prediction, reference = scored.predictions[place], scored.references[place]
    classes, found = scored.task.class_names, probabilities(scored.predictions[place], scored.task.class_names)
    if found is None or isinstance(prediction.get("probabilities"), float):
        return prediction.get("probability")
    if isinstance(prediction["prediction"], list):
        wrong = {*prediction["prediction"]} ^ {*reference}
        sides = [p if name in prediction["prediction"] else 1 - p for name, p in zip(classes, found, strict=True)]
        return max((p for name, p in zip(classes, sides, strict=True) if name in wrong), default=min(sides))
    return max(found)


def reliability(scored: ScoredRows) -> dict[str, Any] | None:
    """`ece`, `brier` and the `bins`, each with its mean confidence, accuracy, interval and number of predictions.

    None if predictions have no probabilities, or are not right or wrong.
    """
    pairs = _pairs(scored)
    if not pairs:
        return None
    stated, right = np.array([p for p, _ in pairs]), np.array([float(r) for _, r in pairs])
    places = np.minimum((stated * BINS).astype(int), BINS - 1)
    bins = []
    for place in np.unique(places):
        chosen = places == place
        accuracy, number = float(right[chosen].mean()), int(chosen.sum())
        low, high = of_values(right[chosen].tolist(), accuracy, number, (0.0, 1.0)) or (accuracy, accuracy)
        bins.append(
            {
                "from": int(place) / BINS, "to": (int(place) + 1) / BINS, "number": number,
                "confidence": float(stated[chosen].mean()), "accuracy": accuracy, "low": low, "high": high,
            }
        )  # fmt: skip
    return {
        "of": "each class of each row" if _has_several(scored) else "the predicted class of each row",
        "number": len(pairs),
        "ece": calibration_error(stated, right),
        "confidence": float(stated.mean()),
        "accuracy": float(right.mean()),
        "brier": float(((stated - right) ** 2).mean()),
        "bins": bins,
    }


def _has_several(scored: ScoredRows) -> bool:
    return isinstance(scored.predictions[0].get("prediction"), list)


def _pairs(scored: ScoredRows) -> list[tuple[float, bool]]:
    """Probabilities, and whether what they state is true."""
    classes = scored.task.class_names
    if _has_several(scored):
        return [
            (p, name in reference)
            for prediction, reference in zip(scored.predictions, scored.references, strict=True)
            for name, p in zip(classes, probabilities(prediction, classes) or [], strict=False)
        ]
    found = [(confidence(scored, i), right) for i, right in enumerate(scored.right())]
    return [(p, right) for p, right in found if p is not None and right is not None]
