"""Tokens joined to the words that they are parts of, for reading."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTINUES = "##"
"""The first characters of a WordPiece token that continues a word."""
SPACES = ("Ġ", "▁")
"""The first character of a token after a space, of byte-level and of SentencePiece tokenizers."""
WITHOUT_SPACES = (("\u2e80", "\u9fff"), ("\uac00", "\ud7a3"), ("\uf900", "\ufaff"), ("\U00020000", "\U0003ffff"))
"""The first and the last characters of scripts whose characters are words of their own here."""


class Word(NamedTuple):
    """A word of a sequence of tokens."""

    text: str
    first: int
    end: int
    """The tokens from `first` up to `end`, which is not included."""
    is_special: bool


def words(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[Word]:
    """The words of a sequence, in order; each special token is a word of its own."""
    special = {*tokenizer.all_special_ids}
    tokens = [str(token) for token in tokenizer.convert_ids_to_tokens([*ids])]
    has_spaces = any(token.startswith(SPACES) for token in tokens)
    starts = [
        i
        for i, token in enumerate(tokens)
        if not i
        or ids[i] in special
        or ids[i - 1] in special
        or _begins(token, str(tokenizer.decode([ids[i]])), str(tokenizer.decode([ids[i - 1]])), has_spaces)
    ]
    found = []
    for first, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        text = str(tokenizer.decode([*ids[first:end]], clean_up_tokenization_spaces=False))
        found.append(Word(text.removeprefix(CONTINUES).strip() or text, first, end, ids[first] in special))
    return found


def _begins(token: str, text: str, before: str, has_spaces: bool) -> bool:
    """Whether a token begins a word.

    Args:
        text: the token's text.
        before: the text of the token before it.
        has_spaces: whether the tokenizer marks tokens after spaces.
    """
    if token.startswith(CONTINUES):
        return False
    if not has_spaces or token.startswith(SPACES):
        return True
    here, there = text.strip(), before.strip()
    if _is_alone(here) or _is_alone(there):
        return True
    return here[:1].isalnum() != there[-1:].isalnum() and "\ufffd" not in here + there


def _is_alone(text: str) -> bool:
    return any(low <= text[:1] <= high for low, high in WITHOUT_SPACES if text)
