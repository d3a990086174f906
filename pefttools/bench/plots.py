"""The Pareto plot of a suite as PNG and SVG: score against parameters, memory and seconds, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pefttools import atomic
from pefttools.bench import charts, vega

SHOWN = ("trainable", "peak", "seconds")
"""The costs of the plot's columns."""
WIDTH, HEIGHT = 400, 340


def write(summary: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `pareto.png` and `pareto.svg`, a row a problem; writes nothing where no trial has finished."""
    if not any(charts.finished(problem) for problem in summary["problems"]):
        return []
    drawn = vega.svg(figure(summary))
    svg, png = folder / "pareto.svg", folder / "pareto.png"
    atomic.write_text(svg, drawn)
    with atomic.new_file(png) as part:
        part.write_bytes(vega.png(drawn))
    return [png, svg]


def figure(summary: Mapping[str, Any]) -> vega.Spec:
    """The plot of all problems that have scores."""
    import altair

    look = replace(charts.look_of(summary), has_legend=True)
    rows = [
        altair.hconcat(
            *(charts.by_cost(problem, charts.COSTS[cost], look, WIDTH, HEIGHT) for cost in SHOWN),
            title=problem["name"] or "all",
        )
        for problem in summary["problems"]
        if charts.finished(problem)
    ]
    return vega.compile_chart(altair.vconcat(*rows))
