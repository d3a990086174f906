"""A chat's text as tokens: which of them are learnt, which are lost when it is too long, and how both look.

Tokens are found through the offsets a tokenizer gives, so no text is put together from pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from pefttools.data.chat import Marked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
Cut = Literal["end", "start", "question"]


def supervised(
    chat: Marked, ids: Sequence[int], offsets: Sequence[Span], special: frozenset[int]
) -> tuple[list[bool], list[int]]:
    """Which tokens are learnt: each answer's, with the first special token after it, which ends it.

    The line break many templates write after that token is none of the model's; where a template ends an answer
    with no special token, all that it writes after it is learnt.

    Returns:
        One bool a token, and the token that ends each answer, where there is one.
    """
    learnt, ends = [False] * len(ids), []
    for begin, content_end, turn_end in chat.answers:
        for i, (start, end) in enumerate(offsets):
            token = chat.text[start:end]
            start += len(token) - len(token.lstrip() or token)  # the space before a word may be part of it
            if start < begin or end > turn_end or (not token and ids[i] not in special):
                continue
            learnt[i] = True
            if start >= content_end and ids[i] in special:
                ends.append(ids[i])
                break
    return learnt, ends


def tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[list[int], list[Span]]]:
    """Token ids and offsets of texts that already hold their special tokens.

    Where the tokenizer puts a beginning-of-text token before every text, so does this, unless it is there.
    """
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    first = tokenizer.bos_token_id
    begins = first is not None and tokenizer("")["input_ids"][:1] == [first]
    for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if begins and ids[:1] != [first]:
            ids, offsets = [first, *ids], [(0, 0), *offsets]
        yield ids, offsets


def kept(offsets: Sequence[Span], room: int, cut: Cut, said: str, question: str) -> Sequence[int]:
    """Which tokens are left of a text that must fit into `room`.

    Args:
        cut: what is lost: the end, the start, or the end of the question.
        question: a part of `said`; of several places the last.
    """
    number = len(offsets)
    if number <= room or cut == "end":
        return range(min(number, room))
    if cut == "start":
        return range(number - room, number)
    begin = said.rfind(question)
    asked = [i for i, (start, end) in enumerate(offsets) if begin <= start < end <= begin + len(question)]
    dropped = {*asked[-(number - room) :]}
    return [i for i in range(number) if i not in dropped][:room]


def windows(ids: Sequence[int], room: int) -> list[list[int]]:
    """A text in pieces of at most `room` tokens, each beginning with the last token of the one before it.

    So every token but the first has one before it that it can be told from.
    """
    return [list(ids[start : start + room]) for start in range(0, max(1, len(ids) - 1), room - 1)]


def shown(ids: Sequence[int], learnt: Sequence[bool], tokenizer: PreTrainedTokenizerBase) -> str:
    """Tokens as text, what is learnt of it between ⟦ and ⟧."""
    parts = []
    for is_learnt, group in groupby(zip(ids, learnt, strict=True), key=lambda pair: pair[1]):
        said = str(tokenizer.decode([token for token, _ in group]))
        parts.append(f"⟦{said}⟧" if is_learnt else said)
    return "".join(parts)
