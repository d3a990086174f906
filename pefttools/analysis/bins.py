"""Numbers in groups of about equal size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def equal_sized(values: Sequence[float], number: int) -> tuple[list[str], list[int]]:
    """The names of at most `number` intervals with about equally many values, and the interval of each value.

    An interval is named by its smallest and largest value, `12 to 45`; equal values are in one interval.
    """
    found = np.asarray(values, dtype=np.float64)
    edges = np.unique(np.quantile(found, np.linspace(0, 1, number + 1)[1:-1], method="lower"))
    places = np.searchsorted(edges, found, side="left")
    used = [int(place) for place in np.unique(places)]
    names = [_name(found[places == place].min(), found[places == place].max()) for place in used]
    return names, [used.index(int(place)) for place in places]


def _name(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
