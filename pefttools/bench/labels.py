"""Labels beside points that cover neither a point nor each other: by Vega in a page, by the same rule here in a file.

Vega's `label` transform (Kittivorawong et al. 2020) places them again whenever the width of the page changes, but it
needs a browser's canvas. Both try eight places around a point, and leave a label out if it has room at none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

FONT_SIZE = 11
LETTER = 5.5
"""Mean width of a letter, in pixels, with a little room."""
RADIUS = 6.0
"""Half the side of the square that a point takes, in pixels."""
PLACES = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1))
"""Where a label is tried, as (right or left, below or above) of its point; it is best read at its right."""
ANCHORS = ("right", "left", "top", "bottom", "top-right", "top-left", "bottom-right", "bottom-left")
"""The same as Vega calls them."""
Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""


def place(points: Sequence[tuple[float, float, str]], width: float, height: float) -> list[tuple[float, float] | None]:
    """The middle of every point's label; None where there is no room.

    Args:
        points: x, y and text, those that matter most first; in pixels from the top left of the frame.
    """
    taken: list[Box] = [(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y, _ in points]
    found: list[tuple[float, float] | None] = []
    for x, y, text in points:
        half = len(text) * LETTER / 2
        middles = [(x + a * (half + RADIUS), y + b * (FONT_SIZE / 2 + (RADIUS if not a else 3))) for a, b in PLACES]
        free = [
            (middle, box)
            for middle in middles
            if (box := _box(*middle, half))[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height
            and not any(_overlap(box, other) for other in taken)
        ]  # fmt: skip
        found.append(free[0][0] if free else None)
        taken += [box for _, box in free[:1]]
    return found


def by_vega(points: str, opacity: str, font: str) -> dict[str, Any]:
    """The mark of Vega that labels the points of another mark.

    Args:
        points: name of the mark; its rows have a `label` and a `rank`.
        opacity: expression of a label's opacity.
    """
    look = {"text": {"field": "datum.label"}, "fill": {"signal": "ink"}, "stroke": {"signal": "paper"}}
    return {
        "type": "text",
        "name": "labels",
        "from": {"data": points},
        "aria": False,
        "encode": {
            "enter": {"font": {"value": font}, "fontSize": {"value": FONT_SIZE}, "strokeJoin": {"value": "round"}},
            "update": {
                **look,
                "strokeWidth": {"value": 3},
                "fillOpacity": {"signal": opacity},
                "strokeOpacity": {"signal": opacity},
            },
        },
        "transform": [
            {
                "type": "label",
                "size": {"signal": "[width, height]"},
                "sort": {"field": "datum.datum.rank"},
                "anchor": [*ANCHORS],
                "offset": [3, 3, 3, 3, 2, 2, 2, 2],
            }
        ],
    }


def _box(x: float, y: float, half: float) -> Box:
    return x - half, y - FONT_SIZE / 2, x + half, y + FONT_SIZE / 2


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
