"""A chat as text, by the template of a tokenizer or of a recipe, and which of the text answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pefttools.data.chat_messages import CALLS, Message
from pefttools.data.chat_parts import PLAINLY, Tools, apply, joined, lacking, parts_of, writes
from pefttools.data.splitting import Row
from pefttools.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = (
    "{% for message in messages %}"
    "{{ '### ' + message['role'].capitalize() + ':\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}{{ '\n\n' }}"
    "{% endfor %}"
    "{{ '### Assistant:\n' if add_generation_prompt else '' }}"
)
"""The template of a tokenizer that has none: a heading a turn, the end of text after each answer."""


def read_template(given: str) -> str:
    """A template as it stands, or the one in the file of that name. Raises ValueError where it is neither."""
    if "{" in given:
        return given
    if not (path := Path(given).expanduser()).is_file():
        raise ValueError("is neither a Jinja template nor a file that holds one")
    return path.read_text("utf-8")


def chosen(tokenizer: PreTrainedTokenizerBase, template: str | None, tools: Tools | None = None) -> str:
    """A template, the tokenizer's own when None, and `PLAIN` where it has none."""
    own: Any = tokenizer
    return template or (own.get_chat_template(tools=tools) if own.chat_template else PLAIN)


def rendered(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    ask: bool = False,
    tools: Tools | None = None,
) -> str:
    """The messages as the model sees them; when `ask`, up to where its answer begins.

    Args:
        template: Jinja text; the tokenizer's own when None, and `PLAIN` where it has none.
        tools: descriptions of the functions that can be called.

    Raises:
        UserError: the template refuses the chat, or cannot be read.
    """
    from jinja2 import TemplateError

    own = chosen(tokenizer, template, tools)
    try:
        plainly = "".join(PLAINLY[part] for part in lacking(parts_of(messages, tools), own, tokenizer))
        return apply(messages, tokenizer, plainly + own, tools, ask)
    except (TemplateError, TypeError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(f"task.chat_template: does not take a chat of turns {roles}: {error}") from error


class GenerationSettings(NamedTuple):
    """What another program needs, besides the weights and the tokenizer, to generate as the trained task does."""

    chat_template: str | None
    """Jinja text for `tokenizer.chat_template`; None where rows are no chats. `apply_chat_template` with it gives the
    token ids of training, the beginning of text and the recipe's system message included."""
    stop_token_ids: tuple[int, ...]
    """The tokens that end an answer, for `eos_token_id` of the generation config, besides those that it holds."""


SYSTEM = (
    "{%- if messages[0]['role'] not in ['system', 'developer'] -%}"
    "{%- set messages = [{'role': 'system', 'content': SYSTEM}] + messages -%}"
    "{%- endif -%}"
)
"""Put before a template, the system message of chats that have none; SYSTEM stands for a string literal."""


def standalone(
    tokenizer: PreTrainedTokenizerBase, template: str | None, system: str | None = None, parts: Sequence[str] = ()
) -> str:
    """A template that writes alone what `rendered` and `chat_tokens.tokens` write together.

    Args:
        template: Jinja text; the tokenizer's own when None, and `PLAIN` where it has none.
        system: the system message of chats that have none.
        parts: what the chats hold besides texts.
    """
    written = chosen(tokenizer, template)
    written = "".join(PLAINLY[part] for part in lacking(parts, written, tokenizer)) + written
    default = SYSTEM.replace("SYSTEM", json.dumps(system, ensure_ascii=False))
    if system and default not in written:
        written = default + written
    first: Any = tokenizer.bos_token
    if first is None or tokenizer("")["input_ids"][:1] != [tokenizer.bos_token_id]:
        return written
    said = rendered([{"role": "user", "content": "hello"}], tokenizer, written, ask=True)
    return written if said.startswith(first) else "{{ bos_token }}" + written


class Answer(NamedTuple):
    """Where in a text an assistant's turn is."""

    begin: int
    content_end: int
    turn_end: int
    learnt: bool


class Marked(NamedTuple):
    """A chat as text, with what of it answers."""

    text: str
    answers: list[Answer]
    """Those that can be told apart."""
    rewritten: bool = False
    """Whether the template writes earlier turns otherwise once more follow, so that only the last answer is marked."""
    trimmed: bool = False
    """Whether the template takes the space around an answer away."""

    @property
    def begins(self) -> list[int]:
        """Where the answers to learn begin."""
        return [answer.begin for answer in self.answers if answer.learnt]


def marked(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, template: str | None, tools: Tools | None = None
) -> Marked:
    """The text of a chat and its answers, found by rendering every beginning of it.

    Raises:
        UserError: the template loses a turn.
    """
    messages = joined(messages, chosen(tokenizer, template, tools), tokenizer)
    whole = rendered(messages, tokenizer, template, tools=tools)
    _refuse_lost(whole, messages)
    answers: list[Answer] = []
    rewritten = trimmed = False
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        last = i == len(messages) - 1
        head = rendered(messages[:i], tokenizer, template, ask=True, tools=tools)
        turn = whole if last else rendered(messages[: i + 1], tokenizer, template, tools=tools)
        known = whole.startswith(head)
        rewritten |= not known or not whole.startswith(turn)
        if rewritten and not last:
            continue
        content = message["content"]
        if content and content not in whole and content.strip() in whole:
            content, trimmed = content.strip(), True
        begin = len(head) if known else _shared(head, whole)
        if message.get(CALLS) or not content:
            end = _before_last_special(whole, begin, len(turn), tokenizer)
        else:
            place = whole.find(content, begin, len(turn)) if known else whole.rfind(content)
            if place < 0:
                raise UserError(f"task.chat_template: does not write this answer: {content[:80]!r}")
            begin, end = begin if known else place, place + len(content)
        answers.append(Answer(begin, end, len(turn), message.get("weight") != 0))
    if not rewritten:
        return Marked(whole, answers, False, trimmed)
    return Marked(whole, [*_unlearnt_places(whole, messages[:-1]), *answers[-1:]], True, trimmed)


def _shared(one: str, other: str) -> int:
    """How many characters two texts have in common from their beginnings."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _before_last_special(whole: str, begin: int, end: int, tokenizer: PreTrainedTokenizerBase) -> int:
    """Where the token that ends a turn begins; the turn's end where nothing special ends it."""
    places = [whole.rfind(str(token), begin, end) for token in tokenizer.all_special_tokens]
    return max(places) if max(places, default=-1) >= 0 else end


def _unlearnt_places(whole: str, messages: Sequence[Message]) -> list[Answer]:
    """Where answers of weight 0 stand in a text whose turns cannot be told apart."""
    texts = [m["content"].strip() for m in messages if m["role"] == "assistant" and m.get("weight") == 0]
    places = [(whole.find(said), len(said)) for said in texts if said and said in whole]
    return [Answer(place, place + length, place + length, learnt=False) for place, length in places]


def _refuse_lost(whole: str, messages: Sequence[Message]) -> None:
    """Raises UserError where a template writes nothing of a turn that asks."""
    for message in messages:
        said = message["content"].strip()
        if message["role"] in ("system", "developer", "user") and said not in whole:
            raise UserError(f"task.chat_template: does not write this {message['role']} turn: {said[:80]!r}")


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
    """What a template makes of some chats that the user should know; `parts` are what all of them hold."""
    chats = [marked(row["messages"], tokenizer, template, row.get("tools")) for row in rows]
    found = []
    if rewritten := sum(chat.rewritten for chat in chats):
        found.append(
            "the chat template rewrites earlier turns when others follow: of such chats only the last answer"
            f" is learnt ({rewritten} of the first {len(rows)} rows)"
        )
    if trimmed := sum(chat.trimmed for chat in chats):
        found.append(
            "the chat template removes the space around answers, such as a first line's indentation"
            f" ({trimmed} of the first {len(rows)} rows); set a task.chat_template without `trim` to keep it"
        )
    own = chosen(tokenizer, template, next((row["tools"] for row in rows if "tools" in row), None))
    if plainly := [FORMS[part] for part in lacking(parts, own, tokenizer)]:
        found.append(f"the chat template has no form for these, which are written plainly: {'; '.join(plainly)}")
    named = sum(any("name" in message for message in row["messages"]) for row in rows)
    if named and not writes("names", own, tokenizer):
        found.append(f"the chat template does not write the `name` of turns ({named} of the first {len(rows)} rows)")
    return found
