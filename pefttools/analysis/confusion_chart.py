"""The confusion matrix as a chart: rows are the true classes, columns the predicted ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair

MOST, NUMBERED = 30, 14
"""Upper limits of classes in the chart, and of those with numbers in the cells."""
LONGEST = 16
"""Upper limit of characters of a class on an axis."""
COLOR = "#1a6fe1"


def confusion_chart(found: Mapping[str, Any]) -> altair.LayerChart | altair.FacetChart:
    """Cells by the share of their row; of many classes, those with most errors."""
    import altair as alt

    names = shown_classes(found)
    totals: Counter[str] = Counter()
    for one in found["counts"]:
        totals[one["reference"]] += one["number"]
    labels = short(names)
    cells = [
        {"true": labels[one["reference"]], "predicted": labels[one["prediction"]], "number": one["number"],
         "reference": one["reference"], "prediction": one["prediction"],
         "share": one["number"] / totals[one["reference"]], "method": "",
         "about": f"{one['reference']} predicted as {one['prediction']}: {one['number']}"}
        for one in found["counts"] if {one["reference"], one["prediction"]} <= {*names}
    ]  # fmt: skip
    order = [labels[name] for name in names]
    x = alt.X(
        "predicted:N",
        sort=order,
        title="predicted",
        axis=alt.Axis(labelAngle=-40, labelOverlap=False),
        scale=alt.Scale(domain=order),
    )
    y = alt.Y(
        "true:N",
        sort=order,
        title="true",
        axis=alt.Axis(labelOverlap=False, titleAngle=0, titleAlign="left", titleX=-60, titleY=-10),
        scale=alt.Scale(domain=order),
    )
    tooltip = [
        alt.Tooltip("reference:N", title="true"),
        alt.Tooltip("prediction:N", title="predicted"),
        alt.Tooltip("number:Q", title="number", format=","),
        alt.Tooltip("share:Q", title="share of the true class", format=".4f"),
    ]
    base = alt.Chart(alt.Data(values=cells)).encode(x=x, y=y, tooltip=tooltip)
    rect = base.mark_rect(color=COLOR, stroke=alt.expr("line"), strokeWidth=0.5).encode(
        opacity=alt.Opacity("share:Q", scale=alt.Scale(domain=[0, 1], range=[0.08, 0.85]), legend=None),
        description="about:N",
    )
    layers: list[Any] = [rect]
    if len(names) <= NUMBERED:
        layers.append(
            base.mark_text(color=alt.expr("ink"), aria=False, fontSize=11).encode(text=alt.Text("number:Q", format=","))
        )
    height = alt.Step(26 if len(names) <= NUMBERED else 18)
    return alt.layer(*layers).properties(width="container", height=height, description="confusion matrix")


def shown_classes(found: Mapping[str, Any]) -> list[str]:
    """The classes of the chart: all, or those with most errors, in the classes' order."""
    wrong: Counter[str] = Counter()
    for one in found["counts"]:
        if one["reference"] != one["prediction"]:
            wrong[one["reference"]] += one["number"]
            wrong[one["prediction"]] += one["number"]
    names = list(found["classes"])
    chosen = {*sorted(names, key=lambda name: -wrong[name])[:MOST]}
    return [name for name in names if name in chosen]


def short(names: list[str]) -> dict[str, str]:
    """Class -> its name on an axis; shortened names stay distinct."""
    found: dict[str, str] = {}
    for name in names:
        text = name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
        number = sum(other == text for other in found.values())
        while text in found.values():
            number += 1
            text = f"{name[: LONGEST - 4]}… {number}"
        found[name] = text
    return found
