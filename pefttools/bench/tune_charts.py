"""The charts of a search: its history, the importances of its keys, and parallel coordinates.

Each function takes plain values of tune.json and returns an altair chart; `specs` compiles those of the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pefttools.bench import vega
from pefttools.bench.frames import frame, share, widened, within
from pefttools.bench.space import Dimension, Space

if TYPE_CHECKING:
    import altair

Row = Mapping[str, Any]
Width = int | str
"""In pixels, or "container"."""

COLOURS = {"done": "#1a6fe1", "pruned": "#fd9320", "failed": "#c33d59"}
SHAPES = {"done": "circle", "pruned": "triangle-down", "failed": "cross"}
LABELS = 8
"""Choices of an axis that are labelled."""


def specs(values: Row, space: Space) -> dict[str, Any]:
    """What the page draws; None for a chart without anything to show."""
    rated = [one for one in values["trials"] if one["score"] is not None]
    return {
        "history": vega.compile_chart(history(values)) if rated else None,
        "importances": vega.compile_chart(importances(values["importances"])) if values["importances"] else None,
        "parallel": vega.compile_chart(parallel(values, space)) if len(rated) > 1 else None,
    }


def history(values: Row, width: Width = "container", height: int = 320) -> altair.LayerChart | altair.FacetChart:
    """Validation scores by trial, and the best so far as steps; trials that failed are on the frame."""
    import altair as alt

    rows = history_rows(values)
    ends = frame([(one["y"], one["y"], one["y"]) for one in rows if one["status"] == "done"] or [(0.0, 0.5, 1.0)],
                 values["lower_is_better"])  # fmt: skip
    worst = ends[1] if values["lower_is_better"] else ends[0]
    for one in rows:
        one["y"] = within(worst if one["y"] is None else one["y"], ends)
    x = alt.X("number:Q", title="trial", axis=alt.Axis(format="d", tickMinStep=1, tickCount=vega.ticks(width)),
              scale=alt.Scale(domain=widened([one["number"] for one in rows]), nice=False))  # fmt: skip
    y = alt.Y("y:Q", scale=alt.Scale(domain=ends, nice=False, zero=False), axis=vega.vertical_axis(values["metric"]))
    tooltip = [alt.Tooltip("trial:N"), alt.Tooltip("score:N", title=f"validation {values['metric']}"),
               alt.Tooltip("state:N", title="status")]  # fmt: skip
    base = alt.Chart(alt.Data(values=rows)).encode(x=x, y=y, tooltip=tooltip)
    steps = alt.Chart(alt.Data(values=best_so_far(rows, values["lower_is_better"]))).encode(x=x, y=y)
    colour = alt.Color("status:N", legend=alt.Legend(title=None, orient="bottom"),
                       scale=alt.Scale(domain=[*COLOURS], range=[*COLOURS.values()]))  # fmt: skip
    shape = alt.Shape("status:N", scale=alt.Scale(domain=[*SHAPES], range=[*SHAPES.values()]))
    return alt.layer(
        steps.mark_line(interpolate="step-after", color=alt.expr("quiet"), strokeDash=[4, 3], aria=False),
        base.mark_point(filled=True, size=75).encode(color=colour, shape=shape, description="about:N"),
    ).properties(width=width, height=height, description=f"validation {values['metric']} by trial")


def history_rows(values: Row) -> list[dict[str, Any]]:
    """What `history` draws of each trial."""
    rows = []
    for one in values["trials"]:
        score = "none" if one["score"] is None else f"{one['score']:.4f}"
        state = f"pruned at {one['progress']:.0%}" if one["status"] == "pruned" else one["status"]
        rows.append({
            "number": one["number"], "trial": f"{one['number']}: {one['point']}", "status": one["status"],
            "state": state, "score": score, "y": one["score"], "about": f"trial {one['number']}: {score}, {state}",
        })  # fmt: skip
    return rows


def best_so_far(rows: Sequence[Row], lower_is_better: bool) -> list[dict[str, float]]:
    """The best finished score up to each trial."""
    found: list[dict[str, float]] = []
    for one in rows:
        if one["status"] == "done":
            best = found[-1]["y"] if found else one["y"]
            better = min(best, one["y"]) if lower_is_better else max(best, one["y"])
            found.append({"number": one["number"], "y": better})
    return [*found, {"number": rows[-1]["number"], "y": found[-1]["y"]}] if found else []


def importances(shares: Mapping[str, float], width: Width = "container") -> altair.LayerChart | altair.FacetChart:
    """A bar for each key."""
    import altair as alt

    rows = [{"key": name, "share": value, "text": f"{value:.0%}"} for name, value in shares.items()]
    axis = alt.Axis(labelLimit=260, ticks=False, domain=False, labelColor=alt.expr("ink"))
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("key:N", sort=[*shares], title=None, axis=axis),
        x=alt.X("share:Q", title="share of the scores' variance", scale=alt.Scale(domain=[0, 1.08]),
                axis=alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1])),
    )  # fmt: skip
    return alt.layer(
        base.mark_bar(color=COLOURS["done"], height=14),
        base.mark_text(align="left", dx=5, color=alt.expr("ink"), aria=False).encode(text="text:N"),
    ).properties(width=width, height=alt.Step(24), description="importances of the searched keys")


def parallel(
    values: Row, space: Space, width: Width = "container", height: int = 340
) -> altair.LayerChart | altair.FacetChart:
    """A line for each trial with a score: its place on the axis of each key, and of the score at the right."""
    import altair as alt

    rated = [one for one in values["trials"] if one["score"] is not None]
    axes = [*dict.fromkeys(one.label for one in space.dimensions), values["metric"]]
    ends = frame([(one["score"],) * 3 for one in rated], values["lower_is_better"])
    lines = [row for one in rated for row in line_rows(one, space, ends, values["metric"])]
    top = alt.Axis(domain=False, ticks=False, labelAngle=0, labelLimit=200, orient="top", grid=True)
    x = alt.X("axis:N", sort=axes, title=None, scale=alt.Scale(type="point", padding=0.5), axis=top)
    y = alt.Y("place:Q", scale=alt.Scale(domain=[-0.03, 1.03], nice=False), axis=None)
    colour = alt.Color("score:Q", title=values["metric"], legend=alt.Legend(format=vega.AXIS_SCORE),
                       scale=alt.Scale(scheme="viridis", domain=ends, clamp=True,
                                       reverse=not values["lower_is_better"]))  # fmt: skip
    tooltip = [alt.Tooltip("trial:N"), alt.Tooltip("text:N", title="here"), alt.Tooltip("score:Q", format=vega.SCORE)]
    base = alt.Chart(alt.Data(values=lines)).encode(
        x=x, y=y, color=colour, detail="number:N", tooltip=tooltip, opacity=alt.condition(
            "datum.is_best", alt.value(1), alt.value(0.55)
        ),
    )  # fmt: skip
    ticks = [row for one in space.dimensions for row in tick_rows(one)]
    ticks += [{"axis": values["metric"], "place": share(end, *ends), "text": f"{end:.4g}"} for end in ends]
    return alt.layer(
        base.mark_line(aria=False).encode(
            strokeWidth=alt.condition("datum.is_best", alt.value(3.5), alt.value(1.3)), order="order:Q"
        ),
        base.mark_point(filled=True, size=28).encode(description="about:N"),
        alt.Chart(alt.Data(values=ticks)).encode(x=x, y=y, text="text:N").mark_text(
            align="left", dx=7, color=alt.expr("quiet"), aria=False
        ),
    ).properties(width=width, height=height, description="values and score of each trial")  # fmt: skip


def line_rows(trial: Row, space: Space, ends: tuple[float, float], metric: str) -> list[dict[str, Any]]:
    """The places of a trial on the axes that it has."""
    texts = trial["values"]
    places = [
        (one.label, one.range.place(texts[one.key]), texts[one.key])
        for one in space.dimensions
        if one.applies(texts) and one.key in texts
    ]
    places.append((metric, min(1.0, max(0.0, share(trial["score"], *ends))), f"{trial['score']:.4f}"))
    return [
        {
            "number": trial["number"], "axis": axis, "place": place, "text": text, "score": trial["score"],
            "order": order, "is_best": trial.get("is_best", False), "trial": f"{trial['number']}: {trial['point']}",
            "about": f"trial {trial['number']}, {axis} {text}",
        }
        for order, (axis, place, text) in enumerate(places)
    ]  # fmt: skip


def tick_rows(one: Dimension) -> list[dict[str, Any]]:
    """The labels of an axis: its ends, or its choices."""
    texts = one.range.ends()
    texts = texts if len(texts) <= LABELS else (texts[0], texts[-1])
    return [{"axis": one.label, "place": one.range.place(text), "text": _short(text)} for text in texts]


def _short(text: str) -> str:
    return text if len(text) <= 18 else f"{text[:17]}…"
