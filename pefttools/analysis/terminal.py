"""Comparisons, mistakes and groups as lines and tables for a terminal; `display.py` prints them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from pefttools.analysis import sentences
from pefttools.bench.terminal import Parts, new_table
from pefttools.errors import CONTROL

SETTINGS, CLASSES, ROWS = 20, 10, 3
"""Upper limits of settings, of classes and of rows of each kind that are printed; the page and --json have all."""
WIDEST = 60
"""Upper limit of characters of a setting's value."""


def comparison(values: Mapping[str, Any]) -> Parts:
    """The runs with their scores, what differs between them, the tests, and rows on which they disagree."""
    parts: Parts = [_runs(values)]
    if not values["same_hardware"]:
        parts.append("Seconds and memory were measured on different machines.")
    parts += _settings(values)
    parts.append(_pairs(values))
    shown = [pair for pair in values["pairs"] if pair["is_shown"]]
    parts += [f"{pair['verdict']}." for pair in shown]
    parts.append(sentences.CAVEAT)
    if values["classes"]:
        parts += _classes(values)
    for pair in shown:
        parts += _rows(pair, "first", "second")
        parts += _rows(pair, "second", "first")
    return parts


def _runs(values: Mapping[str, Any]) -> Table:
    table = new_table(f"{values['task']}: scores on the {values['rows']} rows that all runs were scored on")
    table.add_column("run", overflow="fold")
    table.add_column(values["metric"], justify="right", no_wrap=True)
    table.add_column("95% interval", no_wrap=True)
    others = [name for name in values["metrics"] if name != values["metric"]]
    for name in (*others, "trained", "s", "peak MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in values["runs"]:
        one = run["scores"][values["metric"]]
        table.add_row(
            Text(run["name"]), sentences.score(one["value"]), sentences.interval(one["low"], one["high"]),
            *(sentences.score(run["scores"][name]["value"]) for name in others),
            f"{run['params']['trainable']:,}", _number(run["seconds"]),
            _number(run["peak_bytes"] and run["peak_bytes"] / 2**20),
        )  # fmt: skip
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _settings(values: Mapping[str, Any]) -> Parts:
    names = [run["name"] for run in values["runs"]]
    if not values["settings"]:
        return ["The runs have the same settings, base and rows."]
    table = new_table("settings that differ")
    table.add_column("setting", overflow="fold")
    for name in names:
        table.add_column(Text(name), overflow="fold")
    for key, of_runs in list(values["settings"].items())[:SETTINGS]:
        table.add_row(key, *(_cell(setting(of_runs, name)) for name in names))
    more = len(values["settings"]) - SETTINGS
    return [table, *([f"{more} more settings differ; the page and --json list them"] if more > 0 else [])]


def setting(of_runs: Mapping[str, Any], name: str) -> str:
    """The value of a setting in one run, as YAML would show it; a dash where the run does not have the setting."""
    if name not in of_runs:
        return "–"
    value = of_runs[name]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"


def _pairs(values: Mapping[str, Any]) -> Table:
    points = values["in_points"]
    table = new_table("paired tests on the same rows")
    table.add_column("pair", overflow="fold")
    exact = any(pair["mcnemar"] for pair in values["pairs"])
    several = len(values["pairs"]) > 1
    heads = ["points" if points else "difference", "95% interval", "p", *(["p, corrected"] if several else [])]
    heads += ["only first right", "only second right", "McNemar's p"] if exact else []
    for name in heads:
        table.add_column(name, justify="right")
    for pair in values["pairs"]:
        found = pair["mcnemar"]
        bounds = (
            ""
            if pair["low"] is None
            else f"{sentences.gap(pair['low'], points)} to {sentences.gap(pair['high'], points)}"
        )
        cells = [sentences.gap(pair["difference"], points), bounds, sentences.p_value(pair["p"])]
        cells += [sentences.p_value(pair["p_holm"])] if several else []
        if exact:
            cells += (
                [str(found["only_first"]), str(found["only_second"]), sentences.p_value(found["p"])]
                if found
                else [""] * 3
            )
        table.add_row(Text(f"{pair['first']} minus {pair['second']}"), *cells)
    return table


def _classes(values: Mapping[str, Any]) -> Parts:
    found, names = values["classes"], [run["name"] for run in values["runs"]]
    table = new_table(f"F1 by {found['kind']}, largest differences first")
    table.add_column(found["kind"], overflow="fold")
    for name in ("rows" if found["kind"] == "class" else "number", *names):
        table.add_column(Text(name), justify="right")
    for row in found["rows"][:CLASSES]:
        table.add_row(_cell(row["class"]), f"{row['support']:,}", *(sentences.score(row["f1"][name]) for name in names))
    more = len(found["rows"]) - CLASSES
    return [table, *([f"{more} more; the page and --json list them"] if more > 0 else [])]


def _rows(pair: Mapping[str, Any], side: str, other: str) -> Parts:
    """The first rows that one run of a pair predicts better."""
    number, rows = pair[f"{side}_right_count"], pair[f"{side}_right"][:ROWS]
    if not number:
        return []
    what = "correct" if pair["are_right_or_wrong"] else "better"
    table = new_table(f"{number} rows on which {pair[side]} is {what} and {pair[other]} is not")
    for name in ("row", "text", "reference", pair[side], pair[other]):
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        predictions = (row["predictions"][pair[name]] for name in (side, other))
        table.add_row(*(_cell(text) for text in (row["id"], row["text"], row["reference"], *predictions)))
    return [table]


def _cell(text: str | None) -> Text:
    """A text of the data without characters that would move the terminal's cursor."""
    return Text(CONTROL.sub(lambda found: repr(found[0])[1:-1], text or ""))


def mistakes(found: Mapping[str, Any]) -> Parts:
    """The worst predictions."""
    if not found["rows"]:
        return [f"{sentences.of_mistakes(found)}."]
    table = new_table(sentences.of_mistakes(found))
    with_confidence = any(row["confidence"] is not None for row in found["rows"])
    columns = ["row", "text", "reference", "prediction"]
    for name in columns:
        table.add_column(name, overflow="fold")
    numbers = [name for name, shown in (("confidence", with_confidence), ("error", found["has_degrees"])) if shown]
    for name in numbers:
        table.add_column(name, justify="right")
    for row in found["rows"]:
        texts = (_cell(row[name]) for name in ("id", "text", "reference", "prediction"))
        table.add_row(*texts, *(sentences.score(row[name]) for name in numbers))
    return [table]


def groups(found: Mapping[str, Any]) -> Parts:
    """The scores of each group with their intervals, and the gap."""
    names: Sequence[str] = list(dict.fromkeys(name for one in found["groups"] for name in one["scores"]))
    table = new_table(f"by {found['column']}, with 95% intervals")
    table.add_column(Text(found["column"]), overflow="fold")
    table.add_column("rows", justify="right")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for one in found["groups"]:
        cells = [_with_interval(one["scores"].get(name)) for name in names]
        table.add_row(_cell(one["group"]), f"{one['rows']:,}", *cells)
    return [table, sentences.of_gap(found)]


def _with_interval(value: Mapping[str, Any] | None) -> str:
    """`0.9000 (0.8500 to 0.9400)`; empty where the group does not have the metric."""
    if value is None:
        return ""
    bounds = sentences.interval(value["low"], value["high"])
    return sentences.score(value["value"]) + (f" ({bounds})" if bounds else "")


def report(values: Mapping[str, Any], file: str) -> Parts:
    """The scores with their intervals, calibration, and where the page is."""
    table = new_table(
        f"{values['name']}: {values['task']} by {values['strategy']}, on {values['rows']} {values['scored_on']} rows"
    )
    table.add_column("metric")
    for name in (values["scored_on"], "95% interval", "before"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, one in values["scores"].items():
        cells = (
            sentences.score(one["value"]),
            sentences.interval(one["low"], one["high"]),
            sentences.score(one["before"]),
        )
        table.add_row(name, *cells)
    parts: Parts = [table]
    if found := values["calibration"]:
        parts.append(
            f"expected calibration error {sentences.score(found['ece'])}: the mean stated probability is"
            f" {sentences.score(found['confidence'])}, and {sentences.score(found['accuracy'])} are right"
        )
    if found := values["calibrated"]:
        parts.append(
            f"with the temperature {found['temperature']:.3f} of `calibrate` it is {sentences.score(found['ece'])}"
        )
    mistakes = values["mistakes"]
    shown = f"{sentences.of_mistakes(mistakes)}{' are on the page' if mistakes['wrong'] else ''}"
    return [*parts, shown, f"page: {file}"]
