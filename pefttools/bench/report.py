"""report.html: a suite's results and the commands of all trials in one file that needs no network."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools import atomic
from pefttools.bench import archive, charts, plots, tables, vega
from pefttools.bench.summary import summarise
from pefttools.data.splitting import load_splits

if TYPE_CHECKING:
    from pefttools.bench.sweep import Sweep

HERE = Path(__file__).parent
SCRIPTS = ("report_tables.js", "report.js")
"""They share one script element."""
LONGEST = 300
"""Upper limit of characters of a text that are shown."""


def write(sweep: Sweep, texts: bool = True) -> dict[str, Any]:
    """Write `report.html`, `table.md`, `pareto.png`, `pareto.svg`, `summary.json` and `records.jsonl`.

    Args:
        texts: whether the report contains the test rows' texts; without them it shows the rows' numbers only.

    Returns:
        The summary.
    """
    summary = summarise(sweep)
    atomic.write_json(sweep.out / "summary.json", summary)
    archive.write(sweep.out, sweep.records.values())
    atomic.write_text(sweep.out / "table.md", tables.markdown(summary))
    plots.write(summary, sweep.out)
    atomic.write_text(sweep.out / "report.html", page(summary, examples(sweep, texts)))
    return summary


def page(summary: Mapping[str, Any], rows: Mapping[str, Any]) -> str:
    """The HTML page; data is embedded as JSON, escaped so that no text can end the script element."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    content = {"summary": summary, "examples": rows, "charts": charts.specs(summary)}
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign, code in (
        ("<", "\\u003c"),
        (">", "\\u003e"),
        ("&", "\\u0026"),
        ("\u2028", "\\u2028"),
        ("\u2029", "\\u2029"),
    ):
        data = data.replace(sign, code)
    return environment.get_template("report.html.jinja").render(
        title=summary["suite"], data=data, style=(HERE / "report.css").read_text("utf-8"),
        script="".join((HERE / name).read_text("utf-8") for name in SCRIPTS), vega=vega.javascript(),
        legend=tables.LEGEND[0].replace("`", ""),
    )  # fmt: skip


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
                "references": [_shown(value) for value in rows["references"]],
                "texts": _texts(cell, finished[0]["data"]["digest"]) if texts else None,
                "methods": {},
                "classes": {},
            }
        predictions = [[_shown(value) for value in record["rows"]["predictions"]] for record in finished]
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
    return [_shown(" ⏎ ".join(_shown(row[name]) for name in recipe.task.inputs if name in row)) for row in rows]


def _shown(value: Any) -> str:
    text = (
        value if isinstance(value, str) else " ".join(map(str, value)) if isinstance(value, list) else json.dumps(value)
    )
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
