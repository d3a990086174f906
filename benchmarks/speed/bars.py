"""What must be shown, and whether it was: missed is told as missed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import accuracy
import summary
from kept import Measured

POINTS = 0.005
"""How much less test accuracy than Trainer's is still the same, a fraction."""


@dataclass(frozen=True)
class Bar:
    """A limit for pefttools in one case: at least for speed, at most for memory."""

    case: str
    quantity: Literal["speed", "memory"]
    limits: tuple[float, ...]
    """Against each yardstick of the case."""


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
"""That a LoRA step on a fixed batch may take."""


def table(measures: Sequence[Measured]) -> list[str]:
    """Markdown: a row a bar that has been measured."""
    rows = [row for bar in BARS for row in _rows(bar, measures)]
    steps = summary.spread(measures, "fixed", "step", lambda measured: measured["pefttools_forwards"])
    if steps:
        rows.append(_row("fixed", "bare bf16 forwards a step", f"≤ {MOST_FORWARDS}", steps, False, MOST_FORWARDS))
    for figure in accuracy.figures(measures):
        if figure["contender"] == "pefttools" and figure["difference"] is not None:
            met = figure["difference"] >= -POINTS
            told = f"{100 * figure['difference']:+.2f} points, {len(figure['scores'])} seeds"
            bar = f"≥ -{100 * POINTS:g} points"
            rows.append(_line(figure["case"], "test accuracy against trainer", bar, told, met))
    if not rows:
        return []
    head = ["| case | quantity | bar | measured | met |", "|---|---|---|---|---|"]
    return ["## What must be shown", "", *head, *rows, ""]


def _rows(bar: Bar, measures: Sequence[Measured]) -> list[str]:
    faster = bar.quantity == "speed"
    quantity = summary.rows_per_second if faster else summary.bytes_over_model
    made = []
    for other, limit in zip(summary.yardsticks(bar.case), bar.limits, strict=True):
        found = summary.ratio(measures, bar.case, "pefttools", other, quantity)
        if found:
            about = f"{'rows/s' if faster else 'peak memory over the model'} against {other}"
            made.append(_row(bar.case, about, f"{'≥' if faster else '≤'} {limit:g}×", found, faster, limit))
    return made


def _row(case: str, about: str, told: str, found: summary.Spread, at_least: bool, limit: float) -> str:
    met = found.median >= limit if at_least else found.median <= limit
    return _line(case, about, told, f"{found.median:.2f} ({found.least:.2f} to {found.most:.2f})", met)


def _line(case: str, about: str, told: str, measured: str, met: bool) -> str:
    return f"| {case} | {about} | {told} | {measured} | {'yes' if met else '**no**'} |"
