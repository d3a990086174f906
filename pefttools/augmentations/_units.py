"""A text as the units that an augmentation moves or leaves out, and the spaces between them.

A unit is a character of Chinese or Japanese with the marks on it, or else what stands between spaces, its punctuation
included: these scripts have no spaces between words, and a list of words to find them by would be a model of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pefttools.data.words import CJK

MARKS = "\u3099\u309a\ufe00-\ufe0f\U000e0100-\U000e01ef"
"""What belongs to the character before it: voicing marks of kana and selectors of a character's form."""
UNIT = re.compile(rf"(?!\s)[{CJK}][{MARKS}]*|[^\s{CJK}]+")


def split(text: str) -> tuple[list[str], list[str]]:
    """The units of a text, and what stands before each of them and behind the last: one gap more than units."""
    units, gaps, end = [], [], 0
    for found in UNIT.finditer(text):
        units.append(found.group())
        gaps.append(text[end : found.start()])
        end = found.end()
    return units, [*gaps, text[end:]]


def join(units: Sequence[str], gaps: Sequence[str]) -> str:
    """The text of these units with these gaps, a space where two of them would otherwise become one unit."""
    parts: list[str] = []
    for unit, gap in zip(units, gaps[:-1], strict=True):
        is_merged = bool(parts) and not gap and _first_end(parts[-1] + unit) != len(parts[-1])
        parts += [" " if is_merged else gap, unit]
    return "".join([*parts, gaps[-1]])


def _first_end(text: str) -> int:
    """Where the first unit of a text ends that begins with one."""
    found = UNIT.match(text)
    assert found is not None, "a unit begins with no space"
    return found.end()
