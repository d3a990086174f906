"""A chat or plain text as tokens: which of them are learnt, which are lost when it is too long, and how both look.

Tokens are found through the offsets a tokenizer gives, so no text is put together from pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

from pefttools.data.chat import question
from pefttools.data.chat_messages import Message
from pefttools.data.chat_parts import joined
from pefttools.data.chat_template import Marked, chosen, marked, rendered
from pefttools.data.splitting import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
Cut = Literal["end", "start", "question"]
ANSWERED: list[Message] = [{"role": "user", "content": "well?"}, {"role": "assistant", "content": "yes"}]
"""A chat that every template takes."""


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
    chats = [
        marked(row["messages"], tokenizer, how.template, row.get("tools")) if "messages" in row else None
        for row in rows
    ]
    texts = [row["text"] if chat is None else chat.text for row, chat in zip(rows, chats, strict=True)]
    special, end = frozenset(tokenizer.all_special_ids), tokenizer.eos_token_id
    begins = [chat.begins if chat else [] for chat in chats]
    for number, (ids, offsets) in enumerate(tokens(texts, tokenizer, begins)):
        chat = chats[number]
        if chat is None:
            for window in windows([*ids, end] if end is not None else ids, how.room):  # type: ignore[list-item]
                yield Piece(number, window, [i > 0 for i in range(len(window))], cut=False)
            continue
        learnt, _ = supervised(chat, ids, offsets, special)
        asked = question(rows[number]["messages"])[-1]["content"]
        left = kept(offsets, how.room, how.cut, chat.text, asked)
        if how.learn_all:
            learnt = outside(offsets, [(a.begin, a.turn_end) for a in chat.answers if not a.learnt])
        kinds = [place > 0 and learnt[i] for place, i in enumerate(left)]
        yield Piece(number, [ids[i] for i in left], kinds, cut=len(left) < len(ids))


def unlearnt(made: Sequence[Piece], ends: Sequence[int], room: int) -> list[str]:
    """Warnings for the user: no end of text is learnt, or some rows teach nothing.

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
    tools = row.get("tools")
    messages = joined(messages, chosen(tokenizer, how.template, tools), tokenizer)
    said = rendered(messages, tokenizer, how.template, ask=True, tools=tools) if messages else row["text"]
    earlier = messages if any(message["role"] == "assistant" for message in messages) else []
    begins = marked(earlier, tokenizer, how.template, tools).begins if earlier else []
    ((ids, offsets),) = tokens([said], tokenizer, [begins])
    if messages and how.cut == "question":
        return [ids[i] for i in kept(offsets, how.room, how.cut, said, messages[-1]["content"])]
    return ids


def ends(tokenizer: PreTrainedTokenizerBase, template: str | None) -> list[int]:
    """The token that ends an answer; none where nothing special does."""
    chat = marked(ANSWERED, tokenizer, template)
    ((ids, offsets),) = tokens([chat.text], tokenizer)
    return supervised(chat, ids, offsets, frozenset(tokenizer.all_special_ids))[1][-1:]


def around(tokenizer: PreTrainedTokenizerBase, template: str | None) -> tuple[str, str]:
    """What a template writes itself before an answer's text, and between that text and the token that ends it."""
    chat = marked(ANSWERED, tokenizer, template)
    begin, content_end, turn_end, _ = chat.answers[-1]
    places = [chat.text.find(str(token), content_end, turn_end) for token in tokenizer.all_special_tokens]
    end = min((place for place in places if place >= 0), default=turn_end)
    return chat.text[begin : content_end - len(ANSWERED[-1]["content"])], chat.text[content_end:end]


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
    for begin, content_end, turn_end, is_learnt in chat.answers:
        if not is_learnt:
            continue
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


def outside(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Which tokens begin in none of some spans of the text."""
    return [not any(begin <= start < end for begin, end in spans) for start, _ in offsets]


def tokens(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    begins: Sequence[Sequence[int]] = (),
    spelled_is_text: bool = False,
) -> Iterator[tuple[list[int], list[Span]]]:
    """Token ids and offsets of texts that already hold their special tokens.

    Where the tokenizer puts a beginning-of-text token before every text, so does this, unless it is there.

    Args:
        begins: where in each text answers begin. No token is on both sides of such a place, as none is when a model
            goes on from there: a line break and the indentation of the answer after it may be one token elsewhere.
        spelled_is_text: whether the texts hold none, so that what looks like one is text.
    """
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_offsets_mapping=True,
        verbose=False,
        split_special_tokens=spelled_is_text,
    )
    first = tokenizer.bos_token_id
    has_first = first is not None and tokenizer("")["input_ids"][:1] == [first]
    for number, (ids, offsets) in enumerate(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)):
        if inside := [place for place in (begins[number] if begins else ()) if _straddled(place, offsets)]:
            ids, offsets = _divided(texts[number], inside, tokenizer) or (ids, offsets)
        if has_first and ids[:1] != [first]:
            ids, offsets = [first, *ids], [(0, 0), *offsets]
        yield ids, offsets


def _straddled(place: int, offsets: Sequence[Span]) -> bool:
    """Whether a token begins before a place of the text and ends after it."""
    return any(start < place < end for start, end in offsets)


def _divided(
    text: str, places: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[Span]] | None:
    """Token ids and offsets of the parts of a text; None where the tokenizer would put something between them."""
    edges = [0, *places, len(text)]
    parts = [text[start:end] for start, end in pairwise(edges)]
    encoded = tokenizer(parts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = [token for part in encoded["input_ids"] for token in part]
    whole = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if tokenizer.decode(ids) != tokenizer.decode(whole):
        return None
    spans = zip(edges, encoded["offset_mapping"], strict=False)
    return ids, [(start + edge, end + edge) for edge, offsets in spans for start, end in offsets]


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
    question = question if question in said else question.strip()  # a template may take the space around it away
    begin = said.rfind(question) if question in said else len(said)
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
