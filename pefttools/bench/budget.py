"""A budget of time: read, spent, and what still fits in it."""

from __future__ import annotations

import re
import time

from pefttools.errors import UserError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
HARD = 1.05
"""A trial that still runs at this share of the budget is stopped."""


def seconds(text: str) -> float:
    """From `90s`, `30m`, `1.5h` or `1h30m`. Raises UserError when it is none of these."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        raise UserError(f"--budget: takes a time like 90s, 30m or 1h30m, got {text!r}")
    total = sum(float(number) * UNITS[unit] for number, unit in parts)
    if total <= 0:
        raise UserError(f"--budget: takes more than no time, got {text!r}")
    return total


def told(value: float) -> str:
    """Seconds as people say them."""
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


class Clock:
    """Time that runs from now."""

    def __init__(self, budget: float) -> None:
        self.budget, self.started = budget, time.monotonic()

    @property
    def spent(self) -> float:
        return time.monotonic() - self.started

    @property
    def left(self) -> float:
        return self.budget - self.spent

    @property
    def is_over(self) -> bool:
        """Whether even what runs must stop."""
        return self.spent > HARD * self.budget
