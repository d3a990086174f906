"""Values of rows as short texts, for tables of rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pefttools.tasks.base import Task

LONGEST = 300
"""Upper limit of characters of a text that are shown."""


def input_text(row: Mapping[str, Any], task: Task) -> str:
    """The row's inputs as one text, shortened if it is long."""
    return shown(" ⏎ ".join(shown(row[name]) for name in task.inputs if name in row))


def shown(value: Any) -> str:
    """A prediction, reference or field as a text, shortened if it is long."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = (
        value if isinstance(value, str) else " ".join(map(str, value)) if isinstance(value, list) else json.dumps(value)
    )
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
