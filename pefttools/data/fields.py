"""Checks of a field's value that several tasks share, and formatting of label lists in messages."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

INVISIBLE = ("Cc", "Cf")
"""Unicode's categories of control and format characters."""
UNREAD = "unread"
"""The key under which a task lists the values of a row that it did not read; `loading` removes it."""


def text(value: Any, name: str) -> str:
    """The text with its spaces; raises ValueError if it is empty or not a text."""
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):  # a column of texts may hold numbers
        value = str(value) if isinstance(value, int) or math.isfinite(value) else None
    if value is not None and not isinstance(value, str):
        raise ValueError(f"has a {name} that is not text: {value!r}")
    if not value or not is_visible(value):
        raise ValueError(f"has no {name}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has half a character (a lone surrogate) in its {name}") from error
    return value


def is_visible(value: str) -> bool:
    """Whether a text has a character that is neither a space nor a control or format character (a zero-width space)."""
    return any(not one.isspace() and unicodedata.category(one) not in INVISIBLE for one in value)


def natural(label: str) -> tuple[bool, float, str]:
    """A sorting key: numbers by value first, then words in alphabetical order."""
    number = label.removeprefix("-").isdecimal()
    return (not number, float(label) if number else 0.0, label)


def listed(names: Sequence[str]) -> str:
    """The first eight names, quoted, and the number of further names."""
    shown = ", ".join(repr(name) for name in names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


def number(value: Any, name: str) -> float:
    """The number; raises ValueError if there is none, or it is not finite."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"has no {name}")
    try:
        if isinstance(value, bool) or "_" in str(value):  # float() accepts True and 1_000
            raise ValueError
        found = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"has a {name} that is not a number: {value!r}") from error
    if not math.isfinite(found):
        raise ValueError(f"has a {name} that is not finite: {value!r}")
    return found
