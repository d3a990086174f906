"""Texts with two marked entities: their markers checked and written one way, and what to keep of a text too long.

The <e1>child</e1> was wrapped and bound into the <e2>cradle</e2>.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

MARKERS = ("<e1>", "</e1>", "<e2>", "</e2>")
"""How markers are written in checked rows, and the tokens they become."""
OFFSETS = ("e1_start", "e1_end", "e2_start", "e2_end")
"""The fields that say where the entities are in a text without markers: characters, the end not included."""

DIRECTIONS = ("(e1,e2)", "(e2,e1)")
"""What a label ends with where it says which entity comes first in its relation."""


def canonical(text: str, markers: Sequence[str] = MARKERS) -> str:
    """The text with `MARKERS` for these, and no spaces inside of them.

    Raises:
        ValueError: a marker is missing, there twice, or on the wrong side of another; an entity is empty.
    """
    if foreign := [m for m in MARKERS if m not in markers and m in text]:
        raise ValueError(f"has {foreign[0]} in its text; it would be taken for a marker")
    for marker in markers:
        if (number := text.count(marker)) != 1:
            raise ValueError(f"has no marker {marker}" if not number else f"has the marker {marker} {number} times")
    places = [text.index(marker) for marker in markers]
    for opens, closes in ((0, 1), (2, 3)):
        if places[closes] < places[opens]:
            raise ValueError(f"has {markers[closes]} before {markers[opens]}")
    (a, b), (c, d) = places[:2], places[2:]
    if a < c < b < d or c < a < d < b:
        raise ValueError(
            f"has entities that cross: {' … '.join(m for _, m in sorted(zip(places, markers, strict=True)))}"
        )
    pieces = re.split(f"({'|'.join(map(re.escape, markers))})", text)
    written = pieces[0]
    for given, after in zip(pieces[1::2], pieces[2::2], strict=True):
        written = _joined(written, MARKERS[list(markers).index(given)], after)
    for opens, closes in ((0, 1), (2, 3)):
        inside = written[written.index(MARKERS[opens]) : written.index(MARKERS[closes])]
        if not _bare(inside).strip():
            raise ValueError(f"has nothing between {markers[opens]} and {markers[closes]}")
    return written.strip()


def _joined(before: str, marker: str, after: str) -> str:
    """Both sides of a marker, the spaces about it put outside of the entity.

    A space inside only is the annotator's (`elements </e2>.`) unless a letter is outside (`elements </e2>are`).
    """
    if marker in (MARKERS[0], MARKERS[2]):
        bare = before.rstrip()
        spaced = before != bare or (after[:1].isspace() and bare[-1:].isalnum())
        outside = " " if spaced and bare and not bare.endswith((MARKERS[0], MARKERS[2])) else ""
        return f"{bare}{outside}{marker}{after.lstrip()}"
    outside = " " if before[-1:].isspace() and after[:1].isalnum() else ""
    return f"{before.rstrip()}{marker}{outside}{after}"


def _bare(text: str) -> str:
    return re.sub("|".join(map(re.escape, MARKERS)), "", text)


def from_offsets(text: str, values: Sequence[Any]) -> str:
    """The text with markers where the four `OFFSETS` say.

    Raises:
        ValueError: an offset is no number or not in the text; what `canonical` refuses.
    """
    numbers = []
    for name, value in zip(OFFSETS, values, strict=True):
        try:
            number = int(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"has a {name} that is not a number: {value!r}") from error
        if number != (float(value) if isinstance(value, float) else number) or not 0 <= number <= len(text):
            raise ValueError(f"has a {name} of {value!r} in a text of {len(text)} characters")
        numbers.append(number)
    if found := [m for m in MARKERS if m in text]:
        raise ValueError(f"has both {found[0]} in its text and offsets; give only one of them")
    spans = (numbers[:2], numbers[2:])
    for entity, (start, end) in enumerate(spans, 1):
        if start >= end:
            raise ValueError(f"has an e{entity}_end of {end}, not behind its e{entity}_start of {start}")
    # at one place what ends comes before what begins; of two ends the inner first, of two starts the outer
    closes = [(end, 0, -start, -i, MARKERS[2 * i + 1]) for i, (start, end) in enumerate(spans)]
    opens = [(start, 1, -end, i, MARKERS[2 * i]) for i, (start, end) in enumerate(spans)]
    for place, *_, marker in sorted(closes + opens, reverse=True):
        text = text[:place] + marker + text[place:]
    return canonical(text)


def turned(label: str) -> str | None:
    """A label of the other direction, `(e2,e1)` for `(e1,e2)`; None where the label says none."""
    for one, other in (DIRECTIONS, DIRECTIONS[::-1]):
        if label.endswith(one):
            return label.removesuffix(one) + other
    return None


def for_tokens(text: str) -> str:
    """The text with the space before an entity inside of it, so that its words are the tokens they are elsewhere."""
    return re.sub(" ((?:<e[12]>)+)", r"\1 ", text)


def positions_around(ids: Sequence[int], fixed: Sequence[int], markers: Sequence[int], limit: int) -> list[int]:
    """Positions of at most `limit` tokens: as much as fits of the entities, then of what lies nearest to them.

    All from the first marker to the last where that fits; else both entities; else what is next to the markers.

    Args:
        fixed: 1 for tokens that must stay (the tokenizer's own), 0 for others.
        markers: the ids of the markers, each of them once in `ids`.

    Raises:
        ValueError: not even the markers fit.
    """
    at = [ids.index(marker) for marker in markers]
    for spans in ([(min(at), max(at))], [(at[0], at[1]), (at[2], at[3])], [(place, place) for place in at]):
        away = [-1 if fixed[i] else min(max(first - i, i - last, 0) for first, last in spans) for i in range(len(ids))]
        if sum(distance <= 0 for distance in away) <= limit:
            return sorted(sorted(range(len(ids)), key=away.__getitem__)[:limit])
    raise ValueError(f"{limit} tokens have no room for {len(at)} markers")
