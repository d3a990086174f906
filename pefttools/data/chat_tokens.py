"""Tokenise chats and plain texts: select the tokens to train on, and truncate what is too long.

Tokens are located by the tokenizer's offsets, so texts are never assembled from pieces.
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
from pefttools.reporter import Finding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
Cut = Literal["end", "start", "question"]
ANSWERED: list[Message] = [{"role": "user", "content": "well?"}, {"role": "assistant", "content": "yes"}]
"""A chat that every template accepts."""


class Writing(NamedTuple):
    """Settings for converting rows to tokens."""

    template: str | None
    """The chat template; the tokenizer's own when None."""
    room: int
    """Maximum tokens of a chat, or of a window of plain text."""
    cut: Cut
    """The part that a chat that is too long loses."""
    learn_all: bool
    """Whether to train on all tokens of a chat, not only on its answers."""


class Piece(NamedTuple):
    """A chat, or a window of plain text."""

    row: int
    """The index of its row."""
    ids: list[int]
    learnt: list[bool]
    """Per token, whether it is a target; the first token never is, since nothing precedes it."""
    cut: bool
    """Whether tokens of the chat were truncated."""


def pieces(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, how: Writing) -> Iterator[Piece]:
    """Yield rows as tokens: a chat as one piece, plain text with an end token in windows."""
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
        last_question = question(rows[number]["messages"])[-1]["content"]
        remaining = _remaining(offsets, how.room, how.cut, chat.text, last_question)
        if how.learn_all:
            learnt = outside(offsets, [(a.begin, a.turn_end) for a in chat.answers if not a.learnt])
        targets = [place > 0 and learnt[i] for place, i in enumerate(remaining)]
        yield Piece(number, [ids[i] for i in remaining], targets, cut=len(remaining) < len(ids))


def training_warnings(pieces_of_rows: Sequence[Piece], ends: Sequence[int], room: int) -> list[str]:
    """Warnings for the user: no end token is trained on, or some rows have no targets.

    Args:
        ends: the tokens that end a target.
    """
    warnings: list[str] = []
    number = len({piece.row for piece in pieces_of_rows})
    if not ends:
        warnings.append(
            Finding(
                "no supervised end token",
                "the model does not learn to end answers: the chat template writes no special token after them, so"
                " they will run to task.max_new_tokens; set a task.chat_template that ends answers with"
                " {{ eos_token }}",
                f"0 of {number} rows have an end token",
                "pefttools train RECIPE task.chat_template=TEMPLATE_FILE",
            )
        )
    elif not any(i in ends for piece in pieces_of_rows for i, one in zip(piece.ids, piece.learnt, strict=True) if one):
        warnings.append(
            Finding(
                "no supervised end token",
                "the model does not learn to end answers: in every row the end of the answer is beyond"
                f" {room} tokens; raise task.max_length, or set task.cut",
                f"0 of {number} rows have their end token among the targets",
                f"pefttools train RECIPE task.max_length={2 * room}",
            )
        )
    if idle := sum(not any(piece.learnt) for piece in pieces_of_rows):
        warnings.append(
            Finding(
                "rows cut before their answer",
                f"{idle} of {number} rows are truncated before their answer begins; raise task.max_length, or set"
                " task.cut=question",
                f"{idle / number:.1%} of the rows have no target within {room} tokens",
                f"pefttools train RECIPE task.max_length={2 * room}",
            )
        )
    return warnings


def prompt(row: Row, tokenizer: PreTrainedTokenizerBase, how: Writing) -> list[int]:
    """Token ids of the row up to the start of its answer."""
    messages = question(row["messages"]) if "messages" in row else []
    tools = row.get("tools")
    messages = joined(messages, chosen(tokenizer, how.template, tools), tokenizer)
    text = rendered(messages, tokenizer, how.template, ask=True, tools=tools) if messages else row["text"]
    earlier = messages if any(message["role"] == "assistant" for message in messages) else []
    begins = marked(earlier, tokenizer, how.template, tools).begins if earlier else []
    ((ids, offsets),) = tokens([text], tokenizer, [begins])
    if messages and how.cut == "question":
        return [ids[i] for i in _remaining(offsets, how.room, how.cut, text, messages[-1]["content"])]
    return ids


def ends(tokenizer: PreTrainedTokenizerBase, template: str | None) -> list[int]:
    """The token that ends an answer; empty if the template writes no special token after it."""
    chat = marked(ANSWERED, tokenizer, template)
    ((ids, offsets),) = tokens([chat.text], tokenizer)
    return supervised(chat, ids, offsets, frozenset(tokenizer.all_special_ids))[1][-1:]


def around(tokenizer: PreTrainedTokenizerBase, template: str | None) -> tuple[str, str]:
    """The text that a template writes before an answer, and between an answer and its end token."""
    chat = marked(ANSWERED, tokenizer, template)
    begin, content_end, turn_end, _ = chat.answers[-1]
    places = [chat.text.find(str(token), content_end, turn_end) for token in tokenizer.all_special_tokens]
    end = min((place for place in places if place >= 0), default=turn_end)
    return chat.text[begin : content_end - len(ANSWERED[-1]["content"])], chat.text[content_end:end]


def supervised(
    chat: Marked, ids: Sequence[int], offsets: Sequence[Span], special: frozenset[int]
) -> tuple[list[bool], list[int]]:
    """Select the tokens to train on: those of each answer, up to the first special token after it, which ends the
    answer.

    Many templates write a line break after that token, which the model does not have to generate. If a template ends an
    answer without a special token, everything it writes after the answer is included.

    Returns:
        One bool per token, and the end tokens of the answers that have one.
    """
    learnt, ends = [False] * len(ids), []
    for begin, content_end, turn_end, is_learnt in chat.answers:
        if not is_learnt:
            continue
        for i, (start, end) in enumerate(offsets):
            token = chat.text[start:end]
            start += len(token) - len(token.lstrip() or token)  # a token may include the space before its word
            if start < begin or end > turn_end or (not token and ids[i] not in special):
                continue
            learnt[i] = True
            if start >= content_end and ids[i] in special:
                ends.append(ids[i])
                break
    return learnt, ends


def outside(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Per token, whether it starts outside of all the given spans of the text."""
    return [not any(begin <= start < end for begin, end in spans) for start, _ in offsets]


def tokens(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    begins: Sequence[Sequence[int]] = (),
    spelled_is_text: bool = False,
) -> Iterator[tuple[list[int], list[Span]]]:
    """Yield token ids and offsets of texts that already contain their special tokens.

    A beginning-of-text token is added if the tokenizer normally adds one and the text has none.

    Args:
        begins: start positions of answers in each text. Tokens are split there, as in generation, which continues after
            the prompt; otherwise a line break and the answer's indentation could form one token.
        spelled_is_text: whether to treat the spelling of a special token as plain text.
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
        if inside := [place for place in (begins[number] if begins else ()) if _is_inside_token(place, offsets)]:
            ids, offsets = _split_at(texts[number], inside, tokenizer) or (ids, offsets)
        if has_first and ids[:1] != [first]:
            ids, offsets = [first, *ids], [(0, 0), *offsets]
        yield ids, offsets


def _is_inside_token(place: int, offsets: Sequence[Span]) -> bool:
    """Whether a position of the text is inside a token."""
    return any(start < place < end for start, end in offsets)


def _split_at(
    text: str, places: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[Span]] | None:
    """Token ids and offsets of a text tokenised in parts; None if decoding them does not restore the text."""
    edges = [0, *places, len(text)]
    parts = [text[start:end] for start, end in pairwise(edges)]
    encoded = tokenizer(parts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = [token for part in encoded["input_ids"] for token in part]
    whole = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if tokenizer.decode(ids) != tokenizer.decode(whole):
        return None
    spans = zip(edges, encoded["offset_mapping"], strict=False)
    return ids, [(start + edge, end + edge) for edge, offsets in spans for start, end in offsets]


def _remaining(offsets: Sequence[Span], room: int, cut: Cut, text: str, question: str) -> Sequence[int]:
    """Indices of the tokens that remain after a text is truncated to `room` tokens.

    Args:
        cut: the part to remove: the end, the start, or the end of the question.
        question: a part of `text`; its last occurrence counts.
    """
    number = len(offsets)
    if number <= room or cut == "end":
        return range(min(number, room))
    if cut == "start":
        return range(number - room, number)
    question = question if question in text else question.strip()  # a template may strip it
    begin = text.rfind(question) if question in text else len(text)
    of_question = [i for i, (start, end) in enumerate(offsets) if begin <= start < end <= begin + len(question)]
    dropped = {*of_question[-(number - room) :]}
    return [i for i in range(number) if i not in dropped][:room]


def windows(ids: Sequence[int], room: int) -> list[list[int]]:
    """Windows of at most `room` tokens, each starting with the last token of the previous one.

    So every token except the first follows another token in its window, from which it can be predicted.
    """
    return [list(ids[start : start + room]) for start in range(0, max(1, len(ids) - 1), room - 1)]


def shown(ids: Sequence[int], learnt: Sequence[bool], tokenizer: PreTrainedTokenizerBase) -> str:
    """Tokens as text, with the targets between ⟦ and ⟧."""
    parts = []
    for is_learnt, group in groupby(zip(ids, learnt, strict=True), key=lambda pair: pair[1]):
        text = str(tokenizer.decode([token for token, _ in group]))
        parts.append(f"⟦{text}⟧" if is_learnt else text)
    return "".join(parts)
