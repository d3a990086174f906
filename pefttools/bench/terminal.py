"""The results of a suite and of `advise` as lines and tables for a terminal; `display.py` prints them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from pefttools.bench.budget import duration
from pefttools.bench.tables import cells, pool_facts

Parts: TypeAlias = "list[str | Table]"

SHOWN = {"tier": 0, "method": 1, "test": 2, "95% interval": 3, "trained": 4, "lr": 7, "s": 8, "peak MB": 10}
"""Column -> its index in `tables.COLUMNS`; the report shows all columns."""


def suite(summary: Mapping[str, Any], folder: str) -> Parts:
    """A table and a verdict for each problem, then the path of the report."""
    parts: Parts = []
    for pool in summary["pools"]:
        table = new_table(f"{pool['name'] or summary['suite']}: all sets")
        for column in ("tier", "method", "mean", "from the best", "trained", "s"):
            table.add_column(column, justify="left" if column == "method" else "right", no_wrap=column != "method")
        for row in pool["methods"]:
            table.add_row(
                str(row["tier"]), row["method"], f"{row['mean']:.4f}", f"{100 * row['gap']:+.1f}",
                f"{row['trainable']:,}", f"{row['seconds']:.0f}", style="dim" if _is_grey(pool, row) else None,
            )  # fmt: skip
        parts += [table, f"{pool['verdict']}. {pool_facts(pool)}"]
    for problem in summary["problems"]:
        title = f"{problem['name'] or summary['suite']}: {problem['metric'] or 'nothing has finished'}"
        table = new_table(title)
        for column in SHOWN:
            side = "left" if column in ("method", "95% interval") else "right"
            table.add_column(column, justify=side, no_wrap=column != "method")  # type: ignore[arg-type]
        for row in problem["methods"]:
            texts = cells(row)
            table.add_row(*(texts[place] for place in SHOWN.values()), style="dim" if _is_grey(problem, row) else None)
        parts += [table, f"{problem['verdict']}." + _least(problem)]
    trials = summary["trials"]
    parts.append(f"{trials['done']} of {trials['all']} trials; for all columns see {folder}/report.html and table.md")
    return parts


def _is_grey(problem: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether the row shares a tier although a difference of the margin could not have been seen."""
    return problem["is_coarse"] and row["method"] != problem["recommended"]


def _least(problem: Mapping[str, Any]) -> str:
    least = problem["smallest_difference"]
    if least is None:
        return ""
    coarse = f", more than the margin of {problem['margin']:.4f}" if problem["is_coarse"] else ""
    return f" The smallest difference that these rows and seeds can detect is {least:.4f}{coarse}."


def advice(values: Mapping[str, Any]) -> Parts:
    """The finalists, the verdict, the candidates that were ruled out, and what to do next."""
    table = new_table(f"finalists, by validation {values['metric']} over seeds")
    for column in ("method", "seeds", "validation", "95% interval", "trained", "s", "peak MB"):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=column != "method")
    for row in values["finalists"]:
        seen = "" if row["low"] is None else f"{row['low']:.4f} to {row['high']:.4f}"
        table.add_row(
            row["label"], str(row["seeds"]), f"{row['validation']:.4f}", seen, f"{row['trainable']:,}",
            f"{row['seconds']:.0f}", f"{row['peak_bytes'] / 2**20:,.0f}",
        )  # fmt: skip
    parts: Parts = [table, f"{values['verdict']}."]
    if values["runner_up"]:
        parts.append(f"runner-up: {values['runner_up']['label']}")
    if values["priors"]:
        parts.append(f"expected against LoRA on sets like this, for the order only: {values['priors']}")
    parts += [f"ruled out: {label}: {reason}" for label, reason in values["ruled_out"].items()]
    if values["test"]:
        parts.append(
            f"on {values['test']['rows']} test rows: {values['metric']} {values['test'][values['metric']]:.4f}"
        )
    if values["regret"] is not None:
        parts.append(
            f"another finalist may be better by up to {values['regret']:.4f} (95%); to know more, allow more time or"
            " give more validation rows"
        )
    parts.append(f"took {duration(values['spent_seconds'])} of {duration(values['budget_seconds'])}")
    parts.append(f"recipe: {values['recipe']}")
    parts.append(f"trained model: {values['run']}; to export it, run `pefttools export {values['run']} --to merged`")
    return parts


def new_table(title: str) -> Table:
    """An empty table in the style of all results."""
    return Table(
        title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False,
        show_edge=False,
    )  # fmt: skip
