"""Align words with sub-words: tokenise sentences word by word, and choose the sub-word that carries a word's label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pefttools.data.words import gaps
from pefttools.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOWHERE = -1
"""The sub-word index of a word without tokens: it was truncated, or the tokenizer drops it."""
PROBE = ("the", "cat")


def encode_words(
    sentences: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, max_length: int, last: bool = False
) -> dict[str, list[Any]]:
    """Columns `input_ids`, `token_type_ids` if the tokenizer has them, `places` (sub-word index of each word) and
    `cut`.

    Args:
        last: take a word's last sub-word, not its first.

    Raises:
        UserError: the tokenizer does not report the word of each sub-word.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} does not report the word of each sub-word;"
            " this task needs a base with a fast tokenizer (tokenizer.json)"
        )
    limit = min(max_length, tokenizer.model_max_length)
    spaced = spaces_matter(tokenizer)
    texts = [[gap + word for gap, word in zip(gaps(s), s, strict=True)] if spaced else list(s) for s in sentences]
    whole = tokenizer(texts, is_split_into_words=True, truncation=False, verbose=False)
    cut = [len(ids) > limit for ids in whole["input_ids"]]
    encoded = tokenizer(texts, is_split_into_words=True, truncation=True, max_length=limit) if any(cut) else whole
    columns = {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
    places = [places_of_words(encoded.word_ids(i), len(sentence), last) for i, sentence in enumerate(sentences)]
    return {**columns, "places": places, "cut": cut}


def places_of_words(word_ids: Sequence[int | None], number: int, last: bool = False) -> list[int]:
    """The index of every word's first (or last) sub-word; `NOWHERE` for a word without one."""
    places = [NOWHERE] * number
    for i, word in enumerate(word_ids):
        if word is not None and (last or places[word] == NOWHERE):
            places[word] = i
    return places


def spaces_matter(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether words need a leading space to be tokenised as in a running text (GPT-2, RoBERTa).

    Other tokenizers mark the start of a word themselves (BERT, Llama's SentencePiece).
    """

    def ids(text: Any, split: bool) -> list[int]:
        return tokenizer(text, is_split_into_words=split, add_special_tokens=False)["input_ids"]

    running, spaced = ids(" ".join(PROBE), False), ids([PROBE[0], *(f" {word}" for word in PROBE[1:])], True)
    return running != ids(list(PROBE), True) and running == spaced
