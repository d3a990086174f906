"""The results of a search as lines and tables for a terminal; `display.py` prints them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pefttools.bench.terminal import Parts, new_table

SHOWN = 5
"""Trials that are listed; the report has all of them."""


def parts(values: Mapping[str, Any]) -> Parts:
    """The best trials, those that failed, the comparison with its verdict, and what to do next."""
    counts, best = values["counts"], values["best"]
    shown: Parts = [_trials(values)]
    shown.append(
        f"{counts['all']} trials: {counts['done']} trained to their ends, {counts['pruned']} pruned,"
        f" {counts['failed']} failed" + (f"; {values['ended']}" if values["ended"] else "")
    )
    shown += [f"failed: trial {f['number']} ({f['point']}): {f['kind']}: {f['reason']}" for f in values["failures"]]
    if values["refused"]:
        name, reason = next(iter(values["refused"].items()))
        shown.append(
            f"{len(values['refused'])} points were drawn again, because the recipe refuses them: {name}: {reason}"
        )
    if values["importances"]:
        listed = ", ".join(f"{name} {share:.0%}" for name, share in values["importances"].items())
        shown.append(f"importances: {listed}")
    shown.append(_comparison(values))
    shown += [f"failed: {f['point']}, seed {f['seed']}: {f['kind']}: {f['reason']}" for f in values["seed_failures"]]
    shown.append(f"{values['verdict']}." + _least(values))
    shown.append(f"recipe: {values['folder']}/best.yaml ({best['point']}); charts: {values['folder']}/report.html")
    return shown


def _trials(values: Mapping[str, Any]) -> Any:
    sign = 1 if values["lower_is_better"] else -1
    done = [one for one in values["trials"] if one["status"] == "done"]
    done.sort(key=lambda one: (sign * one["score"], one["loss"], one["number"]))
    table = new_table(f"best trials, by {values['metric']} on {values['rows']['validation']} validation rows")
    for column in ("trial", "values", "validation", "loss", "s"):
        table.add_column(column, justify="left" if column == "values" else "right", no_wrap=column != "values")
    for one in done[:SHOWN]:
        table.add_row(
            str(one["number"]), one["point"], f"{one['score']:.4f}", f"{one['loss']:.4f}", f"{one['seconds']:.0f}"
        )
    return table


def _comparison(values: Mapping[str, Any]) -> Any:
    on = values["measured_on"] or "test"
    table = new_table(f"over seeds {', '.join(map(str, values['seeds']))}, on {values['rows'][on]} {on} rows")
    for column in ("method", on, "95% interval", "trained", "s"):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=column != "method")
    for one in values["methods"]:
        seen = "" if one["low"] is None else f"{one['low']:.4f} to {one['high']:.4f}"
        table.add_row(one["method"], f"{one['mean']:.4f}", seen, f"{one['trainable']:,}", f"{one['seconds']:.0f}")
    return table


def _least(values: Mapping[str, Any]) -> str:
    least = values["smallest_difference"]
    return "" if least is None else f" The smallest difference that these rows and seeds can detect is {least:.4f}."
