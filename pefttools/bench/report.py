"""report.html: a suite's results and the commands of all trials in one file that needs no network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pefttools import atomic, extras
from pefttools.bench import archive, charts, html, plots, tables
from pefttools.bench.row_texts import input_text, shown
from pefttools.bench.summary import summarise
from pefttools.data.splitting import load_splits

if TYPE_CHECKING:
    from pefttools.bench.sweep import Sweep

SCRIPTS = ("report_tables.js", "report.js")


def write(sweep: Sweep, texts: bool = True) -> dict[str, Any]:
    """Write `report.html`, `table.md`, `pareto.png`, `pareto.svg`, `summary.json` and `records.jsonl`.

    Args:
        texts: whether the report contains the test rows' texts; without them it shows the rows' numbers only.

    Returns:
        The summary.

    Raises:
        UserError: the extra `charts` is not installed.
    """
    extras.require("bench", extras.EXTRAS["charts"])
    summary = summarise(sweep)
    atomic.write_json(sweep.out / "summary.json", summary)
    archive.write(sweep.out, sweep.records.values())
    atomic.write_text(sweep.out / "table.md", tables.markdown(summary))
    plots.write(summary, sweep.out)
    atomic.write_text(sweep.out / "report.html", page(summary, examples(sweep, texts)))
    return summary


def page(summary: Mapping[str, Any], rows: Mapping[str, Any]) -> str:
    """The HTML page."""
    content = {"summary": summary, "examples": rows, "charts": charts.specs(summary)}
    legend = tables.LEGEND[0].replace("`", "")
    return html.page("report.html.jinja", summary["suite"], content, SCRIPTS, legend=legend)


def examples(sweep: Sweep, texts: bool) -> dict[str, Any]:
    """Problem -> every method's predictions on the test rows (the majority of its seeds), and its scores by class."""
    found: dict[str, Any] = {}
    for cell in sweep.cells:
        records = [sweep.records.get(job.digest) for job in sweep.finals(cell)]
        finished = [record for record in records if record and record.get("rows")]
        if not finished:
            continue
        rows = finished[0]["rows"]
        if cell.problem not in found:
            found[cell.problem] = {
                "ids": rows["ids"],
                "references": [shown(value) for value in rows["references"]],
                "texts": _texts(cell, finished[0]["data"]["digest"]) if texts else None,
                "methods": {},
                "classes": {},
            }
        predictions = [[shown(value) for value in record["rows"]["predictions"]] for record in finished]
        majority = [Counter(votes).most_common(1)[0][0] for votes in zip(*predictions, strict=True)]
        found[cell.problem]["methods"][cell.method] = majority
        found[cell.problem]["classes"][cell.method] = _classes(finished)
    return found


def _classes(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Class, entity type or tag -> its scores, as means over seeds; empty where the task has no such scores."""
    tables_ = [r["test"].get("per_class") or r["test"].get("entities") or r["test"].get("per_tag") for r in records]
    if not all(isinstance(table, dict) and table for table in tables_):
        return {}
    names = [name for name in tables_[0] if all(name in table for table in tables_)]
    return {
        name: {
            score: sum(table[name][score] for table in tables_) / len(tables_)
            for score, value in tables_[0][name].items()
            if isinstance(value, (int, float))
        }
        for name in names
    }


def _texts(cell: Any, digest: str) -> list[str] | None:
    """The test rows' inputs as texts; None if the file no longer gives the rows with this digest."""
    recipe = cell.recipe(cell.suite.tuning.seed)
    splits = load_splits(recipe.data, recipe.task)
    if splits.digest != digest:
        return None
    rows = splits.test
    return [input_text(row, recipe.task) for row in rows]
