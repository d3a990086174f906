"""The charts of the pages, in the look of `bench.vega`: one color a run on all of them, intervals inside the frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pefttools.analysis import sentences
from pefttools.bench import vega
from pefttools.bench.frames import frame, widened, within

if TYPE_CHECKING:
    import altair

    Chart = altair.LayerChart | altair.FacetChart

Row = Mapping[str, Any]
CURVES = {"score": "validation", "loss": "validation", "train loss": "train"}
"""Chart of the curves -> the part of `curve` that it draws."""
PLACES = {"x": "value", "low": "low", "high": "high"}
"""Place of a mark -> the value that it shows."""


def look_of(names: Sequence[str]) -> vega.Look:
    """The marks of the runs."""
    return vega.Look.of(names)


def curves(runs: Sequence[Row], kind: str, metric: str, look: vega.Look) -> Chart | None:
    """The runs' curves over steps: validation `score`, validation `loss` or `train loss`; None without points."""
    import altair as alt

    part, value = CURVES[kind], "score" if kind == "score" else "loss"
    title = {"score": f"validation {metric}", "loss": "validation loss", "train loss": "training loss"}[kind]
    rows = [
        {
            "method": run["name"], "step": point["step"], "value": point[value], "label": run["name"], "rank": number,
            "is_last": point is run["curve"][part][-1],
            "about": f"{run['name']} at step {point['step']}: {point[value]:.4f}",
        }
        for number, run in enumerate(runs) for point in run["curve"][part]
    ]  # fmt: skip
    if not rows:
        return None
    scale = alt.Scale(domain=widened([row["value"] for row in rows]), nice=False, zero=False)
    y = alt.Y("value:Q", scale=scale, axis=vega.vertical_axis(title))
    axis = alt.Axis(format="~s", tickCount=vega.ticks("container"))
    x = alt.X("step:Q", scale=alt.Scale(domain=widened([row["step"] for row in rows]), nice=False), axis=axis)
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("step:Q", format=","),
        alt.Tooltip("value:Q", title=title, format=vega.SCORE),
    ]
    base = look.chart(rows, x=x, y=y, tooltip=tooltip)
    lines = base.mark_line(strokeWidth=1.6, aria=False).encode(tooltip=alt.Tooltip("method:N"), order="step:Q")
    layers = [lines]
    if part == "validation":
        layers.append(look.points(base.transform_filter("!datum.is_last")))
    last = base.transform_filter("datum.is_last")
    layers.append(look.points(last, vega.LABELLED if len(runs) > 1 else None))
    return alt.layer(*layers).properties(width="container", height=280, description=f"{title} by step")


def scores(values: Row, look: vega.Look) -> Chart:
    """Each run's score with its interval."""
    metric = values["metric"]
    rows = [{"method": run["name"], **run["scores"][metric]} for run in values["runs"]]
    return _bars(rows, [run["name"] for run in values["runs"]], metric, look, None, vega.AXIS_SCORE)


def differences(values: Row, look: vega.Look) -> Chart:
    """Each pair's difference with its interval, and the line of no difference; in the color of the better run."""
    factor = 100 if values["in_points"] else 1
    sign = -1 if values["lower_is_better"] else 1
    rows = []
    for pair in values["pairs"]:
        is_first = sign * pair["difference"] >= 0
        ends = {key: None if pair[key] is None else factor * pair[key] for key in ("low", "high")}
        name = f"{pair['first']} − {pair['second']}"
        method = pair["first"] if is_first else pair["second"]
        rows.append({"method": method, "line": name, "value": factor * pair["difference"], **ends})
    title = "difference in points" if values["in_points"] else f"difference in {values['metric']}"
    return _bars(
        rows, [row["line"] for row in rows], title, look, 0.0, "~f" if values["in_points"] else vega.AXIS_SCORE
    )


def _bars(
    rows: Sequence[Row], order: Sequence[str], title: str, look: vega.Look, at: float | None, number: str
) -> Chart:
    """A line for each row, with its point, its interval and the value as a text.

    Args:
        rows: each with `method`, `value`, `low`, `high` (None without an interval), and `line`, its name.
        at: where to draw a vertical line.
    """
    import altair as alt

    full = [_with_ends({"line": row["method"], **row}, number) for row in rows]
    ends = frame([(row["low"], row["value"], row["high"]) for row in full])
    ends = ends if at is None else (min(ends[0], at), max(ends[1], at))
    points = [{**row, **{k: within(row[v], ends) for k, v in PLACES.items()}} for row in full]
    axis = alt.Axis(
        grid=True, ticks=False, domain=False, labelLimit=150, labelColor=alt.expr("ink"), labelOverlap=False,
        labelPadding=6,
    )  # fmt: skip
    x = alt.X("x:Q", title=title, scale=alt.Scale(domain=ends, nice=False, zero=False), axis=_axis(number))
    y = alt.Y("line:N", sort=[*order], title=None, axis=axis)
    tooltip = [
        alt.Tooltip("line:N", title="of"),
        alt.Tooltip("value:Q", title=title, format=vega.SCORE),
        alt.Tooltip("interval:N", title="95% interval"),
    ]
    base = look.chart(points, x=x, y=y, tooltip=tooltip)
    layers: list[Any] = []
    if at is not None:
        rule = alt.Chart(alt.Data(values=[{"at": at}])).mark_rule(color=alt.expr("quiet"), aria=False)
        layers.append(rule.encode(x=alt.X("at:Q")))
    layers += [look.intervals(base).encode(x=alt.X("low:Q"), x2="high:Q"), look.points(base)]
    return alt.layer(*layers).properties(width="container", height=alt.Step(26), description=title)


def _axis(number: str) -> altair.Axis:
    import altair as alt

    return alt.Axis(format=number, tickCount=vega.ticks("container"))


def _with_ends(row: Row, number: str) -> dict[str, Any]:
    """A row of `_bars` with its interval as a text, and an interval without width where it has none."""
    value, low, high = (row[key] for key in ("value", "low", "high"))
    known = f"{_number(low, number)} to {_number(high, number)}" if low is not None and high is not None else ""
    return {
        **row, "low": low if known else value, "high": high if known else value, "interval": known or "none",
        "about": f"{row['line']}: {_number(value, number)}",
    }  # fmt: skip


def _number(value: float, number: str) -> str:
    return (f"{value:.2f}" if number == "~f" else f"{value:.4f}").replace("-", sentences.MINUS)


def reliability(found: Row, look: vega.Look, name: str) -> Chart:
    """Accuracy by stated probability with intervals, against the diagonal of perfect calibration."""
    import altair as alt

    rows = [
        {**one, "method": name, "interval": f"{one['low']:.4f} to {one['high']:.4f}",
         "about": f"confidence {one['confidence']:.4f}: accuracy {one['accuracy']:.4f}"}
        for one in found["bins"]
    ]  # fmt: skip
    scale = alt.Scale(domain=[-0.03, 1.03], nice=False)
    axis = alt.Axis(format="~f", values=[0, 0.2, 0.4, 0.6, 0.8, 1])
    x = alt.X("confidence:Q", scale=scale, axis=axis, title="stated probability")
    y = alt.Y("accuracy:Q", scale=scale, axis=vega.vertical_axis("share that is right", "~f"))
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("confidence:Q", title="stated probability", format=vega.SCORE),
        alt.Tooltip("accuracy:Q", title="share that is right", format=vega.SCORE),
        alt.Tooltip("interval:N", title="95% interval"),
        alt.Tooltip("number:Q", title="predictions", format=","),
    ]
    base = look.chart(rows, x=x, y=y, tooltip=tooltip)
    diagonal = alt.Chart(alt.Data(values=[{"from": 0, "to": 0}, {"from": 1, "to": 1}]))
    line = diagonal.mark_line(color=alt.expr("quiet"), strokeDash=[4, 3], strokeWidth=1.2, aria=False)
    return alt.layer(
        line.encode(x=alt.X("from:Q"), y=alt.Y("to:Q")),
        look.intervals(base).encode(y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_line(strokeWidth=1.2, aria=False).encode(tooltip=alt.Tooltip("method:N"), order="confidence:Q"),
        look.points(base),
    ).properties(width="container", height=320, description="accuracy by stated probability")


def by_length(found: Row, look: vega.Look, name: str) -> Chart:
    """The error of rows by the length of their inputs, with intervals."""
    import altair as alt

    what = "share of wrong rows" if found["are_wrong"] else "mean error"
    ends = widened([0.0, *(one["high"] for one in found["groups"])])
    rows = [
        {**one, "method": name, "interval": f"{one['low']:.4f} to {one['high']:.4f}",
         "about": f"{one['length']} characters: {one['error']:.4f}"}
        for one in found["groups"]
    ]  # fmt: skip
    x = alt.X(
        "length:N", sort=[one["length"] for one in found["groups"]], title="characters", axis=alt.Axis(labelAngle=-35)
    )
    y = alt.Y("error:Q", scale=alt.Scale(domain=ends, nice=False, zero=False), axis=vega.vertical_axis(what))
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("length:N", title="characters"),
        alt.Tooltip("error:Q", title=what, format=vega.SCORE),
        alt.Tooltip("interval:N", title="95% interval"),
        alt.Tooltip("rows:Q", format=","),
    ]
    base = look.chart(rows, x=x, y=y, tooltip=tooltip)
    layers = (look.intervals(base).encode(y=alt.Y("low:Q"), y2="high:Q"), look.points(base))
    return alt.layer(*layers).properties(width="container", height=260, description=f"{what} by length")
