"""Render a chat as text with the template of a tokenizer or a recipe, and locate the answers in the text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pefttools.data.chat_messages import CALLS, Message
from pefttools.data.chat_parts import FALLBACKS, Tools, apply, joined, lacking, parts_of, writes
from pefttools.data.splitting import Row
from pefttools.errors import UserError
from pefttools.sources import expanded, is_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = (
    "{% for message in messages %}"
    "{{ '### ' + message['role'].capitalize() + ':\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}{{ '\n\n' }}"
    "{% endfor %}"
    "{{ '### Assistant:\n' if add_generation_prompt else '' }}"
)
"""Default template for tokenizers without one: a heading per turn, and the end token after each answer."""


def read_template(value: str) -> str:
    """The template itself, or the content of the file of that name.

    Raises:
        ValueError: it is neither, or the file cannot be read.
    """
    if "{" in value:
        return value
    if not is_file(path := expanded(value)):
        raise ValueError("is neither a Jinja template nor an existing file")
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot be read: {error}") from error


def chosen(tokenizer: PreTrainedTokenizerBase, template: str | None, tools: Tools | None = None) -> str:
    """The given template, else the tokenizer's own, else `PLAIN`."""
    own: Any = tokenizer
    return template or (own.get_chat_template(tools=tools) if own.chat_template else PLAIN)


def rendered(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    ask: bool = False,
    tools: Tools | None = None,
) -> str:
    """The messages as the model sees them; with `ask`, up to the start of its answer.

    Args:
        template: Jinja text; when None, the tokenizer's own, or `PLAIN` if it has none.
        tools: descriptions of the functions that can be called.

    Raises:
        UserError: the template rejects the chat, or is invalid.
    """
    from jinja2 import TemplateError

    own = chosen(tokenizer, template, tools)
    try:
        fallbacks = "".join(FALLBACKS[part] for part in lacking(parts_of(messages, tools), own, tokenizer))
        return apply(messages, tokenizer, fallbacks + own, tools, ask)
    except (TemplateError, TypeError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(f"task.chat_template: rejects a chat with the turns {roles}: {error}") from error


class GenerationSettings(NamedTuple):
    """Settings that another program needs, besides weights and tokenizer, to generate like the trained task."""

    chat_template: str | None
    """Jinja text for `tokenizer.chat_template`; None if rows are not chats. With it, `apply_chat_template` returns the
    token ids of training, including the beginning-of-text token and the recipe's system message."""
    stop_token_ids: tuple[int, ...]
    """The tokens that end an answer, to be added to `eos_token_id` of the generation config."""


SYSTEM = (
    "{%- if messages[0]['role'] not in ['system', 'developer'] -%}"
    "{%- set messages = [{'role': 'system', 'content': SYSTEM}] + messages -%}"
    "{%- endif -%}"
)
"""Jinja code before a template that adds a system message to chats without one; SYSTEM stands for a string literal."""


def standalone(
    tokenizer: PreTrainedTokenizerBase, template: str | None, system: str | None = None, parts: Sequence[str] = ()
) -> str:
    """A template that renders by itself the text that `rendered` and `chat_tokens.tokens` produce together.

    Args:
        template: Jinja text; when None, the tokenizer's own, or `PLAIN` if it has none.
        system: the system message for chats without one.
        parts: parts of the chats besides texts.
    """
    combined = chosen(tokenizer, template)
    combined = "".join(FALLBACKS[part] for part in lacking(parts, combined, tokenizer)) + combined
    default = SYSTEM.replace("SYSTEM", json.dumps(system, ensure_ascii=False))
    if system and default not in combined:
        combined = default + combined
    first: Any = tokenizer.bos_token
    if first is None or tokenizer("")["input_ids"][:1] != [tokenizer.bos_token_id]:
        return combined
    text = rendered([{"role": "user", "content": "hello"}], tokenizer, combined, ask=True)
    return combined if text.startswith(first) else "{{ bos_token }}" + combined


class Answer(NamedTuple):
    """Positions of an assistant's turn in a text."""

    begin: int
    content_end: int
    turn_end: int
    learnt: bool


class Marked(NamedTuple):
    """A chat as text, with the positions of its answers."""

    text: str
    answers: list[Answer]
    """The answers whose positions are known."""
    rewritten: bool = False
    """Whether the template changes earlier turns when more turns follow, so that only the last answer is marked."""
    trimmed: bool = False
    """Whether the template strips the white space around an answer."""

    @property
    def begins(self) -> list[int]:
        """Start positions of the answers to train on."""
        return [answer.begin for answer in self.answers if answer.learnt]


def marked(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, template: str | None, tools: Tools | None = None
) -> Marked:
    """The text of a chat and its answers, located by rendering every prefix of the chat.

    Raises:
        UserError: the template drops a turn.
    """
    messages = joined(messages, chosen(tokenizer, template, tools), tokenizer)
    whole = rendered(messages, tokenizer, template, tools=tools)
    _refuse_dropped_turns(whole, messages)
    answers: list[Answer] = []
    rewritten = trimmed = False
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        last = i == len(messages) - 1
        head = rendered(messages[:i], tokenizer, template, ask=True, tools=tools)
        turn = whole if last else rendered(messages[: i + 1], tokenizer, template, tools=tools)
        is_prefix = whole.startswith(head)
        rewritten |= not is_prefix or not whole.startswith(turn)
        if rewritten and not last:
            continue
        content = message["content"]
        if content and content not in whole and content.strip() in whole:
            content, trimmed = content.strip(), True
        begin = len(head) if is_prefix else _common_prefix(head, whole)
        if message.get(CALLS) or not content:
            end = _before_last_special(whole, begin, len(turn), tokenizer)
        else:
            place = whole.find(content, begin, len(turn)) if is_prefix else whole.rfind(content)
            if place < 0:
                raise UserError(f"task.chat_template: does not render this answer: {content[:80]!r}")
            begin, end = begin if is_prefix else place, place + len(content)
        answers.append(Answer(begin, end, len(turn), message.get("weight") != 0))
    if not rewritten:
        return Marked(whole, answers, False, trimmed)
    return Marked(whole, [*_excluded_answers(whole, messages[:-1]), *answers[-1:]], True, trimmed)


def _common_prefix(one: str, other: str) -> int:
    """Number of characters of the common prefix of two texts."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _before_last_special(whole: str, begin: int, end: int, tokenizer: PreTrainedTokenizerBase) -> int:
    """The position of the special token that ends a turn; the turn's end if there is none."""
    places = [whole.rfind(str(token), begin, end) for token in tokenizer.all_special_tokens]
    return max(places) if max(places, default=-1) >= 0 else end


def _excluded_answers(whole: str, messages: Sequence[Message]) -> list[Answer]:
    """Positions of answers of weight 0 in a text whose turns cannot be located by prefixes."""
    texts = [m["content"].strip() for m in messages if m["role"] == "assistant" and m.get("weight") == 0]
    places = [(whole.find(text), len(text)) for text in texts if text and text in whole]
    return [Answer(place, place + length, place + length, learnt=False) for place, length in places]


def _refuse_dropped_turns(whole: str, messages: Sequence[Message]) -> None:
    """Raises UserError if a template drops a system or user turn."""
    for message in messages:
        content = message["content"].strip()
        if message["role"] in ("system", "developer", "user") and content not in whole:
            raise UserError(f"task.chat_template: does not render this {message['role']} turn: {content[:80]!r}")


FORMS = {
    "tools": "tools between <tools> and </tools> in the system message",
    "calls": "calls of tools as <tool_call>",
    "responses": "responses of tools as user turns with <tool_response>",
    "reasoning": "reasoning as <think>",
    "developer": "developer messages as system messages",
}


def remarks(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, template: str | None, parts: Sequence[str]
) -> list[str]:
    """Warnings about the template's effect on some chats; `parts` are the parts of all chats."""
    chats = [marked(row["messages"], tokenizer, template, row.get("tools")) for row in rows]
    found = []
    if rewritten := sum(chat.rewritten for chat in chats):
        found.append(
            "the chat template changes earlier turns when others follow, so only the last answer of such chats"
            f" is trained on ({rewritten} of the first {len(rows)} rows)"
        )
    if trimmed := sum(chat.trimmed for chat in chats):
        found.append(
            "the chat template strips white space around answers, such as a first line's indentation"
            f" ({trimmed} of the first {len(rows)} rows); set a task.chat_template without `trim` to keep it"
        )
    own = chosen(tokenizer, template, next((row["tools"] for row in rows if "tools" in row), None))
    if fallbacks := [FORMS[part] for part in lacking(parts, own, tokenizer)]:
        found.append(f"the chat template does not support these, which are written as text: {'; '.join(fallbacks)}")
    named = sum(any("name" in message for message in row["messages"]) for row in rows)
    if named and not writes("names", own, tokenizer):
        found.append(f"the chat template drops the `name` of turns ({named} of the first {len(rows)} rows)")
    return found
