"""Locate answers in a context, and split long contexts into windows.

Positions are Python characters of the unchanged context. A window is a question with a span of its context; the windows
of a context overlap, so that an answer that one window cuts is complete in another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pefttools.data import written_lists
from pefttools.data.units import Piece, SplitText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OUTSIDE = -1
"""The position of a token outside of the context."""


class Answer(NamedTuple):
    """A span of a context; the end is exclusive."""

    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


def locate(context: str, text: str, start: int | None) -> Answer | None:
    """The answer at its position or, if the text is not there, at its nearest occurrence; None if there is none.

    Without a position, the first occurrence counts. Surrounding spaces are not part of an answer.
    """
    bare = text.strip()
    if start is None:
        found = context.find(bare)
        return Answer(bare, found) if found >= 0 else None
    if exact := locate_exactly(context, text, start):
        return exact
    start += len(text) - len(text.lstrip())
    places = [place for place in range(len(context)) if context.startswith(bare, place)] if bare in context else []
    return Answer(bare, min(places, key=lambda place: abs(place - start))) if places else None


def listed_answers(value: Any) -> Iterator[tuple[str, int | None]]:
    """Yield text and position of every answer in a field; empty texts are skipped.

    Accepts a list of `{text, answer_start}`, one such mapping of lists, a text, or a list of texts.

    Raises:
        ValueError: the value has another form.
    """
    if isinstance(value, str):
        value = value if (written := written_lists.parsed(value)) is None else written
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
        if isinstance(texts, (list, tuple)):
            starts = [None] * len(texts) if starts is None else starts
            if not isinstance(starts, (list, tuple)) or len(starts) != len(texts):
                raise ValueError(f"has {len(texts)} answers but another number of answer_start: {starts!r}")
            items = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
        else:
            items = [value]
    elif value is None or isinstance(value, str):
        items = [] if value is None else [value]
    elif isinstance(value, (list, tuple)):
        items = list(value)
    else:
        raise ValueError(f"has answers that are neither texts nor a list of them: {value!r}")
    for item in items:
        text, start = (item.get("text"), item.get("answer_start")) if isinstance(item, Mapping) else (item, None)
        if not isinstance(text, str):
            raise ValueError(f"has an answer without a text: {item!r}")
        if start is not None and (isinstance(start, bool) or not isinstance(start, int)):
            raise ValueError(f"has an answer_start that is not a whole number: {start!r}")
        if text.strip():
            yield text, start


def at_one_place(context: str, value: Any, start: Any) -> list[tuple[str, int | None]]:
    """The answers of a row with a column for their positions; without empty texts.

    Raises:
        ValueError: a text is not at its position but elsewhere in the context; a position is not a whole number.
    """
    texts = list(listed_answers(value))
    start = written_lists.parsed(start) if isinstance(start, str) and start.strip()[:1] == "[" else start
    starts = list(start) if isinstance(start, (list, tuple)) else [start] * len(texts)
    if len(starts) != len(texts):
        raise ValueError(f"has {len(texts)} answers and {len(starts)} answer_start")
    found: list[tuple[str, int | None]] = []
    for (text, _), one in zip(texts, starts, strict=True):
        place = _whole_number(one)
        if place is not None and text.strip() in context and locate_exactly(context, text, place) is None:
            raise ValueError(
                f"has the answer {text!r} and answer_start {place}, but the context there is"
                f" {context[max(place, 0) : max(place, 0) + len(text)]!r}; count positions in characters from 0"
            )
        found.append((text, place))
    return found


def _whole_number(value: Any) -> int | None:
    """A position from a column of numbers or texts; None if it is empty."""
    if value is None or value != value or (isinstance(value, str) and value.strip().lower() in ("", "nan", "none")):
        return None
    try:
        number = float(value)
        if isinstance(value, bool) or not number.is_integer():
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"has an answer_start that is not a whole number: {value!r}") from None
    return int(number)


def locate_exactly(context: str, text: str, start: int) -> Answer | None:
    """The answer without surrounding spaces if it is at its position, else None."""
    bare, begin = text.strip(), start + len(text) - len(text.lstrip())
    return Answer(bare, begin) if start >= 0 and context.startswith(bare, begin) else None


class Windows(NamedTuple):
    """Windows of some rows, one per list item."""

    rows: list[int]
    """The index of a window's row."""
    columns: dict[str, list[list[int]]]
    """The model's inputs."""
    starts: list[list[int]]
    """The start of each token in the context; `OUTSIDE` for tokens of the question and special tokens."""
    ends: list[list[int]]
    """The end of each token in the context."""
    cut: list[bool]
    """Whether the row's question was truncated."""


def windows(
    questions: Sequence[str],
    contexts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    overlap: int,
    question_limit: int,
) -> Windows:
    """Windows of at most `limit` tokens that share `overlap` tokens of context with the previous window.

    A question is truncated to `question_limit` tokens, and to half of the window; the overlap is at most half of the
    context's part of a window.

    Raises:
        ValueError: the tokenizer does not report positions of tokens; there is no room for the context.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} does not report the positions of its tokens; use a base with a fast tokenizer"
        )
    question_limit = min(question_limit, limit // 2)
    room = limit - question_limit - tokenizer.num_special_tokens_to_add(pair=True)
    if room < 4:
        raise ValueError(f"{limit} tokens have no room for a question and a context; set a larger max_length")
    encoded_questions = tokenizer(list(questions), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    long = [len(ids) > question_limit for ids in encoded_questions["input_ids"]]
    short = [
        question[: places[question_limit - 1][1]] if cut else question
        for question, places, cut in zip(questions, encoded_questions["offset_mapping"], long, strict=True)
    ]
    encoded = tokenizer(
        short,
        list(contexts),
        truncation="only_second",
        max_length=limit,
        stride=min(overlap, room // 2),
        padding=False,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    rows = encoded["overflow_to_sample_mapping"]
    starts, ends = [], []
    for i, places in enumerate(encoded["offset_mapping"]):
        of_context = [part == 1 for part in encoded.sequence_ids(i)]
        starts.append([place[0] if inside else OUTSIDE for place, inside in zip(places, of_context, strict=True)])
        ends.append([place[1] if inside else OUTSIDE for place, inside in zip(places, of_context, strict=True)])
    columns = {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
    return Windows(rows, columns, starts, ends, [long[row] for row in rows])


def tokens_of(answer: Answer, starts: Sequence[int], ends: Sequence[int]) -> tuple[int, int] | None:
    """First and last token of an answer in a window; None if the window does not contain all of it."""
    inside = [i for i, start in enumerate(starts) if start != OUTSIDE]
    if not inside or answer.start < starts[inside[0]] or answer.end > ends[inside[-1]]:
        return None
    touching = [i for i in inside if ends[i] > answer.start and starts[i] < answer.end]
    return (touching[0], touching[-1]) if touching else None


def split_around(context: str, answers: Sequence[Mapping[str, Any]]) -> SplitText:
    """The units of a context for an edit; the words of an answer are one unit that is not free."""
    return SplitText.of(context, [(a["answer_start"], a["answer_start"] + len(a["text"])) for a in answers])


def edited(
    context: str, answers: Sequence[Mapping[str, Any]], pieces: Sequence[Piece]
) -> tuple[str, list[dict[str, Any]]]:
    """The context and its answers after an edit of the units of `split_around`; the answers' texts stay the same."""
    split = split_around(context, answers)
    text, starts = split.edited(pieces)
    moved = {piece.source: start for piece, start in zip(pieces, starts, strict=True) if not piece.inserted}
    found = []
    for answer in answers:
        start = answer["answer_start"]
        unit = max(i for i, first in enumerate(split.starts) if first <= start)
        found.append({**answer, "answer_start": moved[unit] + start - split.starts[unit]})
    return text, found
