"""What the committed comparison of methods says before anything is trained; it decides the order of candidates only.

`priors.json` has each method's score and time on each set of the suite `zoo`. For new rows, sets of similar size with a
similar number of classes count more: a set's weight is exp(−d), where d is the distance of the logarithms of both.
`python benchmarks/priors.py` writes the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("priors.json")
REFERENCE: Mapping[str, Any] = {"name": "lora"}


@dataclass(frozen=True)
class Prior:
    """What is expected of a method, compared with LoRA's defaults."""

    gain: float
    """Difference of the scores, as a share of the metric's range."""
    time: float
    """Quotient of the training times."""


def key(strategy: Mapping[str, Any]) -> str:
    """The name of a strategy with its settings in priors.json."""
    return json.dumps(dict(strategy), sort_keys=True)


@cache
def table() -> Mapping[str, Any]:
    """The content of priors.json: `sets` (each with `rows`, `classes`, `methods`), `suite` and `versions`."""
    return json.loads(FILE.read_text("utf-8"))


def expected(strategy: Mapping[str, Any], rows: int, classes: int | None) -> Prior | None:
    """What the table says about a strategy; None where it has no such method.

    Args:
        strategy: the section `strategy` of a recipe.
        rows: number of training rows.
        classes: number of classes or tags; None where the task has none.
    """
    weights = gains = times = 0.0
    for one in table()["sets"]:
        methods = one["methods"]
        found, reference = methods.get(key(strategy)), methods.get(key(REFERENCE))
        if found and reference:
            weight = math.exp(-_distance(one, rows, classes))
            weights += weight
            gains += weight * (found["score"] - reference["score"])
            times += weight * math.log(found["seconds"] / reference["seconds"])
    return Prior(gains / weights, math.exp(times / weights)) if weights else None


def ordered(
    strategies: Mapping[str, Mapping[str, Any]], rows: int, classes: int | None
) -> dict[str, Mapping[str, Any]]:
    """The strategies, by label: LoRA's defaults first, then the highest expected gain; unknown ones last."""

    def place(label: str) -> tuple[bool, float]:
        prior = expected(strategies[label], rows, classes)
        return key(strategies[label]) != key(REFERENCE), -prior.gain if prior else math.inf

    return {label: strategies[label] for label in sorted(strategies, key=place)}


def told(strategies: Mapping[str, Mapping[str, Any]], rows: int, classes: int | None) -> str:
    """The expectations as one line; empty where nothing is known."""
    parts = []
    for label, strategy in strategies.items():
        prior = expected(strategy, rows, classes)
        if prior and key(strategy) != key(REFERENCE):
            parts.append(f"{label} {100 * prior.gain:+.1f} points in {prior.time:.2g}× the time")
    return ", ".join(parts)


def _distance(one: Mapping[str, Any], rows: int, classes: int | None) -> float:
    apart = abs(math.log(one["rows"] / rows))
    return apart + abs(math.log(one["classes"] / classes)) if classes and one["classes"] else apart
