"""typos: misspell each word with the same probability, by one slip of the hand.

A slip is one of four: a letter becomes its neighbour on the QWERTY keyboard (the noise "Key" of Belinkov & Bisk 2018),
two adjacent letters are swapped, a letter is left out, or doubled; most misspellings are one such change (Damerau
1964). Capitals stay where they were. Only letters a to z have neighbours. Chinese and Japanese typos are characters
that sound or look alike, which would need a list of them; here a character is swapped with the next one, left out, or
doubled, which are slips of the hand in these scripts too.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from pydantic import Field

from pefttools.augmentations.base import WordAugmentation
from pefttools.data.units import Piece, Units, unchanged
from pefttools.data.words import IS_CJK

ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def _neighbours() -> dict[str, str]:
    """Letter -> the letters next to it; a row of keys is shifted to the right by half a key against the one above."""
    places = {letter: (i, row) for row, letters in enumerate(ROWS) for i, letter in enumerate(letters)}
    near = {(1, 0), (-1, 0), (0, 1), (-1, 1), (0, -1), (1, -1)}
    return {
        letter: "".join(other for other, (j, below) in places.items() if (j - i, below - row) in near)
        for letter, (i, row) in places.items()
    }


NEIGHBOURS = _neighbours()


class Typos(WordAugmentation):
    """Settings of typos: their probability."""

    probability: float = Field(default=0.1, gt=0, le=1)
    """Probability that a word, or a Chinese or Japanese character, has a typo."""

    def edit(self, units: Units, draw: random.Random) -> list[Piece] | None:
        pieces = unchanged(units)
        found: list[Piece] = []
        place = 0
        while place < len(pieces):
            piece = pieces[place]
            if draw.random() < self.probability and units.free[place]:
                if len(piece.text) > 1 or not IS_CJK.match(piece.text):
                    piece = piece._replace(text=misspelt(piece.text, draw))
                else:
                    following = place + 1 < len(pieces) and units.free[place + 1] and pieces[place + 1]
                    typed = _mistyped(piece, following or None, len(pieces) > 1, draw)
                    found += typed
                    place += 2 if following and following in typed else 1
                    continue
            found.append(piece)
            place += 1
        return None if found == pieces or not found else found  # a text whose characters were all dropped stays


def _mistyped(piece: Piece, following: Piece | None, may_drop: bool, draw: random.Random) -> list[Piece]:
    """The pieces for a Chinese or Japanese character with a typo; `following` is among them if it was swapped."""
    if not piece.text[0].isalnum():
        return [piece]
    options = [[piece, piece._replace(inserted=True)]]
    if following and IS_CJK.match(following.text) and following.text[0].isalnum() and following.text != piece.text:
        options.append([following, piece])
    if may_drop:
        options.append([])
    return draw.choice(options)


def misspelt(word: str, draw: random.Random) -> str:
    """The word with one typo; unchanged if it has no letter that can be misspelt."""
    letters = [place for place, letter in enumerate(word) if letter.isalpha()]
    pairs = [p for p in letters if p + 1 in letters and word[p].lower() != word[p + 1].lower()]
    slips: list[tuple[Callable[[str, int, random.Random], str], list[int]]] = [
        (_slipped, [place for place in letters if word[place].lower() in NEIGHBOURS]),
        (_doubled, letters),
        (_dropped, letters if len(letters) > 1 else []),
        (_transposed, pairs),
    ]
    if not (possible := [(slip, places) for slip, places in slips if places]):
        return word
    slip, places = draw.choice(possible)
    return slip(word, draw.choice(places), draw)


def _slipped(word: str, place: int, draw: random.Random) -> str:
    return word[:place] + _in_case(draw.choice(NEIGHBOURS[word[place].lower()]), word[place]) + word[place + 1 :]


def _doubled(word: str, place: int, draw: random.Random) -> str:
    del draw
    following = word[place + 1 : place + 2]
    second = _in_case(word[place], following if following.isalpha() else word[place])  # Tthe, but TTV
    return word[: place + 1] + second + word[place + 1 :]


def _dropped(word: str, place: int, draw: random.Random) -> str:
    del draw
    following = word[place + 1 : place + 2]
    kept = _in_case(following, word[place]) if word[place].isupper() else following  # The becomes He
    return word[:place] + kept + word[place + 2 :]


def _transposed(word: str, place: int, draw: random.Random) -> str:
    del draw
    first, second = word[place : place + 2]
    return word[:place] + _in_case(second, first) + _in_case(first, second) + word[place + 2 :]


def _in_case(letter: str, of: str) -> str:
    """The letter in the case of the other one."""
    return letter.upper() if of.isupper() else letter.lower() if of.islower() else letter
