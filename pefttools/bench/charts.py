"""The charts of a suite: score by cost, validation score by learning rate, and differences from the best over sets.

Each function takes plain values of the summary and returns an altair chart; `specs` compiles those of the report.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pefttools.bench import labels, vega
from pefttools.bench.frames import frame, front, share, widened, within

if TYPE_CHECKING:
    import altair

Row = Mapping[str, Any]
Width = int | str
"""In pixels, or "container"."""


@dataclass(frozen=True)
class Cost:
    """What a method costs, with the formats (d3's) of a value in a tooltip and on the axis."""

    title: str
    value: Callable[[Row], float]
    is_logarithmic: bool
    tooltip_format: str
    axis_format: str


COSTS = {
    "trainable": Cost("trained parameters", lambda row: row["params"]["trainable"], True, ",d", "~s"),
    "peak": Cost("peak memory, MB", lambda row: row["peak_bytes"] / 2**20, False, ",.0f", ",~f"),
    "seconds": Cost("training seconds", lambda row: row["seconds"], False, ",.1f", ",~f"),
    "file": Cost("adapter file, MB", lambda row: row["adapter_bytes"] / 2**20, True, ",.2f", ",~f"),
}


def specs(summary: Row) -> dict[str, Any]:
    """What the page draws: every method's mark, the pool's chart, and each problem's charts."""
    look = look_of(summary)
    problems = []
    for problem in summary["problems"]:
        costs = COSTS if finished(problem) else {}
        problems.append({
            "costs": {name: vega.compile_for_page(by_cost(problem, costs[name], look)) for name in costs},
            "rates": vega.compile_for_page(by_learning_rate(problem, look)) if curves(problem) else None,
        })  # fmt: skip
    return {
        "marks": look.marks,
        "costs": {name: cost.title for name, cost in COSTS.items()},
        "pools": [vega.compile_for_page(differences(pool, look)) for pool in summary["pools"]],
        "problems": problems,
    }


def look_of(summary: Row) -> vega.Look:
    """The methods' marks on all charts of the suite."""
    return vega.Look.of(row["method"] for problem in summary["problems"] for row in problem["methods"])


def finished(problem: Row) -> list[Row]:
    """The methods that have a score."""
    return [row for row in problem["methods"] if "mean" in row]


def curves(problem: Row) -> dict[str, list[tuple[float, float]]]:
    """Method -> its learning rates and their validation scores, by rising rate; without trials that failed."""
    found = {
        row["method"]: sorted((p["learning_rate"], p["score"]) for p in row["curve"] if p["score"] is not None)
        for row in problem["methods"]
    }
    return {method: points for method, points in found.items() if points}


def by_cost(
    problem: Row, cost: Cost, look: vega.Look, width: Width = "container", height: int = 420
) -> altair.LayerChart | altair.FacetChart:
    """Test scores with their intervals against a cost, and the Pareto front as steps.

    Labels are placed here if the width is known, and otherwise by the browser.
    """
    import altair as alt

    ends = frame([_ends(row) for row in finished(problem)], problem["lower_is_better"])
    rows = cost_rows(problem, cost, ends)
    amounts = [row["x"] for row in rows]
    scale = alt.Scale(
        type="log" if cost.is_logarithmic else "linear", domain=widened(amounts, cost.is_logarithmic), nice=False
    )
    x = alt.X("x:Q", scale=scale, title=cost.title, axis=alt.Axis(format=cost.axis_format, tickCount=vega.ticks(width)))
    y = alt.Y("y:Q", scale=alt.Scale(domain=ends, nice=False, zero=False), axis=vega.vertical_axis(problem["metric"]))
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("score:Q", title=problem["metric"], format=vega.SCORE),
        alt.Tooltip("interval:N", title="95% interval"),
        alt.Tooltip("cost:Q", title=cost.title, format=cost.tooltip_format),
    ]
    base = look.chart(rows, x=x, y=y, tooltip=tooltip)
    steps = base.transform_filter("datum.is_front").mark_line(
        interpolate="step-after", color=alt.expr("quiet"), strokeDash=[4, 3], strokeWidth=1.2, aria=False
    )
    layers = [
        steps.encode(color=alt.value(alt.expr("quiet")), tooltip=alt.value(None), opacity=alt.value(1), order="x:Q"),
        look.intervals(base).encode(y=alt.Y("low:Q"), y2="high:Q"),
        look.points(base, None if isinstance(width, int) else vega.LABELLED),
    ]
    if isinstance(width, int):
        layers.append(vega.placed_labels(_placed(rows, cost, ends, (width, height))))
    about = f"{problem['metric']} by {cost.title}"
    return alt.layer(*layers).properties(width=width, height=height, description=about)


def cost_rows(problem: Row, cost: Cost, ends: tuple[float, float]) -> list[dict[str, Any]]:
    """What `by_cost` draws of each method; nothing is outside the frame, and a point at its edge names its score."""
    done, lower = finished(problem), problem["lower_is_better"]
    positive = [value for row in done if (value := cost.value(row)) > 0]
    least = min(positive, default=1.0) / 2 if cost.is_logarithmic else 0.0  # a logarithmic axis has no 0
    places = [(max(cost.value(row), least), row["mean"]) for row in done]
    best = front(places, lower)
    rows = []
    for number, (row, (x, score)) in enumerate(zip(done, places, strict=True)):
        outside = "" if ends[0] <= score <= ends[1] else f" {'↓' if score < ends[0] else '↑'} {score:.4f}"
        low, _, high = _ends(row)
        rows.append({
            "method": row["method"], "label": row["method"] + outside, "score": score, "x": x, "cost": cost.value(row),
            "y": within(score, ends), "low": within(low, ends), "high": within(high, ends),
            "interval": "one seed" if row["low"] is None else f"{low:.4f} to {high:.4f}",
            "is_front": (x, score) in best, "rank": number - (len(done) if (x, score) in best or outside else 0),
            "about": f"{row['method']}: {score:.4f}",
        })  # fmt: skip
    return rows


def _placed(rows: Sequence[Row], cost: Cost, ends: tuple[float, float], size: tuple[int, int]) -> list[dict[str, Any]]:
    """The labels that have room in a file, with their middles in pixels."""
    first, last = widened([row["x"] for row in rows], cost.is_logarithmic)
    ordered = sorted(rows, key=lambda row: row["rank"])
    points = [
        (
            size[0] * share(row["x"], first, last, cost.is_logarithmic),
            size[1] * share(row["y"], ends[1], ends[0]),
            row["label"],
        )
        for row in ordered
    ]
    middles = labels.place(points, *size)
    return [
        {"label": row["label"], "x": middle[0], "y": middle[1]}
        for row, middle in zip(ordered, middles, strict=True)
        if middle
    ]


def by_learning_rate(
    problem: Row, look: vega.Look, width: Width = "container", height: int = 360
) -> altair.LayerChart | altair.FacetChart:
    """Validation scores at the learning rates that were tried, a line a method, labelled at its last rate."""
    import altair as alt

    rows = [
        {"method": method, "label": method, "rank": number, "rate": rate, "score": score,
         "is_last": (rate, score) == points[-1], "about": f"{method} at {rate:.3g}: {score:.4f}"}
        for number, (method, points) in enumerate(curves(problem).items()) for rate, score in points
    ]  # fmt: skip
    scale = alt.Scale(type="log", domain=widened([row["rate"] for row in rows], True), nice=False)
    x = alt.X(
        "rate:Q", scale=scale, title="learning rate", axis=alt.Axis(format=vega.RATE, tickCount=vega.ticks(width))
    )
    scale = alt.Scale(domain=widened([row["score"] for row in rows]), nice=False, zero=False)
    y = alt.Y("score:Q", scale=scale, axis=vega.vertical_axis(problem["metric"]))
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("rate:Q", title="learning rate", format=vega.RATE),
        alt.Tooltip("score:Q", title=f"validation {problem['metric']}", format=vega.SCORE),
    ]
    base = look.chart(rows, x=x, y=y, tooltip=tooltip)
    return alt.layer(
        base.mark_line(strokeWidth=1.6, aria=False).encode(tooltip=alt.Tooltip("method:N"), order="rate:Q"),
        look.points(base.transform_filter("!datum.is_last")),
        look.points(base.transform_filter("datum.is_last"), vega.LABELLED),
    ).properties(width=width, height=height, description=f"validation {problem['metric']} by learning rate")


def differences(pool: Row, look: vega.Look, width: Width = "container") -> altair.LayerChart | altair.FacetChart:
    """Every method's difference from the best mean over sets, with its interval for new sets, and the margin."""
    import altair as alt

    margin = 100 * pool["margin"]
    ends = frame([*map(_gap_ends, pool["methods"]), (-margin, 0.0, 0.0)])
    is_recommended = {"test": f"datum.value === {json.dumps(pool['recommended'])}", "value": "bold"}
    axis = alt.Axis(
        grid=True, ticks=False, domain=False, labelLimit=170, labelColor=alt.expr("ink"), labelOverlap=False,
        labelPadding=6, labelFontWeight={"condition": is_recommended, "value": "normal"},
    )  # fmt: skip
    y = alt.Y("method:N", sort=[row["method"] for row in pool["methods"]], title=None, axis=axis)
    scale = alt.Scale(domain=ends, nice=False, zero=False)
    x = alt.X(
        "x:Q", scale=scale, title="points from the best mean", axis=alt.Axis(format="~f", tickCount=vega.ticks(width))
    )
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("mean:Q", format=vega.SCORE),
        alt.Tooltip("gap:Q", title="points from the best", format=vega.POINTS),
        alt.Tooltip("interval:N", title="95% interval"),
    ]
    rows = [gap_row(row, ends) for row in pool["methods"]]
    base = look.chart(rows, x=x, y=y, tooltip=tooltip)
    band = alt.Chart(alt.Data(values=[{"from": -margin, "to": 0}])).encode(x=alt.X("from:Q"))
    return alt.layer(
        band.mark_rect(color=alt.expr("soft"), aria=False).encode(x2="to:Q"),
        band.mark_rule(color=alt.expr("quiet"), strokeDash=[4, 3], aria=False),
        band.mark_rule(color=alt.expr("quiet"), aria=False).encode(x="to:Q"),
        look.intervals(base).encode(x=alt.X("low:Q"), x2="high:Q"),
        look.points(base),
        base.mark_text(align="left", dx=9, aria=False).encode(text="outside:N", color=alt.value(alt.expr("quiet"))),
    ).properties(width=width, height=alt.Step(20), description="differences from the best mean")


def gap_row(row: Row, ends: tuple[float, float]) -> dict[str, Any]:
    """What `differences` draws of a method, in points; a point at the frame's edge names its difference."""
    low, gap, high = _gap_ends(row)
    return {
        "method": row["method"], "mean": row["mean"], "gap": gap, "x": within(gap, ends), "low": within(low, ends),
        "high": within(high, ends), "outside": f"← {_signed(gap)}" if gap < ends[0] else "",
        "interval": "none, it is the best" if row["gap_low"] is None else f"{_signed(low)} to {_signed(high)}",
        "about": f"{row['method']}: {_signed(gap)} points",
    }  # fmt: skip


def _gap_ends(row: Row) -> tuple[float, float, float]:
    ends = row["gap_low"], row["gap"], row["gap_high"]
    low, gap, high = (100 * (row["gap"] if end is None else end) for end in ends)
    return low, gap, high


def _ends(row: Row) -> tuple[float, float, float]:
    mean = row["mean"]
    return (mean, mean, mean) if row["low"] is None else (row["low"], mean, row["high"])


def _signed(points: float) -> str:
    return f"{points:+.2f}".replace("-", "−")
