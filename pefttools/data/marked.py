"""Texts with two marked entities: check and normalise their markers, and truncate long texts around the entities.

The <e1>child</e1> was wrapped and bound into the <e2>cradle</e2>.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pefttools.data.units import SplitText

MARKERS = ("<e1>", "</e1>", "<e2>", "</e2>")
"""The spelling of markers in checked rows, and the tokens they become."""
OFFSETS = ("e1_start", "e1_end", "e2_start", "e2_end")
"""The fields with the entities' positions in a text without markers: characters, ends exclusive."""

DIRECTIONS = ("(e1,e2)", "(e2,e1)")
"""Endings of labels that give the direction of a relation."""


def canonical(text: str, markers: Sequence[str] = MARKERS) -> str:
    """The text with `markers` replaced by `MARKERS`, and no spaces inside of entities.

    Raises:
        ValueError: a marker is missing, repeated or in the wrong order; an entity is empty.
    """
    if foreign := [m for m in MARKERS if m not in markers and m in text]:
        raise ValueError(f"has {foreign[0]} in its text, which would be read as a marker")
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
    normalized = pieces[0]
    for marker, after in zip(pieces[1::2], pieces[2::2], strict=True):
        normalized = _joined(normalized, MARKERS[list(markers).index(marker)], after)
    for opens, closes in ((0, 1), (2, 3)):
        inside = normalized[normalized.index(MARKERS[opens]) : normalized.index(MARKERS[closes])]
        if not _bare(inside).strip():
            raise ValueError(f"has nothing between {markers[opens]} and {markers[closes]}")
    return normalized.strip()


def _joined(before: str, marker: str, after: str) -> str:
    """Join both sides of a marker, with spaces moved outside of the entity.

    A space that is only inside is dropped (`elements </e2>.`), unless a letter follows outside (`elements </e2>are`).
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
    """The text with markers at the four `OFFSETS`.

    Raises:
        ValueError: an offset is not a number or outside of the text; or `canonical` rejects the text.
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
        raise ValueError(
            f"marks its entities twice: by {found[0]!r} in the text, and by offsets in columns; keep only one of them"
        )
    spans = (numbers[:2], numbers[2:])
    for entity, (start, end) in enumerate(spans, 1):
        if start >= end:
            raise ValueError(f"has an e{entity}_end of {end}, not after its e{entity}_start of {start}")
    # at one position, ends come before starts; the inner of two ends comes first, and the outer of two starts
    closes = [(end, 0, -start, -i, MARKERS[2 * i + 1]) for i, (start, end) in enumerate(spans)]
    opens = [(start, 1, -end, i, MARKERS[2 * i]) for i, (start, end) in enumerate(spans)]
    for place, *_, marker in sorted(closes + opens, reverse=True):
        text = text[:place] + marker + text[place:]
    return canonical(text)


def split_around_entities(text: str) -> SplitText:
    """The units of a text with `MARKERS` for an edit; an entity with its markers is one unit that is not free."""
    places = [(text.index(MARKERS[i]), text.index(MARKERS[i + 1]) + len(MARKERS[i + 1])) for i in (0, 2)]
    return SplitText.of(text, places)


def reversed_label(label: str) -> str | None:
    """The label of the opposite direction, `(e2,e1)` for `(e1,e2)`; None if the label has no direction."""
    for one, other in (DIRECTIONS, DIRECTIONS[::-1]):
        if label.endswith(one):
            return label.removesuffix(one) + other
    return None


def for_tokens(text: str) -> str:
    """The text with the space before an entity moved inside, so that its words have the same tokens as elsewhere."""
    return re.sub(" ((?:<e[12]>)+)", r"\1 ", text)


def positions_around(ids: Sequence[int], fixed: Sequence[int], markers: Sequence[int], limit: int) -> list[int]:
    """Positions of at most `limit` tokens to keep: the entities if they fit, then the tokens nearest to them.

    If everything from the first marker to the last fits, it is kept; else both entities; else the tokens next to the
    markers.

    Args:
        fixed: 1 for special tokens, which are always kept, 0 for others.
        markers: the ids of the markers, each of them once in `ids`.

    Raises:
        ValueError: not even the markers fit.
    """
    at = [ids.index(marker) for marker in markers]
    for spans in ([(min(at), max(at))], [(at[0], at[1]), (at[2], at[3])], [(place, place) for place in at]):
        distances = [
            -1 if fixed[i] else min(max(first - i, i - last, 0) for first, last in spans) for i in range(len(ids))
        ]
        if sum(distance <= 0 for distance in distances) <= limit:
            return sorted(sorted(range(len(ids)), key=distances.__getitem__)[:limit])
    raise ValueError(f"{limit} tokens have no room for {len(at)} markers")
