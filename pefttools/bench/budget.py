"""A budget of time: parsing it, and measuring how much is spent and left."""

from __future__ import annotations

import re
import time

from pefttools.errors import UserError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str, option: str = "--budget") -> float:
    """The seconds of a text like `90s`, `30m`, `1.5h` or `1h30m`. Raises UserError, about the option, for others."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        raise UserError(f"{option}: must be a time like 90s, 30m or 1h30m, got {text!r}")
    total = sum(float(number) * UNITS[unit] for number, unit in parts)
    if total <= 0:
        raise UserError(f"{option}: must be more than zero, got {text!r}")
    return total


def duration(value: float) -> str:
    """A duration in seconds as a short text in seconds, minutes or hours."""
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


class Clock:
    """Measures the time that is spent from the budget since the clock was created."""

    def __init__(self, budget: float) -> None:
        self.budget, self.started = budget, time.monotonic()

    @property
    def spent(self) -> float:
        return time.monotonic() - self.started

    @property
    def left(self) -> float:
        return self.budget - self.spent
