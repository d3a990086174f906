"""Edits that several augmentations make: swap words, delete words, replace words by synonyms, insert synonyms."""

from __future__ import annotations

import random
from collections.abc import Sequence

from pefttools.data.synonym_lists import Replaceable
from pefttools.data.units import Piece, Units, split, unchanged


def swapped(units: Units, number: int, draw: random.Random) -> list[Piece] | None:
    """Pieces with two random units swapped, that many times; None if there are not two that may be moved."""
    places = units.free_places
    if len(places) < 2:
        return None
    pieces = unchanged(units)
    for _ in range(number):
        first, second = draw.sample(places, 2)
        pieces[first], pieces[second] = pieces[second], pieces[first]
    return pieces


def deleted(units: Units, probability: float, draw: random.Random) -> list[Piece] | None:
    """Pieces without each unit with that probability; one of them always stays. None if nothing is deleted."""
    if len(units.texts) < 2:
        return None
    draws = [draw.random() for _ in units.texts]
    remaining = [place for place, is_free in enumerate(units.free) if draws[place] >= probability or not is_free]
    remaining = remaining or [draw.randrange(len(units.texts))]
    if len(remaining) == len(units.texts):
        return None
    return [Piece(units.texts[place], place) for place in remaining]


def replaced(units: Units, words: Sequence[Replaceable], number: int, draw: random.Random) -> list[Piece]:
    """Pieces with that many random words, or all if there are fewer, replaced by a synonym.

    Args:
        words: the words that have synonyms.
    """
    chosen = {word.start: word for word in draw.sample(words, min(number, len(words)))}
    pieces: list[Piece] = []
    place = 0
    while place < len(units.texts):
        word = chosen.get(place)
        pieces += (
            _written(word.in_place(draw.choice(word.synonyms)), word) if word else [Piece(units.texts[place], place)]
        )
        place = word.end if word else place + 1
    return pieces


def inserted(units: Units, words: Sequence[Replaceable], number: int, draw: random.Random) -> list[Piece]:
    """Pieces with that many synonyms of random words inserted at random places, but not inside a word of several units.

    Args:
        words: the words that have synonyms.
    """
    inside = {place for word in words for place in range(word.start + 1, word.end)}
    places = [place for place in range(len(units.texts) + 1) if place not in inside]
    before: dict[int, list[Piece]] = {}
    for _ in range(number):
        word = draw.choice(words)
        synonym = [piece._replace(inserted=True) for piece in _written(word.alone(draw.choice(word.synonyms)), word)]
        before.setdefault(draw.choice(places), []).extend(synonym)
    pieces = unchanged(units)
    return [piece for i in range(len(pieces) + 1) for piece in (*before.get(i, ()), *pieces[i : i + 1])]


def _written(text: str, word: Replaceable) -> list[Piece]:
    """The units of a synonym, in place of the word's; those beyond the word's number are inserted."""
    parts = split(text)[0]
    number = word.end - word.start
    return [Piece(part, word.start + min(i, number - 1), i >= number) for i, part in enumerate(parts)]
