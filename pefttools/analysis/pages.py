"""The pages of one run and of several: one HTML file each that needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pefttools import atomic
from pefttools.analysis import charts, sentences, terminal
from pefttools.analysis.confusion_chart import confusion_chart, shown_classes
from pefttools.bench import html, vega
from pefttools.errors import UserError

HERE = Path(__file__).parent
SCRIPTS = ("page.js",)
STYLES = (HERE / "page.css",)


def check(file: Path) -> None:
    """Raises UserError if no page can be written there."""
    if file.suffix.lower() != ".html":
        raise UserError(f"--out: {file} must end with .html, because a page is written there")
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise UserError(f"--out: {file} is not a file in an existing folder; create the folder first")


def write_comparison(values: Mapping[str, Any], file: Path) -> None:
    """Write the page of a comparison."""
    atomic.write_text(file, comparison_page(values))


def write_report(values: Mapping[str, Any], file: Path) -> None:
    """Write the page of one run."""
    atomic.write_text(file, report_page(values))


def comparison_page(values: Mapping[str, Any]) -> str:
    """The HTML of `comparison.compare`."""
    look = charts.look_of([run["name"] for run in values["runs"]])
    specs = {
        "scores": charts.scores(values, look),
        "differences": charts.differences(values, look),
        **{
            f"curve-{k.replace(' ', '-')}": charts.curves(values["runs"], k, values["metric"], look)
            for k in charts.CURVES
        },
    }
    title = "Comparison of " + ", ".join(run["name"] for run in values["runs"])
    return _page("comparison.html.jinja", title, values, specs, look)


def report_page(values: Mapping[str, Any]) -> str:
    """The HTML of `run_report.report`."""
    name = values["name"]
    look = charts.look_of([name])
    confusions, calibration, lengths = (values[key] for key in ("confusions", "calibration", "lengths"))
    specs = {
        **{f"curve-{k.replace(' ', '-')}": charts.curves([values], k, values["metric"], look) for k in charts.CURVES},
        "confusions": confusion_chart(confusions) if confusions else None,
        "reliability": charts.reliability(calibration, look, name) if calibration else None,
        "calibrated": charts.reliability(values["calibrated"], look, name) if values["calibrated"] else None,
        "lengths": charts.by_length(lengths, look, name) if lengths else None,
    }
    left = len(confusions["classes"]) - len(shown_classes(confusions)) if confusions else 0
    return _page("run.html.jinja", f"Run {name}", values, specs, look, classes_left=left)


def _page(
    template: str, title: str, values: Mapping[str, Any], specs: Mapping[str, Any], look: vega.Look, **more: Any
) -> str:
    drawn = {name: vega.compile_for_page(chart) for name, chart in specs.items() if chart is not None}
    data = {"charts": {"marks": look.marks, "specs": drawn}}
    return html.page(
        template, title, data, SCRIPTS, HERE, STYLES, values=values, drawn=[*drawn], marks=look.marks,
        text=sentences, setting=terminal.setting, caveat=sentences.CAVEAT.replace("`", ""), **more,
    )  # fmt: skip
