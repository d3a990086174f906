"""Split a text into the units that augmentations move or delete, and the spaces between them.

A unit is a Chinese or Japanese character with its marks, or otherwise a word with its punctuation, delimited by spaces.
Chinese and Japanese are not split into words, since that would need a word list or a model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pefttools.data.words import CJK

MARKS = "\u3099\u309a\ufe00-\ufe0f\U000e0100-\U000e01ef"
"""Marks that belong to the previous character: voicing marks of kana and variation selectors."""
UNIT = re.compile(rf"(?!\s)[{CJK}][{MARKS}]*|[^\s{CJK}]+")


def split(text: str) -> tuple[list[str], list[str]]:
    """The units of a text, and the gaps before each of them and after the last: one more gap than units."""
    units, gaps, end = [], [], 0
    for found in UNIT.finditer(text):
        units.append(found.group())
        gaps.append(text[end : found.start()])
        end = found.end()
    return units, [*gaps, text[end:]]


def join(units: Sequence[str], gaps: Sequence[str]) -> str:
    """The text of the units with the gaps; a space separates two units that would otherwise merge into one."""
    parts: list[str] = []
    for unit, gap in zip(units, gaps[:-1], strict=True):
        is_merged = bool(parts) and not gap and _first_end(parts[-1] + unit) != len(parts[-1])
        parts += [" " if is_merged else gap, unit]
    return "".join([*parts, gaps[-1]])


def _first_end(text: str) -> int:
    """The end of the first unit of a text that begins with a unit."""
    found = UNIT.match(text)
    assert found is not None, "a unit does not begin with a space"
    return found.end()
