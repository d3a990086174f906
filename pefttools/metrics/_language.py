"""What language models are scored by beside the texts they write: perplexity, and the answers that were generated."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

Said = Mapping[str, Any]
"""What is said of a row: `nll` over its `num_targets` tokens where it was scored, a `prediction` and how it came to its
`finish` where it was answered."""


def perplexity(scored: Sequence[Said]) -> float:
    """Over the target tokens of all rows."""
    mean = sum(p["nll"] for p in scored) / max(1, sum(p["num_targets"] for p in scored))
    return math.exp(min(mean, 700.0))  # e^710 is no number


def scored_and_answered(
    predictions: Sequence[Said], references: Sequence[Any]
) -> tuple[dict[str, Any], list[tuple[Said, Any]]]:
    """`perplexity` of the rows that were scored, if any were, and those that were answered with their references."""
    scored = [p for p in predictions if "nll" in p]
    pairs = [(p, r) for p, r in zip(predictions, references, strict=True) if "prediction" in p]
    return ({"perplexity": perplexity(scored)} if scored else {}), pairs


def matched(said: str, pattern: str | None) -> str:
    """What of a text is compared, without the space around it.

    Args:
        pattern: its first group at its last place is compared, nothing where it is not there.
    """
    if pattern is None:
        return said.strip()
    *_, last = [None, *re.finditer(pattern, said)]
    return (last[1] or "").strip() if last else ""


def stopped(answered: Sequence[tuple[Said, Any]]) -> float:
    """The share of answers that ended by themselves."""
    return sum(p["finish"] == "stop" for p, _ in answered) / len(answered)
