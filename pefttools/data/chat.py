"""Chats: values of any common form to rows of messages.

A message is `{"role": "system" | "user" | "assistant", "content": text}`. `chat_template` writes messages as text. What
a trained task generates with, its template and the tokens that end an answer, is `Task.generation_settings(tokenizer)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pefttools.data.fields import text
from pefttools.data.splitting import LeftOut, Row, Splits

Message = dict[str, str]

ROLES = {
    "system": "system", "user": "user", "human": "user", "prompter": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
}  # fmt: skip
"""What files call who speaks -> what templates call them."""
ANSWERED = frozenset({"messages", "conversations", "output", "completion"})
"""Fields that hold answers: a row with one of them must have its answer."""


def read_row(values: Mapping[str, Any], system: str | None, asking: bool, unanswered: bool) -> Row:
    """A row of a chat (`messages`, `prompt`, and `completion` if it is answered) or of plain text (`text`, `prompt`).

    Args:
        asking: whether a `text` alone is a question.

    The other arguments, and what is raised, are those of `read_chat`.
    """
    messages = read_chat(values, system, unanswered)
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
        row = {"messages": messages, "prompt": transcript(question(messages))}
        if messages[-1]["role"] == "assistant":
            row["completion"] = messages[-1]["content"]
    if values.get("id") is not None:
        row["id"] = str(values["id"])
    return row


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


def read_chat(values: Mapping[str, Any], system: str | None = None, unanswered: bool = False) -> list[Message] | None:
    """The messages of a row, None where it has no chat.

    Of several forms in one row the first counts: `messages` (role, content), `conversations` (from, value),
    `instruction` with `input` and `output`, `prompt` with `completion` (texts or lists of messages). A missing
    `output` or `completion` leaves the answer open.

    Args:
        system: the system message of chats that have none; the row's own `system` comes first.
        unanswered: whether a chat may end on a user's turn, as those do that are to be answered.

    Raises:
        ValueError: something is no message, has an unknown role or no text, or turns do not alternate.
        LeftOut: a chat with nothing to learn from.
    """
    messages = _messages(values)
    if messages is None:
        return None
    if values.get("system"):
        system = text(values["system"], "system")
    if system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    turns = [message["role"] for message in messages[messages[0]["role"] == "system" :]]
    for number, (role, before) in enumerate(zip(turns[1:], turns, strict=False), 2):
        if role == before or role == "system":
            raise ValueError(f"has a chat whose turn {number} is of the {role} after one of the {before}")
    if not turns or turns[0] == "assistant":
        raise LeftOut("a chat that begins with no user turn")
    if turns[-1] == "user" and not unanswered:
        raise LeftOut("a chat that ends on a user turn")
    return messages


def _messages(values: Mapping[str, Any]) -> list[Message] | None:
    for name, role, content in (("messages", "role", "content"), ("conversations", "from", "value")):
        if values.get(name) is not None:
            return _listed(values[name], name, role, content)
    for question, answer in (("instruction", "output"), ("prompt", "completion")):
        if values.get(question) is None:
            continue
        asked = values[question]
        if isinstance(asked, list):
            messages = _listed(asked, question, "role", "content")
        else:
            more = values.get("input") if question == "instruction" else None
            said = text(asked, question) + (f"\n\n{text(more, 'input')}" if more and str(more).strip() else "")
            messages = [{"role": "user", "content": said}]
        if answer not in values:
            return messages
        if isinstance(values[answer], list):
            return [*messages, *_listed(values[answer], answer, "role", "content")]
        return [*messages, {"role": "assistant", "content": text(values[answer], answer)}]
    return None


def _listed(value: Any, name: str, role: str, content: str) -> list[Message]:
    if not isinstance(value, list) or not value or not all(isinstance(turn, Mapping) for turn in value):
        raise ValueError(f"has {name} that are no list of {{{role}, {content}}}: {str(value)[:80]!r}")
    messages = []
    for number, turn in enumerate(value, 1):
        who = turn.get(role)
        if who not in ROLES:
            raise ValueError(
                f"has {name} whose turn {number} has the {role} {who!r}; known are {', '.join(map(repr, ROLES))}"
            )
        messages.append({"role": ROLES[who], "content": text(turn.get(content), f"{content} in turn {number}")})
    return messages


def question(messages: Sequence[Message]) -> list[Message]:
    """What comes before the last answer; all of it where the last turn is the user's."""
    return list(messages[:-1] if messages[-1]["role"] == "assistant" else messages)


def transcript(messages: Iterable[Message]) -> str:
    """The messages as text, the same under every template."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
