"""A chat or plain text as tokens: which of them are learnt, which are lost when it is too long, and how both look.

Tokens are found through the offsets a tokenizer gives, so no text is put together from pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Literal, NamedTuple

from pefttools.data.chat import Message, question
from pefttools.data.chat_template import Marked, marked, rendered
from pefttools.data.splitting import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
Cut = Literal["end", "start", "question"]


class Writing(NamedTuple):
    """How rows become tokens."""

    template: str | None
    """Of chats; the tokenizer's own when None."""
    room: int
    """Tokens that a chat, or a window of plain text, may have."""
    cut: Cut
    """What a chat that is too long loses."""
    learn_all: bool
    """Whether all of a chat is learnt, not its answers alone."""


class Piece(NamedTuple):
    """A chat, or a window of plain text."""

    row: int
    """The index of the row it is of."""
    ids: list[int]
    learnt: list[bool]
    """One a token; never the first, before which nothing comes."""
    cut: bool
    """Whether tokens of the chat were lost."""


def pieces(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, how: Writing) -> Iterator[Piece]:
    """Rows as tokens: a chat as one piece, plain text, with its end, in windows."""
    chats = [marked(row["messages"], tokenizer, how.template) if "messages" in row else None for row in rows]
    texts = [row["text"] if chat is None else chat.text for row, chat in zip(rows, chats, strict=True)]
    special, end = frozenset(tokenizer.all_special_ids), tokenizer.eos_token_id
    for number, (ids, offsets) in enumerate(tokens(texts, tokenizer)):
        chat = chats[number]
        if chat is None:
            for window in windows([*ids, end] if end is not None else ids, how.room):  # type: ignore[list-item]
                yield Piece(number, window, [i > 0 for i in range(len(window))], cut=False)
            continue
        learnt, _ = supervised(chat, ids, offsets, special)
        asked = question(rows[number]["messages"])[-1]["content"]
        left = kept(offsets, how.room, how.cut, chat.text, asked)
        chosen = [place > 0 and (how.learn_all or learnt[i]) for place, i in enumerate(left)]
        yield Piece(number, [ids[i] for i in left], chosen, cut=len(left) < len(ids))


def unlearnt(made: Sequence[Piece], ends: Sequence[int], room: int) -> list[str]:
    """What the user should be warned of: that no end is learnt, or nothing of some rows.

    Args:
        ends: the tokens that end what is learnt.
    """
    said = []
    if not ends:
        said.append(
            "no end of text is learnt: the chat template writes no special token after an answer, so answers will"
            " run on to task.max_new_tokens; give a task.chat_template that ends answers with {{ eos_token }}"
        )
    elif not any(i in ends for piece in made for i, one in zip(piece.ids, piece.learnt, strict=True) if one):
        said.append(
            f"no end of text is learnt: no row is short enough to hold the end of its answer within"
            f" {room} tokens; raise task.max_length, or set task.cut"
        )
    if idle := sum(not any(piece.learnt) for piece in made):
        said.append(
            f"{idle} of {len({piece.row for piece in made})} rows are cut before their answer begins and teach nothing;"
            " raise task.max_length, or set task.cut=question"
        )
    return said


def prompt(row: Row, tokenizer: PreTrainedTokenizerBase, how: Writing) -> list[int]:
    """Token ids up to where the row's answer begins."""
    messages = question(row["messages"]) if "messages" in row else []
    said = rendered(messages, tokenizer, how.template, ask=True) if messages else row["text"]
    ((ids, offsets),) = tokens([said], tokenizer)
    if messages and how.cut == "question":
        return [ids[i] for i in kept(offsets, how.room, how.cut, said, messages[-1]["content"])]
    return ids


def ends(tokenizer: PreTrainedTokenizerBase, template: str | None) -> list[int]:
    """The token that ends an answer; none where nothing special does."""
    messages: list[Message] = [{"role": "user", "content": "well?"}, {"role": "assistant", "content": "yes"}]
    chat = marked(messages, tokenizer, template)
    ((ids, offsets),) = tokens([chat.text], tokenizer)
    return supervised(chat, ids, offsets, frozenset(tokenizer.all_special_ids))[1][-1:]


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
