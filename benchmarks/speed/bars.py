"""The limits that pefttools must meet, and whether it meets them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import accuracy
import summary
from store import Measured

POINTS = 0.005
"""Allowed loss of test accuracy compared with Trainer, as a fraction."""


@dataclass(frozen=True)
class Bar:
    """A limit for pefttools in one case: a minimum for speed, a maximum for memory."""

    case: str
    quantity: Literal["speed", "memory"]
    limits: tuple[float, ...]
    """Ratios to each contender of the case that is not pefttools."""


BARS = (
    Bar("lora", "speed", (4.5, 1.6)),
    Bar("lora-all", "speed", (4.5, 1.8)),
    Bar("full", "speed", (4.0, 1.4)),
    Bar("head", "speed", (25.0, 10.0)),
    Bar("last-2", "speed", (8.0, 3.0)),
    Bar("predict", "speed", (5.0, 1.4)),
    Bar("nobf16", "speed", (2.5,)),
    Bar("lora", "memory", (0.6, 0.75)),
)
MOST_FORWARDS = 2.5
"""Upper limit of a LoRA step on a fixed batch, in forwards."""


def table(measures: Sequence[Measured]) -> list[str]:
    """A Markdown table with a row for each limit that has been measured."""
    rows = [row for bar in BARS for row in _rows(bar, measures)]
    steps = summary.spread(measures, "fixed", "step", lambda measured: measured["pefttools_forwards"])
    if steps:
        rows.append(_row("fixed", "bare bf16 forwards a step", f"≤ {MOST_FORWARDS}", steps, False, MOST_FORWARDS))
    for figure in accuracy.figures(measures):
        if figure["contender"] == "pefttools" and figure["difference"] is not None:
            met = figure["difference"] >= -POINTS
            measured = f"{100 * figure['difference']:+.2f} points, {len(figure['scores'])} seeds"
            bar = f"≥ -{100 * POINTS:g} points"
            rows.append(_line(figure["case"], "test accuracy compared with trainer", bar, measured, met))
    if not rows:
        return []
    head = ["| case | quantity | limit | measured | met |", "|---|---|---|---|---|"]
    return ["## Limits", "", *head, *rows, ""]


def _rows(bar: Bar, measures: Sequence[Measured]) -> list[str]:
    faster = bar.quantity == "speed"
    quantity = summary.rows_per_second if faster else summary.bytes_over_model
    made = []
    for other, limit in zip(summary.yardsticks(bar.case), bar.limits, strict=True):
        found = summary.ratio(measures, bar.case, "pefttools", other, quantity)
        if found:
            about = f"{'rows/s' if faster else 'peak memory over the model'} compared with {other}"
            made.append(_row(bar.case, about, f"{'≥' if faster else '≤'} {limit:g}×", found, faster, limit))
    return made


def _row(case: str, about: str, limit_text: str, found: summary.Spread, at_least: bool, limit: float) -> str:
    met = found.median >= limit if at_least else found.median <= limit
    return _line(case, about, limit_text, f"{found.median:.2f} ({found.least:.2f} to {found.most:.2f})", met)


def _line(case: str, about: str, limit_text: str, measured: str, met: bool) -> str:
    return f"| {case} | {about} | {limit_text} | {measured} | {'yes' if met else '**no**'} |"
