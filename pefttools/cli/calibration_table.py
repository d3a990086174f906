"""What `calibrate` found, as sentences and a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

SCORES = {
    "ece": "calibration error",
    "brier": "Brier score",
    "nll": "negative log-likelihood",
}
SHOWN = 20
"""Upper limit of thresholds that are printed; --json has all."""


def shown(values: Mapping[str, Any]) -> Iterator[str | Table]:
    """The temperature and the scores before and after it, thresholds, and what an error rate costs."""
    splits = {name: values[name] for name in ("validation", "test") if values[name]}
    if any("before" in split for split in splits.values()):
        yield f"temperature {values['temperature']:.3f}, from {values['rows']:,} validation rows"
        yield _scores(splits)
    if values["thresholds"]:
        yield from _thresholds(values["thresholds"])
        yield from _metrics(splits)
    judged = "test" if "test" in splits else "validation"
    for one in splits[judged].get("conformal", ()):
        yield _conformal(one, judged)
    if judged == "validation":
        yield "the run has no test rows, so all figures are of the rows that chose the temperature, and too good"
    yield f"stored in {values['folder']}: predict, evaluate and export use it from now on"


def _scores(splits: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(title="before and after", title_justify="left")
    table.add_column("")
    for name in splits:
        table.add_column(f"{name}, before", justify="right")
        table.add_column("after", justify="right")
    for key, words in SCORES.items():
        cells = [f"{split[when][key]:.4f}" for split in splits.values() for when in ("before", "after")]
        table.add_row(words, *cells)
    return table


def _thresholds(found: Mapping[str, float]) -> Iterator[str]:
    names = [*found][:SHOWN]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    yield "thresholds: " + ", ".join(f"{name} {found[name]:.3f}" for name in names) + more


def _metrics(splits: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, split in splits.items():
        before, after = split["metrics_before"], split["metrics_after"]
        changes = [f"{key} {before[key]:.4f} -> {after[key]:.4f}" for key in before if key in after]
        yield f"on {name} rows: {', '.join(changes)}"
        for one, found in split.get("classes", {}).items():
            yield f"on {name} rows, {one}: precision {found['precision']:.4f}, recall {found['recall']:.4f}"


def _conformal(one: Mapping[str, Any], judged: str) -> str:
    rate = f"with --error-rate {one['error_rate']:g}"
    if "interval" in one and one["interval"] is None:
        return f"{rate}, there are too few validation rows for an interval"
    if "interval" in one:
        return (
            f"{rate}, intervals are {one['interval']:.4g} wide and contain {one['coverage']:.1%} of the {judged} labels"
        )
    return (
        f"{rate}, {one['unsure']:.1%} of the {judged} rows are marked unsure, and {one['wrong']:.1%} are wrong without"
        f" a mark; {one['coverage']:.1%} of the sets contain the right class"
    )
