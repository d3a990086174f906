"""Parts of chats besides texts, and their fallback format for chat templates that do not support them.

Each part is tried by rendering a chat with a test word in it. If the template drops the word, Jinja code in front of
the template writes the part into the messages' texts. The combined template is one text, which works in plain
transformers:

- tools: in the system message, one per line between <tools> and </tools>
- calls: <tool_call>{"name": …, "arguments": …}</tool_call> after the turn's text
- responses: a user's turn with <tool_response> and </tool_response> around it
- reasoning: <think> and </think> around it, before the turn's text
- developer: the system's turn
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from pefttools.data.chat_messages import CALLS, Message, as_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Part = Literal["tools", "calls", "responses", "reasoning", "developer"]
Tools = Sequence[dict[str, Any]]
WORD = "wordthattemplateshavenot"
"""The test word for templates."""


def _each(expression: str) -> str:
    """Jinja code that replaces every message by an expression of `message`."""
    return (
        "{%- set plain = namespace(turns=[]) -%}{%- for message in messages -%}"
        f"{{%- set plain.turns = plain.turns + [{expression}] -%}}"
        "{%- endfor -%}{%- set messages = plain.turns -%}"
    )


FALLBACKS = {
    "developer": _each("dict(message, role='system') if message['role'] == 'developer' else message"),
    "reasoning": _each(
        "dict(message, content='<think>\\n' + message['reasoning_content'] + '\\n</think>\\n\\n' +"
        " (message['content'] or '')) if message['reasoning_content'] else message"
    ),
    "calls": _each(
        "dict(message, content=(message['content'] + '\\n' if message['content'] else '') + '<tool_call>\\n' +"
        " (message['tool_calls'] | map(attribute='function') | map('tojson') |"
        " join('\\n</tool_call>\\n<tool_call>\\n')) + '\\n</tool_call>') if message['tool_calls'] else message"
    ),
    "responses": _each(
        "dict(message, role='user', content='<tool_response>\\n' + message['content'] + '\\n</tool_response>')"
        " if message['role'] == 'tool' else message"
    ),
    "tools": (
        "{%- if tools -%}{%- set plain = namespace(turns=messages, system='You can call these tools:\\n<tools>\\n' +"
        " (tools | map('tojson') | join('\\n')) + '\\n</tools>\\nA call is written as\\n<tool_call>\\n"
        '{"name": name, "arguments": {name: value}}\\n</tool_call>\') -%}'
        "{%- if messages[0]['role'] == 'system' -%}"
        "{%- set plain.system = messages[0]['content'] + '\\n\\n' + plain.system -%}"
        "{%- set plain.turns = messages[1:] -%}{%- endif -%}"
        "{%- set messages = [{'role': 'system', 'content': plain.system}] + plain.turns -%}{%- endif -%}"
    ),
}
"""Part -> Jinja code that writes it into the messages' texts, in the order in which the codes precede a template."""
_CALL = {"type": "function", "id": "call12345", "function": {"name": WORD, "arguments": {WORD: WORD}}}
_TOOL = {"name": WORD, "description": "it", "parameters": {"type": "object", "properties": {}, "required": []}}
_USER: Message = {"role": "user", "content": "well?"}
_ANSWER: Message = {"role": "assistant", "content": "yes"}
TRIALS: dict[str, list[Message]] = {
    "tools": [_USER, _ANSWER],
    "calls": [_USER, {"role": "assistant", "content": "", CALLS: [_CALL]}],
    "responses": [
        _USER, {**_ANSWER, CALLS: [_CALL | {"function": {"name": "it", "arguments": {}}}]},
        {"role": "tool", "name": "it", "tool_call_id": "call12345", "content": WORD}, _ANSWER,
    ],
    "reasoning": [_USER, {**_ANSWER, "reasoning_content": WORD}],
    "names": [{**_USER, "name": WORD}, _ANSWER],
    "neighbors": [_USER, {**_USER, "content": WORD}, _ANSWER],
}  # fmt: skip


def parts_of(messages: Iterable[Message], tools: Tools | None) -> set[str]:
    """The parts that a chat has."""
    found = {"tools"} if tools else set()
    for message in messages:
        found |= {"calls"} if message.get(CALLS) else set()
        found |= {"reasoning"} if message.get("reasoning_content") else set()
        found |= {"responses"} if message["role"] == "tool" else set()
        found |= {"developer"} if message["role"] == "developer" else set()
    return found


def lacking(parts: Collection[str], template: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The parts that a template does not support, in the order of `FALLBACKS`."""
    return [part for part in FALLBACKS if part in parts and not writes(part, template, tokenizer)]


@lru_cache(maxsize=256)
def writes(part: str, template: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a template renders a part, or accepts consecutive turns of one role (`neighbors`)."""
    from jinja2 import TemplateError

    if part == "developer":  # rendering proves nothing: a template may print unknown roles unchanged
        return "developer" in template
    tools = [{"type": "function", "function": _TOOL}] if part == "tools" else None
    try:
        return WORD in apply(TRIALS[part], tokenizer, template, tools)
    except (TemplateError, TypeError):
        return False


def apply(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, template: str, tools: Tools | None = None,
    ask: bool = False,
) -> str:  # fmt: skip
    """The messages as a template renders them.

    If that fails and the chat has calls, the template is tried with the calls' arguments as JSON text (DeepSeek), then
    with ids of nine letters and digits (Mistral).

    Raises:
        TemplateError, TypeError: the first error of the template.
    """
    from jinja2 import TemplateError

    has_calls = any(message.get(CALLS) or message["role"] == "tool" for message in messages)
    failure: Exception | None = None
    for form in (list, _with_json_arguments, _with_short_ids) if has_calls else (list,):
        try:
            text = tokenizer.apply_chat_template(
                [dict(message) for message in form(messages)],
                tools=list(tools) if tools else None,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=ask,
            )
        except (TemplateError, TypeError) as error:
            failure = failure or error
            continue
        assert isinstance(text, str)
        return text
    assert failure is not None
    raise failure


def _with_json_arguments(messages: Sequence[Message]) -> list[Message]:
    def as_text(call: dict[str, Any]) -> dict[str, Any]:
        arguments = call["function"]["arguments"]
        text = arguments if isinstance(arguments, str) else as_json(arguments)
        return {**call, "function": {**call["function"], "arguments": text}}

    return [{**m, CALLS: [as_text(call) for call in m[CALLS]]} if m.get(CALLS) else m for m in messages]


def _with_short_ids(messages: Sequence[Message]) -> list[Message]:
    """The messages with call ids of nine letters and digits; responses without an id get those of the calls, in
    order."""
    found: list[Message] = []
    open_ids: list[str] = []
    for number, message in enumerate(messages):
        if message.get(CALLS):
            names = [call.get("id") or f"{number} {i}" for i, call in enumerate(message[CALLS])]
            open_ids = [hashlib.sha256(str(name).encode()).hexdigest()[:9] for name in names]
            calls = [{**call, "id": name} for call, name in zip(message[CALLS], open_ids, strict=True)]
            message = {**message, CALLS: calls}
        elif message["role"] == "tool":
            call_id = message.get("tool_call_id")
            next_id = open_ids.pop(0) if open_ids else "0" * 9
            message = {
                **message,
                "tool_call_id": hashlib.sha256(call_id.encode()).hexdigest()[:9] if call_id else next_id,
            }
        found.append(message)
    return found


def joined(messages: Sequence[Message], template: str, tokenizer: PreTrainedTokenizerBase) -> list[Message]:
    """The messages, with consecutive messages of one role merged if the template does not accept them."""
    same = [a["role"] == b["role"] and a["role"] in ("user", "assistant") for a, b in pairwise(messages)]
    if not any(same) or writes("neighbors", template, tokenizer):
        return list(messages)
    found = [messages[0]]
    for message, follows in zip(messages[1:], same, strict=True):
        last = found[-1]
        if follows and {*last} == {*message} == {"role", "content"}:
            found[-1] = {**last, "content": f"{last['content']}\n\n{message['content']}"}
        else:
            found.append(message)
    return found
