"""How much a run's score drops on perturbed rows, with paired 95% intervals, as values and as a chart.

The scores with and without a perturbation are those of one model on the same rows, so the interval of their difference
is that of the paired bootstrap over rows (`bench.stats`). For a metric that is not a mean over rows, it resamples the
jackknife's pseudo-values of blocks of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pefttools import atomic, extras
from pefttools.bench import stats
from pefttools.bench.units import paired
from pefttools.errors import UserError

if TYPE_CHECKING:
    from pefttools.inference.perturbation import Perturbed

FORMATS = (".svg", ".png")


def summary(scored: Perturbed) -> dict[str, Any]:
    """The scores as JSON: `metric`, `score` of the rows as they are, and `perturbations`, one entry a strength.

    `drop` is how much worse the score is than on the rows as they are, with the bounds `low` and `high` of its
    interval, all in the metric's unit; it is negative where the score is better.
    """
    task, plain = scored.task, scored.plain
    metric, sign = task.primary, -1 if task.lower_is_better else 1
    entries = []
    for one in scored.perturbed:
        both = {"plain": plain, "perturbed": one}
        units, _ = paired(task, {n: (s.predictions, s.references, s.metrics[metric]) for n, s in both.items()})
        tables = {name: np.array([values]) for name, values in units.items()}
        found = stats.differences(tables)["plain", "perturbed"]
        low, high = found.interval()
        half, drop = (high - low) / 2, sign * (plain.metrics[metric] - one.metrics[metric])
        entries.append(
            {
                "perturbation": one.name, "strength": one.strength, "changed_rows": one.changed,
                "score": one.metrics[metric], "drop": drop, "low": drop - half, "high": drop + half,
            }
        )  # fmt: skip
    return {
        "metric": metric, "lower_is_better": task.lower_is_better, "in_points": task.score_range == (0.0, 1.0),
        "rows": len(plain.references), "scored_on": scored.scored_on, "seed": scored.seed,
        "score": plain.metrics[metric], "perturbations": entries,
    }  # fmt: skip


def check_picture(file: Path) -> None:
    """Raises UserError if a picture cannot be drawn, or not be written there."""
    extras.require("--picture", extras.EXTRAS["charts"])
    if file.suffix.lower() not in FORMATS:
        raise UserError(f"--picture: {file} must end with {' or '.join(FORMATS)}")
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise UserError(f"--picture: {file} is not a file in an existing folder; create the folder first")


def write_picture(values: Mapping[str, Any], file: Path) -> None:
    """Write a chart of the scores against strength, one line a perturbation, as SVG or PNG."""
    import altair
    import vl_convert

    names = list(dict.fromkeys(one["perturbation"] for one in values["perturbations"]))
    start = [{"perturbation": name, "strength": 0.0, "score": values["score"]} for name in names]
    rows = [*start, *(_with_bounds(one, values) for one in values["perturbations"])]
    x = altair.X("strength:Q", title="share of words changed", axis=altair.Axis(format=".0%"))
    base = altair.Chart(altair.Data(values=rows)).encode(x=x, color=altair.Color("perturbation:N", sort=names))
    y = altair.Y("score:Q", title=values["metric"], scale=altair.Scale(zero=False))
    lines = base.mark_line(point=True).encode(y=y)
    intervals = base.mark_rule(opacity=0.5).encode(y=altair.Y("low:Q"), y2="high:Q")
    chart = (lines + intervals.transform_filter("isValid(datum.low)")).properties(width=420, height=280)
    drawn = vl_convert.vegalite_to_svg(chart.to_json())
    with atomic.new_file(file) as part:
        if file.suffix.lower() == ".png":
            part.write_bytes(vl_convert.svg_to_png(drawn, scale=2))
        else:
            part.write_text(drawn, "utf-8")


def _with_bounds(one: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """An entry with the bounds of its score, given the score of the rows as they are."""
    sign = -1 if values["lower_is_better"] else 1
    bounds: Sequence[float] = sorted(values["score"] - sign * one[name] for name in ("low", "high"))
    return {**{k: one[k] for k in ("perturbation", "strength", "score")}, "low": bounds[0], "high": bounds[1]}
