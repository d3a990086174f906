"""Cut texts into pairs of neighbouring parts, and find a part of another text for each pair (Devlin et al. 2019).

Parts begin and end with sentences where the text allows it, so that neither the length of a part nor its last word
tells which text it is from.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pefttools.data.windows import Piece, cut, pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’»)\]]*\s+|(?<=[。！？])[”’」』）]*|\s*\n+\s*")
"""The end of a sentence in Latin, Chinese or Japanese script; the dot of an abbreviation counts too."""
NOTHING = Piece([], [])


class PairFrame(NamedTuple):
    """The special tokens around the two parts of a pair, and the type of every token."""

    before: list[int]
    between: list[int]
    after: list[int]
    types: tuple[int, int, int, int, int]
    """Token types of: `before`, the first part, `between`, the second part, `after`."""

    @property
    def num_tokens(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)

    def framed(self, first: Piece, second: Piece) -> tuple[Piece, list[int]]:
        """The pair as one piece, and its token types; without a second part, the first one alone."""
        inner = (self.between, second.ids) if second.ids else ((), ())
        lengths = (len(self.before), len(first.ids), *map(len, inner), len(self.after))
        last = self.types if second.ids else (*self.types[:4], self.types[1])
        shift = max(first.words, default=-1) + 1
        words = [word if word < 0 else word + shift for word in second.words]
        edges = [[-1] * number for number in (lengths[0], lengths[2], lengths[4])]
        piece = Piece(
            [*self.before, *first.ids, *inner[0], *inner[1], *self.after],
            [*edges[0], *first.words, *edges[1], *words, *edges[2]],
        )
        return piece, [kind for kind, number in zip(last, lengths, strict=True) for _ in range(number)]


class Pair(NamedTuple):
    """A text's window in two parts; `second` is empty if the text has one word only."""

    row: int
    first: Piece
    second: Piece
    other: Piece
    """The second part of another text; empty if all texts are equal."""


def pair_frame(tokenizer: PreTrainedTokenizerBase) -> PairFrame:
    """The special tokens that the tokenizer puts around a pair of texts."""
    inner: Any = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: Any = tokenizer("a", "a", return_token_type_ids=True)
    ids, types, width = whole["input_ids"], whole["token_type_ids"], len(inner)
    first, second = [i for i in range(len(ids)) if ids[i : i + width] == inner][:2]
    places = (0, first, first + width, second, len(ids) - 1)
    kinds = tuple(types[place] for place in places)
    return PairFrame(ids[:first], ids[first + width : second], ids[second + width :], kinds)  # type: ignore[arg-type]


def sentences(text: str) -> list[str]:
    """The sentences of a text, which together contain every word of it."""
    ends = [found.end() for found in SENTENCE_END.finditer(text)]
    parts = [text[start:stop] for start, stop in zip([0, *ends], [*ends, len(text)], strict=True)]
    return [part for part in parts if part.strip()]


def pairs(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, room: int) -> list[Pair]:
    """The pairs of every text, each of at most `room` tokens without special tokens.

    A text longer than `room` becomes several pairs, so that every token is in exactly one.
    """
    split = [sentences(text) for text in texts]
    flat = iter(pieces([sentence for group in split for sentence in group], tokenizer))
    halves = [
        [_halved(window) for window in _packed([next(flat) for _ in group], room)] for group in split
    ]  # by text, for every window: the units of its first part, and those of its second part
    found = []
    for row, group in enumerate(halves):
        for first, second in group:
            part = _joined(first)
            others = _other(row, part, texts, halves) if second else ()
            found.append(Pair(row, part, _joined(second), _fitting(others, room - len(part.ids))))
    return found


def _packed(units: Sequence[Piece], room: int) -> Iterator[list[Piece]]:
    """Yield windows of whole sentences of at most `room` tokens; sentences longer than half of it are cut."""
    window: list[Piece] = []
    for sentence in units:
        for unit in cut(sentence, max(1, room // 2)):
            if window and sum(len(part.ids) for part in window) + len(unit.ids) > room:
                yield window
                window = []
            window.append(unit)
    if window:
        yield window


def _halved(window: Sequence[Piece]) -> tuple[list[Piece], list[Piece]]:
    """The window in two parts at the end of a sentence, or of a word if it is one sentence, nearest to the middle."""
    total = sum(len(unit.ids) for unit in window)
    if len(window) > 1:
        sizes = [sum(len(unit.ids) for unit in window[:place]) for place in range(1, len(window))]
        place = min(range(len(sizes)), key=lambda i: abs(sizes[i] - total / 2)) + 1
        return list(window[:place]), list(window[place:])
    (unit,) = window
    starts = [i for i in range(1, total) if unit.words[i] != unit.words[i - 1] or unit.words[i] < 0]
    if not starts:
        return [unit], []
    middle = min(starts, key=lambda i: abs(i - total / 2))
    return [unit.part(0, middle)], [unit.part(middle, total)]


def _other(
    row: int, part: Piece, texts: Sequence[str], halves: Sequence[Sequence[tuple[list[Piece], list[Piece]]]]
) -> Sequence[Piece]:
    """The second part of a pair of another text, which a hash of the first part selects."""
    draw = int.from_bytes(hashlib.sha256(f"{part.ids}".encode()).digest()[:7], "big")
    for step in range(len(texts) - 1):
        other = (row + 1 + (draw + step) % (len(texts) - 1)) % len(texts)
        seconds = [second for _, second in halves[other] if second]
        if seconds and texts[other] != texts[row]:
            return seconds[draw % len(seconds)]
    return ()


def _fitting(units: Sequence[Piece], room: int) -> Piece:
    """The first units that fit in `room` tokens together, and at least the start of the first one."""
    number, length = 0, 0
    while number < len(units) and length + len(units[number].ids) <= room:
        length += len(units[number].ids)
        number += 1
    return _joined(units[:number]) if number or not units else units[0].part(0, room)


def _joined(units: Sequence[Piece]) -> Piece:
    joined = NOTHING
    for unit in units:
        shift = max(joined.words, default=-1) + 1
        words = [word if word < 0 else word + shift for word in unit.words]
        joined = Piece([*joined.ids, *unit.ids], [*joined.words, *words])
    return joined
