"""Chats: rows of any common form to messages, messages to text by a template, and which of the text answers.

A message is `{"role": "system" | "user" | "assistant", "content": text}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pefttools.data.fields import text
from pefttools.data.splitting import LeftOut
from pefttools.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]

ROLES = {
    "system": "system", "user": "user", "human": "user", "prompter": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
}  # fmt: skip
"""What files call who speaks -> what templates call them."""
PLAIN = (
    "{% for message in messages %}"
    "{{ '### ' + message['role'].capitalize() + ':\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}{{ '\n\n' }}"
    "{% endfor %}"
    "{{ '### Assistant:\n' if add_generation_prompt else '' }}"
)
"""The template of a tokenizer that has none: a heading a turn, the end of text after each answer."""


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


def rendered(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, template: str | None, ask: bool = False
) -> str:
    """The messages as the model sees them; when `ask`, up to where its answer begins.

    Args:
        template: Jinja text; the tokenizer's own when None, and `PLAIN` where it has none.

    Raises:
        UserError: the template refuses the chat, or cannot be read.
    """
    from jinja2 import TemplateError

    chosen = template or (None if tokenizer.chat_template else PLAIN)
    try:
        said = tokenizer.apply_chat_template(
            [dict(message) for message in messages], chat_template=chosen, tokenize=False, add_generation_prompt=ask
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(f"task.chat_template: does not take a chat of turns {roles}: {error}") from error
    assert isinstance(said, str)
    return said


class Marked(NamedTuple):
    """A chat as text, with what of it answers."""

    text: str
    answers: list[tuple[int, int, int]]
    """Of every answer that can be told apart: where it begins, where its own text ends, where its turn ends."""
    rewritten: bool
    """Whether the template writes earlier turns otherwise once more follow, so that only the last answer is marked."""


def marked(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, template: str | None) -> Marked:
    """The text of a chat and its answers, found by rendering every beginning of it.

    Raises:
        UserError: the template loses the last answer.
    """
    whole = rendered(messages, tokenizer, template)
    answers, rewritten = [], False
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        last = i == len(messages) - 1
        head = rendered(messages[:i], tokenizer, template, ask=True)
        turn = whole if last else rendered(messages[: i + 1], tokenizer, template)
        if not whole.startswith(turn) or not whole.startswith(head):
            rewritten = True
            head = ""
        if rewritten and not last:
            continue
        content = message["content"]
        place = whole.rfind(content, len(head)) if last else whole.find(content, len(head), len(turn))
        if place < 0:
            raise UserError(f"task.chat_template: does not write this answer: {content[:80]!r}")
        answers.append((len(head) if head else place, place + len(content), len(turn)))
    return Marked(whole, answers[-1:] if rewritten else answers, rewritten)
