"""The plot of how cost grows: one column for each swept size, with seconds above and memory below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
from fits import QUANTITIES, Sweep

from pefttools import atomic
from pefttools.bench import vega

COLOURS = {"step_seconds": "#1f6f8b", "peak_bytes": "#b5523b"}
WIDTH, HEIGHT = 210, 180
STEPS = 100
"""Number of lines that a fit's curve consists of."""


def draw(sweeps: Sequence[Sweep], file: Path) -> None:
    """Write the plot as `file` with the suffixes .svg and .png."""
    rows = [alt.hconcat(*(_plot(sweep, quantity, not i) for i, sweep in enumerate(sweeps))) for quantity in QUANTITIES]
    svg = vega.svg(vega.compile_chart(alt.vconcat(*rows)))
    atomic.write_text(file.with_suffix(".svg"), svg)
    with atomic.new_file(file.with_suffix(".png")) as part:
        part.write_bytes(vega.png(svg))


def _plot(sweep: Sweep, quantity: str, is_first: bool) -> alt.LayerChart | alt.FacetChart:
    """The medians with their ranges over rounds, and both fits."""
    about, _ = QUANTITIES[quantity]
    spreads, highest = sweep.spreads[quantity], 1.1 * max(high for _, _, high in sweep.spreads[quantity])
    measured = [
        {"x": x, "y": middle, "low": low, "high": high}
        for x, (middle, low, high) in zip(sweep.values, spreads, strict=True)
    ]
    x = alt.X("x:Q", scale=alt.Scale(zero=True, nice=False, padding=8), title=sweep.name, axis=alt.Axis(tickCount=5))
    y = alt.Y(
        "y:Q",
        scale=alt.Scale(domain=[0, highest], nice=False),
        axis=vega.vertical_axis(about if is_first else "", ",~f"),
    )
    points = alt.Chart(alt.Data(values=measured)).encode(x=x, y=y)
    colour = COLOURS[quantity]
    law = f"x^{sweep.power(quantity).k:.2f}"
    dashes = alt.StrokeDash("fit:N", scale=alt.Scale(domain=["a + b·x", law], range=[[1, 0], [5, 3]]),
                            legend=alt.Legend(title=None, orient="top-left", symbolStrokeColor="#555555"))  # fmt: skip
    fits = alt.Chart(alt.Data(values=_fitted(sweep, quantity, law))).mark_line(
        color="#555555", strokeWidth=1, clip=True
    )
    return (
        alt.layer(
            fits.encode(x=x, y=y, strokeDash=dashes),
            points.mark_rule(color=colour, strokeWidth=1.5).encode(y=alt.Y("low:Q"), y2="high:Q"),
            points.mark_point(color=colour, filled=True, size=35, opacity=1),
        )
        .resolve_scale(strokeDash="independent")
        .properties(width=WIDTH, height=HEIGHT)
    )


def _fitted(sweep: Sweep, quantity: str, law: str) -> list[dict[str, Any]]:
    first, last = sweep.values[0], sweep.values[-1]
    xs = [first + (last - first) * i / STEPS for i in range(STEPS + 1)]
    curves = {"a + b·x": sweep.line(quantity), law: sweep.power(quantity)}
    return [{"x": x, "y": curve.at(x), "fit": name} for name, curve in curves.items() for x in xs]
