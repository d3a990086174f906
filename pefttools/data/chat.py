"""Chats: values of any common form to rows of messages (see `chat_messages`).

`chat_template` writes messages as text, `chat_tokens` says which of the tokens are learnt. What a trained task
generates with, its template and the tokens that end an answer, is `Task.generation_settings(tokenizer)`.
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
"""Fields that hold a list of turns."""
ASKED = (("instruction", "output"), ("prompt", "completion"))
"""Fields that hold a prompt and its answer."""
TEXTS = ("instruction", "input", "output", "history", "prompt", "completion", "text")
TOOLS = ("tools", "functions")
ANSWERED = frozenset({*LISTS, "output", "completion"})
"""Fields that hold answers: a row with one of them must have its answer."""
PREFERENCES = ("chosen", "rejected")
MARKS = ("label", "kto_tag")
"""Fields that say whether the answer is a good one."""
FIELDS = (
    *LISTS, *TEXTS[:-1], "system", *TOOLS, *MARKS, *PREFERENCES, "text", "id",
)  # fmt: skip
LAST_TURNS = "turns after the last answer that is learnt"


def read_row(
    values: Mapping[str, Any], system: str | None, asking: bool, unanswered: bool, predicting: bool = False
) -> Row:
    """A row of a chat (`messages`, `prompt`, and `completion` if it is answered) or of plain text (`text`, `prompt`).

    Args:
        asking: whether a `text` alone is a prompt.
        predicting: whether the row is only answered: then marks of good and bad answers do not matter.

    The other arguments, and what is raised, are those of `read_chat`.

    Raises:
        UserError: the row is one of a file of preferences.
    """
    unread: list[str] = []
    if not predicting:
        _refuse_preferences(values, unread)
        _leave_out_bad(values)
    messages = read_chat(values, system, unanswered, unread)
    if messages is None and "text" not in values:
        raise ValueError(
            "has none of messages, conversations, instruction and output, prompt and completion, or text;"
            " data.columns names the columns that hold them"
        )
    if messages is None and asking:
        asked = {"prompt": text(values["text"], "text"), "system": values.get("system")}
        messages = read_chat(asked, system, unanswered=True)
    if messages is None:
        said = text(values["text"], "text")
        row: Row = {"text": said, "prompt": said}
    else:
        row = _chat_row(messages, read_tools(next((values[name] for name in TOOLS if values.get(name)), None)))
    if values.get("id") is not None:
        row["id"] = str(values["id"])
    return {**row, UNREAD: sorted({*unread})} if unread and not predicting else row


def _chat_row(messages: list[Message], tools: list[dict[str, Any]]) -> Row:
    asked = transcript(question(messages))
    row: Row = {"messages": messages, "prompt": asked}
    if tools:
        row |= {"tools": tools, "prompt": f"tools: {as_json(tools)}\n{asked}"}
    if messages[-1]["role"] == "assistant":
        row["completion"] = answer_text(messages[-1])
    return row


def _refuse_preferences(values: Mapping[str, Any], unread: list[str]) -> None:
    """Raises UserError where a row holds a good and a bad answer, and none of them is read as the one to learn."""
    given = {name: values[name] for name in PREFERENCES if values.get(name) is not None}
    others = [value for name, value in values.items() if name not in PREFERENCES]
    ignored = [name for name, value in given.items() if not any(value is other for other in others)]
    unread += [f"`{name}`" for name in ignored]
    if len(ignored) == len(PREFERENCES):
        field = "messages" if isinstance(given["chosen"], list) and len(given["chosen"]) > 1 else "completion"
        raise UserError(
            "is a file of preferences: every row has a `chosen` and a `rejected` answer, as DPO takes them. causal_lm"
            f" learns one answer a row; set data.columns.{field}=chosen to learn the chosen ones"
        )


def _leave_out_bad(values: Mapping[str, Any]) -> None:
    """Raises LeftOut where an answer is marked as bad, as in files for KTO."""
    for name in MARKS:
        value = values.get(name)
        if isinstance(value, bool | int | float | str) and str(value).strip().lower() in ("false", "0", "0.0"):
            raise LeftOut(f"an answer that is marked as bad ({name}: {value})")


def is_chat(splits: Splits) -> bool:
    """Whether the rows are chats, as the first row to train on is."""
    return "messages" in splits.train[0]


def mixed(splits: Splits) -> list[str]:
    """A problem for every split that mixes chats and plain text, or has what the rows to train on have not."""
    return [
        f"data.{name}: some rows are chats and some are plain text; train on one after the other"
        for name, rows in splits.named().items()
        if any(("messages" in row) != is_chat(splits) for row in rows)
    ]


def without_answer(key: str, rows: Sequence[Row]) -> list[str]:
    """The problem of rows to learn from or to score, if there is one."""
    if not (missing := sum("messages" in row and "completion" not in row for row in rows)):
        return []
    return [
        f"{key}: {missing} of {len(rows)} rows have no answer to learn from;"
        " data.columns.output or data.columns.completion names the column that holds it"
    ]


def read_chat(
    values: Mapping[str, Any], system: str | None = None, unanswered: bool = False, unread: list[str] | None = None
) -> list[Message] | None:
    """The messages of a row, None where it has no chat.

    Of several forms in one row the first counts: a list of turns (`messages`, `conversations` …), `instruction` with
    `input`, `history` and `output`, `prompt` with `completion` (texts or lists of turns). A missing `output` or
    `completion` leaves the answer open. Turns after the last answer to learn teach nothing and are taken off.

    Args:
        system: the system message of chats that have none; the row's own `system` comes first.
        unanswered: whether a chat may end on a user's turn, as those do that are to be answered.
        unread: what of the chat was not read is added to it.

    Raises:
        ValueError: something is no message, or has an unknown role or no text.
        LeftOut: a chat with nothing to learn from.
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
            unread.append("`system` beside a system turn")
        system = own
    if system and system.strip() and not has_system:
        messages = [{"role": "system", "content": text(system, "system")}, *messages]
    spoken = [message["role"] for message in messages if message["role"] not in ("system", "developer")]
    if not spoken or spoken[0] != "user":
        raise LeftOut("a chat that begins with no user turn")
    return messages if unanswered else _up_to_last_answer(messages, unread)


def _up_to_last_answer(messages: list[Message], unread: list[str]) -> list[Message]:
    """The messages without those that come after all that is learnt. Raises LeftOut where nothing is."""
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
    for question_field, answer in ASKED:
        if values.get(question_field) is None:
            continue
        more_fields = {"input"} if question_field == "instruction" else set()
        if isinstance(values[question_field], list | Mapping):
            messages = read_messages(values[question_field], question_field, unread)
        else:
            more = values.get("input") if more_fields else None
            said = text(values[question_field], question_field)
            said += f"\n\n{text(more, 'input')}" if more and str(more).strip() else ""
            messages = [{"role": "user", "content": said}]
        _add_unread(values, {question_field, answer, "history", *more_fields}, unread)
        return [*_history(values, unread), *messages, *_answer(values, answer, unread)]
    return None


def _add_unread(values: Mapping[str, Any], read: Collection[str], unread: list[str]) -> None:
    """Note the fields of other forms that a row has besides those that were read."""
    others = [name for name in (*LISTS, *TEXTS) if name not in read and values.get(name) not in EMPTY]
    unread += [f"`{name}`" for name in others]


def _answer(values: Mapping[str, Any], field: str, unread: list[str]) -> list[Message]:
    """The turns of `output` or `completion`; none where there is no such field."""
    if field not in values:
        return []
    value = values[field]
    if isinstance(value, list | Mapping):
        return read_messages(value, field, unread)
    return [{"role": "assistant", "content": text(value, field)}]


def _history(values: Mapping[str, Any], unread: list[str]) -> list[Message]:
    """Earlier turns: pairs of a question and its answer, as Alpaca has them, or a list of turns."""
    history = from_json(values.get("history"))
    if history is None or history == "" or history == []:
        return []
    if isinstance(history, list) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in history):
        turns = [(role, said) for pair in history for role, said in zip(("user", "assistant"), pair, strict=True)]
        return [{"role": role, "content": text(said, "text in its history")} for role, said in turns]
    return read_messages(history, "history", unread)


def question(messages: Sequence[Message]) -> list[Message]:
    """What comes before the last answer; all of it where the last turn is no answer."""
    return list(messages[:-1] if messages[-1]["role"] == "assistant" else messages)
