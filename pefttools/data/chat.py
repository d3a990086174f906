"""Convert chats of any common form to rows of messages (see `chat_messages`).

`chat_template` formats messages as text, and `chat_tokens` selects the tokens to train on.
`Task.generation_settings(tokenizer)` returns the chat template and the end tokens that generation needs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pefttools.data.chat_messages import (
    EMPTY,
    Message,
    answer_text,
    as_json,
    from_json,
    read_messages,
    read_tools,
    transcript,
)
from pefttools.data.fields import UNREAD, text
from pefttools.data.splitting import LeftOut, Row, Splits
from pefttools.errors import UserError

LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog")
"""Fields with a list of turns."""
PROMPT_AND_ANSWER = (("instruction", "output"), ("prompt", "completion"))
"""Pairs of fields with a prompt and its answer."""
TEXTS = ("instruction", "input", "output", "history", "prompt", "completion", "text")
TOOLS = ("tools", "functions")
ANSWERED = frozenset({*LISTS, "output", "completion"})
"""Fields that contain answers; a row that has one of these fields must have an answer."""
PREFERENCES = ("chosen", "rejected")
MARKS = ("label", "kto_tag")
"""Fields that mark an answer as good or bad."""
FIELDS = (
    *LISTS, *TEXTS[:-1], "system", *TOOLS, *MARKS, *PREFERENCES, "text", "id",
)  # fmt: skip
LAST_TURNS = "turns after the last answer to train on"


def read_row(
    values: Mapping[str, Any], system: str | None, asking: bool, unanswered: bool, predicting: bool = False
) -> Row:
    """A row of a chat (`messages`, `prompt`, and `completion` if it is answered) or of plain text (`text`, `prompt`).

    Args:
        asking: whether a `text` alone is a prompt.
        predicting: whether the row is for prediction only; then marks of good and bad answers are ignored.

    The other arguments, and further errors, are those of `read_chat`.

    Raises:
        UserError: the row belongs to a file of preferences.
    """
    unread: list[str] = []
    if not predicting:
        _refuse_preferences(values, unread)
        _leave_out_bad(values)
    messages = read_chat(values, system, unanswered, unread)
    if messages is None and "text" not in values:
        raise ValueError(
            "has no column 'messages', 'conversations' or 'text', and not both 'instruction' and 'output' or both"
            " 'prompt' and 'completion'; name your columns in data.columns, such as data.columns.text=body"
        )
    if messages is None and asking:
        prompt_only = {"prompt": text(values["text"], "text"), "system": values.get("system")}
        messages = read_chat(prompt_only, system, unanswered=True)
    if messages is None:
        plain = text(values["text"], "text")
        row: Row = {"text": plain, "prompt": plain}
    else:
        row = _chat_row(messages, read_tools(next((values[name] for name in TOOLS if values.get(name)), None)))
    if values.get("id") is not None:
        row["id"] = str(values["id"])
    return {**row, UNREAD: sorted({*unread})} if unread and not predicting else row


def _chat_row(messages: list[Message], tools: list[dict[str, Any]]) -> Row:
    prompt = transcript(question(messages))
    row: Row = {"messages": messages, "prompt": prompt}
    if tools:
        row |= {"tools": tools, "prompt": f"tools: {as_json(tools)}\n{prompt}"}
    if messages[-1]["role"] == "assistant":
        row["completion"] = answer_text(messages[-1])
    return row


def _refuse_preferences(values: Mapping[str, Any], unread: list[str]) -> None:
    """Raises UserError if a row has a chosen and a rejected answer, and the settings select neither."""
    present = {name: values[name] for name in PREFERENCES if values.get(name) is not None}
    others = [value for name, value in values.items() if name not in PREFERENCES]
    ignored = [name for name, value in present.items() if not any(value is other for other in others)]
    unread += [f"`{name}`" for name in ignored]
    if len(ignored) == len(PREFERENCES):
        field = "messages" if isinstance(present["chosen"], list) and len(present["chosen"]) > 1 else "completion"
        raise UserError(
            "is a file of preferences: every row has a `chosen` and a `rejected` answer, as for DPO. causal_lm"
            f" trains on one answer per row; set data.columns.{field}=chosen to train on the chosen answers"
        )


def _leave_out_bad(values: Mapping[str, Any]) -> None:
    """Raises LeftOut if an answer is marked as bad, as in files for KTO."""
    for name in MARKS:
        value = values.get(name)
        if isinstance(value, bool | int | float | str) and str(value).strip().lower() in ("false", "0", "0.0"):
            raise LeftOut(f"an answer that is marked as bad ({name}: {value})")


def is_chat(splits: Splits) -> bool:
    """Whether the rows are chats, judged by the first training row."""
    return "messages" in splits.train[0]


def mixed(splits: Splits) -> list[str]:
    """One problem for every split that mixes chats and plain text, or differs from the training rows."""
    return [
        f"data.{name}: some rows are chats and some are plain text; give files of one kind, and train in two runs"
        for name, rows in splits.named().items()
        if any(("messages" in row) != is_chat(splits) for row in rows)
    ]


def without_answer(key: str, rows: Sequence[Row]) -> list[str]:
    """One problem if rows to train on or to evaluate have no answer, else none."""
    if not (missing := sum("messages" in row and "completion" not in row for row in rows)):
        return []
    return [
        f"{key}: {missing} of {len(rows)} rows have no answer to learn from;"
        " name its column in data.columns.output or data.columns.completion"
    ]


def read_chat(
    values: Mapping[str, Any], system: str | None = None, unanswered: bool = False, unread: list[str] | None = None
) -> list[Message] | None:
    """The messages of a row; None if it has no chat.

    If a row has several forms, the first of these counts: a list of turns (`messages`, `conversations` …),
    `instruction` with `input`, `history` and `output`, `prompt` with `completion` (texts or lists of turns). Without
    `output` or `completion` the chat ends with the prompt. Turns after the last answer to train on are dropped.

    Args:
        system: the system message for chats without one; the row's own `system` takes precedence.
        unanswered: whether a chat may end with a user's turn, as chats to predict on do.
        unread: parts of the chat that were not read are appended to this list.

    Raises:
        ValueError: an item is not a message, or has an unknown role or no text.
        LeftOut: the chat has no answer to train on.
    """
    unread = [] if unread is None else unread
    messages = _messages(values, unread)
    if messages is None:
        return None
    has_system = bool(messages) and messages[0]["role"] in ("system", "developer")
    own = values.get("system")
    if own is not None and not isinstance(own, str):
        text(own, "system")
    if own and own.strip():
        if has_system and messages[0]["content"].strip() != own.strip():
            unread.append("`system` in addition to a system turn")
        system = own
    if system and system.strip() and not has_system:
        messages = [{"role": "system", "content": text(system, "system")}, *messages]
    spoken = [message["role"] for message in messages if message["role"] not in ("system", "developer")]
    if not spoken or spoken[0] != "user":
        raise LeftOut("a chat that does not begin with a user turn")
    return messages if unanswered else _up_to_last_answer(messages, unread)


def _up_to_last_answer(messages: list[Message], unread: list[str]) -> list[Message]:
    """The messages up to the last answer to train on. Raises LeftOut if there is none."""
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    learnt = [i for i in answers if messages[i].get("weight") != 0]
    if not learnt:
        raise LeftOut("a chat whose answers all have weight 0" if answers else "a chat without an answer")
    if learnt[-1] + 1 < len(messages):
        unread.append(LAST_TURNS)
    return messages[: learnt[-1] + 1]


def _messages(values: Mapping[str, Any], unread: list[str]) -> list[Message] | None:
    for name in LISTS:
        if values.get(name) is not None:
            messages = read_messages(values[name], name, unread)
            is_open = not messages or messages[-1]["role"] != "assistant"
            _add_unread(values, {name, "completion"} if is_open else {name}, unread)
            return messages + (_answer(values, "completion", unread) if is_open else [])
    for question_field, answer in PROMPT_AND_ANSWER:
        if values.get(question_field) is None:
            continue
        more_fields = {"input"} if question_field == "instruction" else set()
        if isinstance(values[question_field], list | Mapping):
            messages = read_messages(values[question_field], question_field, unread)
        else:
            more = values.get("input") if more_fields else None
            prompt = text(values[question_field], question_field)
            prompt += f"\n\n{text(more, 'input')}" if more and str(more).strip() else ""
            messages = [{"role": "user", "content": prompt}]
        _add_unread(values, {question_field, answer, "history", *more_fields}, unread)
        return [*_history(values, unread), *messages, *_answer(values, answer, unread)]
    return None


def _add_unread(values: Mapping[str, Any], read: Collection[str], unread: list[str]) -> None:
    """Add the fields of other forms that the row has to `unread`."""
    others = [name for name in (*LISTS, *TEXTS) if name not in read and values.get(name) not in EMPTY]
    unread += [f"`{name}`" for name in others]


def _answer(values: Mapping[str, Any], field: str, unread: list[str]) -> list[Message]:
    """The turns of `output` or `completion`; empty without such a field."""
    if field not in values:
        return []
    value = values[field]
    if isinstance(value, list | Mapping):
        return read_messages(value, field, unread)
    return [{"role": "assistant", "content": text(value, field)}]


def _history(values: Mapping[str, Any], unread: list[str]) -> list[Message]:
    """Earlier turns, given as pairs of question and answer (as in Alpaca) or as a list of turns."""
    history = from_json(values.get("history"))
    if history is None or history == "" or history == []:
        return []
    if isinstance(history, list) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in history):
        turns = [(role, turn) for pair in history for role, turn in zip(("user", "assistant"), pair, strict=True)]
        return [{"role": role, "content": text(turn, "text in its history")} for role, turn in turns]
    return read_messages(history, "history", unread)


def question(messages: Sequence[Message]) -> list[Message]:
    """The messages before the final answer; all messages if the last turn is not an answer."""
    return list(messages[:-1] if messages[-1]["role"] == "assistant" else messages)
