"""Results as sentences and short numbers, the same in the terminal and on the pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MINUS = "\N{MINUS SIGN}"


def score(value: float | None) -> str:
    """A score with four digits; empty without one."""
    return "" if value is None else f"{value:.4f}".replace("-", MINUS)


def interval(low: float | None, high: float | None) -> str:
    """`0.9012 to 0.9310`; empty without bounds."""
    return "" if low is None or high is None else f"{score(low)} to {score(high)}"


def gap(value: float | None, in_points: bool, signed: bool = True) -> str:
    """A difference of scores: in points (hundredths) with two digits, or in the metric's unit with four."""
    if value is None:
        return ""
    sign = "+" if signed else ""
    return (f"{100 * value:{sign}.2f}" if in_points else f"{value:{sign}.4f}").replace("-", MINUS)


def p_value(value: float | None) -> str:
    """A p value with two digits; empty without one."""
    return "" if value is None else f"{value:.2g}" if value >= 1e-4 else f"{value:.0e}"


def of_pair(pair: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """The result of the paired test of two runs."""
    points, metric = values["in_points"], values["metric"]
    first, second, value, low, high = (pair[key] for key in ("first", "second", "difference", "low", "high"))
    if pair["p"] is None:
        return f"{first} and {second}: too few rows for a test"
    number = len(values["pairs"])
    p = f"p = {p_value(pair['p_holm'])}" + (f", corrected for {number} pairs" if number > 1 else "")
    unit = " points" if points else ""
    if not pair["differs"]:
        bounds = f"{gap(low, points)} to {gap(high, points)}"
        return (
            f"{first} and {second} do not differ significantly in {metric} on these rows: {first} minus {second} is"
            f" {gap(value, points)}{unit} ({bounds}), {p}; this does not show that they are equal"
        )
    better, worse = (first, second) if (value > 0) != values["lower_is_better"] else (second, first)
    if value < 0:
        value, low, high = -value, -high, -low
    bounds = f"{gap(low, points, signed=False)} to {gap(high, points, signed=False)}"
    return f"{better} is better than {worse} in {metric} by {gap(value, points, signed=False)}{unit} ({bounds}), {p}"


CAVEAT = (
    "The tests judge these trained models on new rows like these. How much another seed would change the scores is not"
    " known from single runs; `pefttools bench` measures it."
)


def of_gap(found: Mapping[str, Any]) -> str:
    """The gap between the best and the worst group."""
    one = found["gap"]
    if one is None:
        return "No gap is computed, because it takes two groups with at least 10 rows each."
    points, metric = found["in_points"], found["metric"]
    unit = " points" if points else ""
    size = f"{gap(one['value'], points, signed=False)}{unit}"
    bounds = f"{gap(one['low'], points, signed=False)} to {gap(one['high'], points, signed=False)}"
    verdict = "more than chance explains" if one["differs"] else "no more than chance may explain"
    return (
        f"The gap in {metric} between the best group ({one['best']}) and the worst ({one['worst']}) is {size}"
        f" (95% interval {bounds}, corrected for the choice among {one['groups']} groups): {verdict}."
    )


def of_mistakes(found: Mapping[str, Any]) -> str:
    """The number of wrong rows."""
    number, scored = found["wrong"], found["scored"]
    if not number:
        return f"none of the {scored} rows is wrong"
    if not found["are_wrong"]:
        return f"the {len(found['rows'])} of {scored} rows with the largest errors"
    return f"{number} of {scored} rows are wrong; the worst {len(found['rows'])}"
