"""Scores of language models besides metrics of texts: perplexity, and statistics of generated answers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

Prediction = Mapping[str, Any]
"""The prediction of a row: `nll` over its `num_targets` tokens if it was scored, and the generated `prediction` with
its `finish` if an answer was generated."""


def perplexity(scored: Sequence[Prediction]) -> float:
    """Perplexity over the target tokens of all rows."""
    mean = sum(p["nll"] for p in scored) / max(1, sum(p["num_targets"] for p in scored))
    return math.exp(min(mean, 700.0))  # math.exp overflows at 710


def scored_and_answered(
    predictions: Sequence[Prediction], references: Sequence[Any]
) -> tuple[dict[str, Any], list[tuple[Prediction, Any]]]:
    """`perplexity` of the scored rows, if there are any, and pairs of generated answers and references."""
    scored = [p for p in predictions if "nll" in p]
    pairs = [(p, r) for p, r in zip(predictions, references, strict=True) if "prediction" in p]
    return ({"perplexity": perplexity(scored)} if scored else {}), pairs


def matched(text: str, pattern: str | None) -> str:
    """The part of a text to compare, without surrounding spaces.

    Args:
        pattern: a regular expression; its last match's first group is compared, or the empty text without a match.
    """
    if pattern is None:
        return text.strip()
    *_, last = [None, *re.finditer(pattern, text)]
    return (last[1] or "").strip() if last else ""


def stopped(answered: Sequence[tuple[Prediction, Any]]) -> float:
    """The share of answers that end with an end token."""
    return sum(p["finish"] == "stop" for p, _ in answered) / len(answered)
