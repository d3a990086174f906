"""Scores of groups of rows, by a column of the data: bias that a model learned shows as a gap between groups.

Every metric of each group has a 95% interval. The gap is between the best and the worst of the groups with at least
`LEAST` rows; that these two were chosen after the fact is corrected for (Bonferroni, over all pairs of groups).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pefttools.analysis import bins, intervals
from pefttools.analysis.scored_run import ScoredRows
from pefttools.bench import stats
from pefttools.bench.row_texts import shown
from pefttools.errors import UserError
from pefttools.inference.columns import LENGTH

LEAST = 10
"""Least number of rows of a group that the gap is computed with."""
MOST = 20
"""Upper limit of groups; the smallest ones are joined."""
DISTINCT = 12
"""Numbers with more different values than this are put into intervals."""
PARTS = 4
"""Number of intervals of numbers."""
NONE = "(none)"


def by_groups(scored: ScoredRows, column: str, names: Sequence[str]) -> dict[str, Any]:
    """The metrics of each group of rows, and the gap between the groups.

    Args:
        column: its name, for the result.
        names: the group of each row, from `group_names`.
    """
    sizes = Counter(names)
    joined = {name for name, _ in sizes.most_common()[MOST - 1 :]} if len(sizes) > MOST else set[str]()
    other = f"{len(joined)} other values"
    places: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        places.setdefault(other if name in joined else name, []).append(i)
    ordered = sorted(places, key=lambda name: (name == other, _start(name), -len(places[name]), name))
    groups = [_group(name, scored.at(places[name])) for name in ordered]
    return {
        "column": column,
        "metric": scored.task.primary,
        "lower_is_better": scored.task.lower_is_better,
        "in_points": scored.task.score_range == (0.0, 1.0),
        "groups": groups,
        "gap": _gap(scored, {name: places[name] for name in ordered if name != other}),
    }


def _start(name: str) -> float:
    """Where an interval or a number starts, to sort by; infinite for other names."""
    start = _number(name.split(" to ")[0])
    return math.inf if start is None else start


def group_names(column: str, values: Sequence[Any]) -> list[str]:
    """The name of each row's group: its value in the column, or an interval if it has many different numbers.

    Raises:
        UserError: the column has one value for all rows, or nearly one for each row.
    """
    texts = [_text(value) for value in values]
    different = len({*texts})
    if column != LENGTH and different > len(texts) / 2 and different > 2:
        raise UserError(
            f"--by: {column!r} has {different} different values on {len(texts)} rows, so that almost every row would be"
            " a group of its own; name a column with few values, such as the rows' source or language"
        )
    numbers = [_number(value) for value in values]
    if different > DISTINCT and all(number is not None for number in numbers):
        found = [number for number in numbers if number is not None]
        names, places = bins.equal_sized(found, PARTS)
        texts = [names[place] for place in places]
    if len({*texts}) < 2:
        raise UserError(f"--by: {column!r} is {texts[0]!r} for all {len(texts)} rows, so there is nothing to compare")
    return texts


def _text(value: Any) -> str:
    if value is None or value != value or value == "":
        return NONE
    return ", ".join(map(str, value)) or NONE if isinstance(value, list) else shown(value)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and not isinstance(value, bool) else None


def _group(name: str, scored: ScoredRows) -> dict[str, Any]:
    found = intervals.of_metrics(scored)
    scores = {}
    for metric, value in scored.scores.items():
        low, high = found[metric] or (None, None)
        scores[metric] = {"value": value, "low": low, "high": high}
    return {"group": name, "rows": len(scored.rows), "scores": scores}


def _gap(scored: ScoredRows, places: dict[str, list[int]]) -> dict[str, Any] | None:
    """The difference of the best and the worst group in the primary metric; None without two such groups."""
    task, metric = scored.task, scored.task.primary
    large = {name: scored.at(rows) for name, rows in places.items() if len(rows) >= LEAST}
    large = {name: one for name, one in large.items() if metric in one.scores}
    if len(large) < 2:
        return None
    ordered = sorted(large, key=lambda name: large[name].primary, reverse=not task.lower_is_better)
    best, worst = (large[name] for name in (ordered[0], ordered[-1]))
    pairs = math.comb(len(large), 2)
    level = 1 - (1 - stats.LEVEL) / pairs
    ends = [intervals.of_metrics(one, [metric], level=level)[metric] for one in (best, worst)]
    if ends[0] is None or ends[1] is None:
        return None
    low, high = intervals.of_difference(best.primary, ends[0], worst.primary, ends[1])
    if task.lower_is_better:
        low, high = -high, -low
    return {
        "best": ordered[0],
        "worst": ordered[-1],
        "value": abs(best.primary - worst.primary),
        "low": low,
        "high": high,
        "groups": len(large),
        "differs": low > 0,
    }
