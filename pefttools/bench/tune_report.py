"""report.html of a search: the verdict, the charts and all trials in one file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pefttools import atomic
from pefttools.bench import html, tune_charts
from pefttools.bench.search import Search


def write(values: Mapping[str, Any], search: Search, folder: Path) -> None:
    """Write `report.html` into the folder."""
    atomic.write_text(folder / "report.html", page(values, tune_charts.specs(_marked(values), search.space)))


def page(values: Mapping[str, Any], charts: Mapping[str, Any]) -> str:
    """The HTML page."""
    title, data = values["recipe"], {"charts": charts}
    return html.page("tune.html.jinja", title, data, ["tune.js"], v=values, trials=_best_first(values))


def _marked(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the best trial marked."""
    best = values["best"]["number"]
    return {**values, "trials": [{**one, "is_best": one["number"] == best} for one in values["trials"]]}


def _best_first(values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Finished trials by score, then pruned ones, then the others."""
    order = {"done": 0, "pruned": 1, "failed": 2}
    sign = 1 if values["lower_is_better"] else -1

    def place(one: Mapping[str, Any]) -> tuple[int, float, int]:
        return order.get(one["status"], 3), 0.0 if one["score"] is None else sign * one["score"], one["number"]

    return sorted(values["trials"], key=place)
