"""A chat as text, by the template of a tokenizer or of a recipe, and which of the text answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pefttools.data.chat import Message
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


class GenerationSettings(NamedTuple):
    """What another program needs, besides the weights and the tokenizer, to generate as the trained task does."""

    chat_template: str | None
    """Jinja text for `tokenizer.chat_template`; None where rows are no chats. `apply_chat_template` with it gives the
    token ids of training, the beginning of text and the recipe's system message included."""
    stop_token_ids: tuple[int, ...]
    """The tokens that end an answer, for `eos_token_id` of the generation config, besides those that it holds."""


SYSTEM = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{%- set messages = [{'role': 'system', 'content': SYSTEM}] + messages -%}"
    "{%- endif -%}"
)
"""Put before a template, the system message of chats that have none; SYSTEM stands for a string literal."""


def standalone(tokenizer: PreTrainedTokenizerBase, template: str | None, system: str | None = None) -> str:
    """A template that writes alone what `rendered` and `chat_tokens.tokens` write together.

    Args:
        template: Jinja text; the tokenizer's own when None, and `PLAIN` where it has none.
        system: the system message of chats that have none.
    """
    chosen = template or (tokenizer.get_chat_template() if tokenizer.chat_template else PLAIN)
    default = SYSTEM.replace("SYSTEM", json.dumps(system, ensure_ascii=False))
    if system and default not in chosen:
        chosen = default + chosen
    first: Any = tokenizer.bos_token
    if first is None or tokenizer("")["input_ids"][:1] != [tokenizer.bos_token_id]:
        return chosen
    written = rendered([{"role": "user", "content": "hello"}], tokenizer, chosen, ask=True)
    return chosen if written.startswith(first) else "{{ bos_token }}" + chosen


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
