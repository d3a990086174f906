"""The worst predictions of a run: the most confident mistakes, or the largest errors."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pefttools.analysis.calibration import confidence
from pefttools.analysis.scored_run import ScoredRows
from pefttools.bench.row_texts import input_text, shown
from pefttools.errors import UserError


def check_number(number: int) -> None:
    """Raises UserError if this is no number of errors to show."""
    if number < 1:
        raise UserError(f"--errors: must be at least 1, got {number}; it is the number of rows to show")


def worst(scored: ScoredRows, number: int, texts: bool = True) -> dict[str, Any]:
    """The wrong rows, the worst first: by their error, and among equal errors the most confident ones.

    Returns:
        `wrong`, their number, `scored`, the number of rows that were scored, `are_wrong`, whether each is simply wrong
        and not only less good, and `rows`.
    """
    errors, right = scored.errors(), scored.right()
    wrong = [(error, confidence(scored, i), i) for i, error in enumerate(errors) if error]
    wrong.sort(key=lambda one: (-one[0], -(one[1] if one[1] is not None else 0.0), one[2]))
    known = {error for error, _, _ in wrong}
    return {
        "wrong": len(wrong),
        "scored": sum(error is not None for error in errors),
        "are_wrong": any(one is not None for one in right),
        "has_degrees": known != {1.0},
        "rows": [_row(scored, *one, texts) for one in wrong[:number]],
    }


def _row(scored: ScoredRows, error: float, stated: float | None, place: int, texts: bool) -> dict[str, Any]:
    prediction = scored.predictions[place].get("prediction")
    may_show = texts or has_class_targets(scored)
    return {
        "id": scored.ids[place],
        "text": input_text(scored.rows[place], scored.task) if texts else None,
        "reference": shown(scored.references[place]) if may_show else None,
        "prediction": shown(prediction) if may_show and prediction is not None else None,
        "confidence": stated,
        "error": error,
    }


def has_class_targets(scored: ScoredRows) -> bool:
    """Whether targets are classes, tags or numbers, which are no texts of the data."""
    task = scored.task
    return (
        bool(task.class_names) or "label2id" in task.config_values() or isinstance(scored.references[0], (int, float))
    )


def confusions(scored: ScoredRows) -> dict[str, Any] | None:
    """`classes` and `counts`, reference by prediction; None unless each row has one class, or each word one tag."""
    pairs = _class_pairs(scored)
    if not pairs:
        return None
    counts = Counter(pairs)
    names = [n for n in scored.task.class_names if any(n in pair for pair in counts)]
    names += sorted({name for pair in counts for name in pair} - {*names})
    return {
        "classes": names,
        "counts": [
            {"reference": one, "prediction": two, "number": number} for (one, two), number in sorted(counts.items())
        ],
    }


def _class_pairs(scored: ScoredRows) -> list[tuple[str, str]]:
    found = [one.get("prediction") for one in scored.predictions]
    both: list[tuple[Any, Any]] = list(zip(found, scored.references, strict=True))
    if scored.task.class_names and all(isinstance(p, str) and isinstance(r, str) for p, r in both):
        return [(r, p) for p, r in both]
    is_tags = "per_tag" in scored.metrics and "label2id" in scored.task.config_values()
    return [(r, p) for one, two in both for p, r in zip(one, two, strict=True)] if is_tags else []
