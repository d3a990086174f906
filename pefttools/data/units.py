"""Split a text into the units that augmentations replace, insert, move or delete, and join edited units to a text.

A unit is a Chinese or Japanese character with its marks, or otherwise a word with its punctuation, delimited by spaces.
Chinese and Japanese are not split into words, since that would need a word list or a model.

An edit is a list of pieces, the units of the new text in their order. Each piece names the unit that it comes from, so
that tags and positions follow: a unit that no piece names was deleted, and one with other text was replaced. Spans that
must stay as they are (an answer, a marked entity) are one unit each, which no edit may change, move or delete.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pefttools.data.words import AFTER, BEFORE, CJK

MARKS = "\u3099\u309a\ufe00-\ufe0f\U000e0100-\U000e01ef"
"""Marks that belong to the previous character: voicing marks of kana and variation selectors."""
UNIT = re.compile(rf"(?!\s)[{CJK}][{MARKS}]*|[^\s{CJK}]+")


class Units(NamedTuple):
    """The units of a text or of a list of tokens."""

    texts: tuple[str, ...]
    free: tuple[bool, ...]
    """Whether each unit may be changed, moved or deleted."""

    @property
    def free_places(self) -> list[int]:
        """The indices of the units that may be changed."""
        return [place for place, is_free in enumerate(self.free) if is_free]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Units:
        """Units all of which may be changed."""
        return cls(tuple(texts), (True,) * len(texts))


class Piece(NamedTuple):
    """A unit of an edited text."""

    text: str
    source: int
    """The index of the unit that it is or replaces; of an inserted piece, that of the unit with which it agrees."""
    inserted: bool = False
    """Whether the unit `source` remains besides this piece."""


def unchanged(units: Units) -> list[Piece]:
    """The pieces of an edit that changes nothing."""
    return [Piece(text, place) for place, text in enumerate(units.texts)]


def core(unit: str) -> tuple[str, str, str]:
    """The punctuation before a word, the word, and the punctuation after it; their concatenation is the unit."""
    bare = unit.lstrip(BEFORE)
    word = bare.rstrip(AFTER)
    return unit[: len(unit) - len(bare)], word, bare[len(word) :]


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
    return _placed(units, gaps)[0]


def _placed(units: Sequence[str], gaps: Sequence[str]) -> tuple[str, list[int]]:
    """The joined text, and the start of each unit in it."""
    parts: list[str] = []
    starts, end = [], 0
    for unit, gap in zip(units, gaps[:-1], strict=True):
        is_merged = bool(parts) and not gap and _first_end(parts[-1] + unit) != len(parts[-1])
        parts += [" " if is_merged else gap, unit]
        starts.append(end + len(parts[-2]))
        end = starts[-1] + len(unit)
    return "".join([*parts, gaps[-1]]), starts


def _first_end(text: str) -> int:
    """The end of the first unit of a text that begins with a unit."""
    found = UNIT.match(text)
    assert found is not None, "a unit does not begin with a space"
    return found.end()


class SplitText(NamedTuple):
    """The units of a text, where they are, and what is between them."""

    units: Units
    gaps: tuple[str, ...]
    starts: tuple[int, ...]
    """The position of each unit in the text."""

    @classmethod
    def of(cls, text: str, kept: Iterable[tuple[int, int]] = ()) -> SplitText:
        """The units of a text; units that touch one of the spans `kept`, in characters, become one that must stay."""
        places: list[tuple[int, int, bool]] = [(*found.span(), True) for found in UNIT.finditer(text)]
        for start, end in sorted(kept):
            touched = [place for place in places if place[0] < end and place[1] > start]
            if touched:
                first = places.index(touched[0])
                places[first : first + len(touched)] = [(touched[0][0], touched[-1][1], False)]
        ends = [0, *(end for _, end, _ in places)]
        gaps = [text[end:start] for end, start in zip(ends, [*(p[0] for p in places), len(text)], strict=True)]
        units = Units(tuple(text[start:end] for start, end, _ in places), tuple(free for *_, free in places))
        return cls(units, tuple(gaps), tuple(start for start, _, _ in places))

    def edited(self, pieces: Sequence[Piece]) -> tuple[str, list[int]]:
        """The edited text, and the start of each piece in it.

        If units were only replaced or moved, the spaces stay where they are. Otherwise a unit takes the space before it
        along.
        """
        if not pieces:
            return "", []
        texts = [piece.text for piece in pieces]
        if len(pieces) == len(self.units.texts) and not any(piece.inserted for piece in pieces):
            return _placed(texts, self.gaps)
        gaps = ["" if piece.inserted or not piece.source else self.gaps[piece.source] for piece in pieces]
        return _placed(texts, [self.gaps[0], *gaps[1:], self.gaps[-1]])
