"""Split long texts into windows, and join short texts to full windows; every token is in exactly one window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Frame(NamedTuple):
    """The special tokens before and after a text."""

    before: list[int]
    after: list[int]

    @property
    def num_tokens(self) -> int:
        return len(self.before) + len(self.after)


class Piece(NamedTuple):
    """Tokens of a text without special tokens, and for each token the index of its word (-1 for none)."""

    ids: list[int]
    words: list[int]

    def part(self, start: int, stop: int) -> Piece:
        return Piece(self.ids[start:stop], self.words[start:stop])

    def framed(self, frame: Frame) -> Piece:
        """The piece with special tokens, which belong to no word."""
        return Piece(
            [*frame.before, *self.ids, *frame.after],
            [*[-1] * len(frame.before), *self.words, *[-1] * len(frame.after)],
        )


def frame(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """The special tokens that the tokenizer puts before and after a text."""
    inner: Any = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: Any = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(whole)) if whole[i : i + len(inner)] == inner)
    return Frame(whole[:start], whole[start + len(inner) :])


def pieces(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, with_masks: bool = False) -> list[Piece]:
    """The tokens of every text. Only fast tokenizers report words; otherwise each token counts as a word.

    Args:
        with_masks: whether to parse special tokens in the texts, such as masks to fill; else their spelling is plain
            text.
    """
    encoded: Any = tokenizer(list(texts), add_special_tokens=False, verbose=False, split_special_tokens=not with_masks)
    found = []
    for i, ids in enumerate(encoded["input_ids"]):
        words = encoded.word_ids(i) if tokenizer.is_fast else range(len(ids))
        found.append(Piece(list(ids), [-1 if word is None else word for word in words]))
    return found


def cut(piece: Piece, room: int) -> list[Piece]:
    """The text in the fewest windows of at most `room` tokens, all of about equal length."""
    number = max(1, -(-len(piece.ids) // room))
    edges = [round(i * len(piece.ids) / number) for i in range(number + 1)]
    return [piece.part(start, stop) for start, stop in pairwise(edges)]


def join(texts: Iterable[Piece], room: int, separator: Sequence[int]) -> Iterator[Piece]:
    """Yield windows of `room` tokens of the texts joined by a separator; the last window may be shorter."""
    buffer = Piece([], [])
    for piece in texts:
        between = separator if buffer.ids else ()
        first = max(buffer.words, default=-1) + 1
        shifted = [word if word < 0 else word + first for word in piece.words]
        buffer = Piece([*buffer.ids, *between, *piece.ids], [*buffer.words, *[-1] * len(between), *shifted])
        while len(buffer.ids) >= room:
            yield buffer.part(0, room)
            buffer = buffer.part(room, len(buffer.ids))
    if buffer.ids:
        yield buffer
