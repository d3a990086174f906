"""Where the axes of a chart begin and end, and which methods are on its Pareto front."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

Ends = tuple[float, float, float]
"""The low end of an interval, the value, and the high end."""
FAR_OUT = 3.0
"""A value is far out if it is further from the quartiles than this multiple of their distance (Tukey 1977)."""


def frame(ends: Sequence[Ends], lower_is_better: bool = False) -> tuple[float, float]:
    """The ends of an axis that contains all intervals, except those of far outliers.

    A method is left out if its score is worse than the others' and far out, and if the others would otherwise have less
    than half of the axis.
    """
    used = list(ends)
    if len(ends) > 3:
        sign = -1 if lower_is_better else 1
        first, _, third = statistics.quantiles([sign * value for _, value, _ in ends], n=4, method="inclusive")
        near = [one for one in ends if sign * one[1] >= first - FAR_OUT * (third - first)]
        if 2 * _span(near) < _span(ends):
            used = near
    return widened([end for one in used for end in one])


def widened(values: Sequence[float], is_logarithmic: bool = False) -> tuple[float, float]:
    """The ends of an axis that contains all values, with a margin so that no point lies on the frame."""
    if is_logarithmic:
        low, high = widened([math.log10(value) for value in values])
        return 10**low, 10**high
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.01
    return low - margin, high + margin


def within(value: float, ends: tuple[float, float]) -> float:
    """The value, or the nearest place at which a point is whole inside the frame."""
    room = 0.02 * (ends[1] - ends[0])
    return min(max(value, ends[0] + room), ends[1] - room)


def share(value: float, first: float, last: float, is_logarithmic: bool = False) -> float:
    """How far a value is along an axis, from 0 at its first end to 1 at its last."""
    if is_logarithmic:
        return share(math.log10(value), math.log10(first), math.log10(last))
    return (value - first) / (last - first)


def front(points: Sequence[tuple[float, float]], lower_is_better: bool = False) -> list[tuple[float, float]]:
    """The Pareto front: the points that no other one beats in both cost and score, by rising cost."""
    sign = -1 if lower_is_better else 1
    found: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not found or sign * score > sign * found[-1][1]:
            found.append((cost, score))
    return found


def _span(ends: Sequence[Ends]) -> float:
    return max(high for _, _, high in ends) - min(low for low, _, _ in ends)
