"""Long texts cut into windows a model takes, short ones joined into full ones, every token kept once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Frame(NamedTuple):
    """The special tokens around every text."""

    before: list[int]
    after: list[int]

    @property
    def num_tokens(self) -> int:
        return len(self.before) + len(self.after)


class Piece(NamedTuple):
    """Tokens of a text without the special ones, and for each the number of its word (-1 where there is none)."""

    ids: list[int]
    words: list[int]

    def part(self, start: int, stop: int) -> Piece:
        return Piece(self.ids[start:stop], self.words[start:stop])

    def framed(self, frame: Frame) -> Piece:
        """With the special tokens, which belong to no word."""
        return Piece(
            [*frame.before, *self.ids, *frame.after],
            [*[-1] * len(frame.before), *self.words, *[-1] * len(frame.after)],
        )


def frame(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """What the tokenizer puts before and after one text."""
    inner: Any = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: Any = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(whole)) if whole[i : i + len(inner)] == inner)
    return Frame(whole[:start], whole[start + len(inner) :])


def pieces(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, with_masks: bool = False) -> list[Piece]:
    """The tokens of every text. Words are known to fast tokenizers only; of others each token is one.

    Args:
        with_masks: whether a mask token in a text is to be filled; else a special token that a text spells is text.
    """
    encoded: Any = tokenizer(list(texts), add_special_tokens=False, verbose=False, split_special_tokens=not with_masks)
    found = []
    for i, ids in enumerate(encoded["input_ids"]):
        words = encoded.word_ids(i) if tokenizer.is_fast else range(len(ids))
        found.append(Piece(list(ids), [-1 if word is None else word for word in words]))
    return found


def cut(piece: Piece, room: int) -> list[Piece]:
    """The text in as few windows of at most `room` tokens as will do, all about as long."""
    number = max(1, -(-len(piece.ids) // room))
    edges = [round(i * len(piece.ids) / number) for i in range(number + 1)]
    return [piece.part(start, stop) for start, stop in pairwise(edges)]


def join(texts: Iterable[Piece], room: int, separator: Sequence[int]) -> Iterator[Piece]:
    """Windows of `room` tokens, the last one shorter: the texts one after another with a separator between them."""
    held = Piece([], [])
    for piece in texts:
        between = separator if held.ids else ()
        first = max(held.words, default=-1) + 1
        moved = [word if word < 0 else word + first for word in piece.words]
        held = Piece([*held.ids, *between, *piece.ids], [*held.words, *[-1] * len(between), *moved])
        while len(held.ids) >= room:
            yield held.part(0, room)
            held = held.part(room, len(held.ids))
    if held.ids:
        yield held
