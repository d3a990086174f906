"""Convert the turns of a chat, in any common file format, to the messages that chat templates expect.

A message is `{"role": "system" | "developer" | "user" | "assistant" | "tool", "content": text}`. If the file has them,
it also has `tool_calls`, `reasoning_content`, `name`, `tool_call_id`, and `weight: 0` for an answer that is excluded
from training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pefttools.data.fields import text

Message = dict[str, Any]

CALLS = "tool_calls"
ROLES = {
    "system": "system", "developer": "developer", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "function_call": CALLS, "tool_call": CALLS, "tool_calls": CALLS,
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool", "tool_response": "tool",
    "ipython": "tool",
}  # fmt: skip
"""Role in a file, in lower case -> role of chat templates; `tool_calls` stands for an assistant's call."""
ROLE_KEYS, TEXT_KEYS = ("role", "from"), ("content", "value")
WEIGHT_KEYS = ("weight", "loss_weight", "train", "training", "loss")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
CALL_KEYS = (CALLS, "function_call")
EMPTY = (None, "", [], {})
OTHER_KEYS = ("name", "tool_call_id")
"""Keys that are passed to the chat template unchanged."""
TEXT_PARTS = ("text", "input_text", "output_text")
REASONING_PARTS = ("reasoning", "thinking")
CALL_PARTS = ("tool_call", "function_call")


def read_messages(value: Any, field: str, unread: list[str]) -> list[Message]:
    """The messages of a list of turns, of one turn, or of the JSON text of either, without empty system messages.

    Args:
        field: the row's field with these turns, for error messages.
        unread: parts of the turns that were not read are appended to this list.

    Raises:
        ValueError: an item is not a turn, or has an unknown role, no text, or a weight other than 0 and 1.
    """
    turns = from_json(value)
    if isinstance(turns, Mapping):
        turns = [turns]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
        raise ValueError(
            f"has {field} that are not a list of {{role, content}} or {{from, value}}: {str(value)[:80]!r}"
        )
    turns = [turn for one in turns for turn in _turns(one)]
    messages = [_message(turn, number, field, unread) for number, turn in enumerate(turns, 1)]
    return [message for message in messages if message["role"] != "system" or message["content"].strip()]


def read_tools(value: Any) -> list[dict[str, Any]]:
    """Descriptions of functions in the form of chat templates, from a list or its JSON text; empty without tools.

    Raises:
        ValueError: the value is not a list of descriptions.
    """
    loaded = from_json(value)
    loaded = [loaded] if isinstance(loaded, Mapping) else loaded
    if loaded is None or loaded == "" or loaded == []:
        return []
    tools = [from_json(tool) for tool in loaded] if isinstance(loaded, list) else [loaded]
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError(f"has tools that are not a list of {{name, description, parameters}}: {str(value)[:80]!r}")
    bare = [_without_nulls(tool) for tool in tools]
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in bare]


def from_json(value: Any) -> Any:
    """The list or object that a JSON text contains; any other value unchanged."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _turns(turn: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The turns of a mapping like `{human: text, assistant: text}`; any other turn as a list of one."""
    if not {*ROLE_KEYS} & {*turn} and {str(key).lower() for key in turn} <= {*ROLES}:
        return [{"role": role, "content": content} for role, content in turn.items() if content is not None]
    return [turn]


def _message(turn: Mapping[str, Any], number: int, field: str, unread: list[str]) -> Message:
    fields = {str(key): value for key, value in turn.items() if value is not None}
    role_key = next((key for key in ROLE_KEYS if key in fields), ROLE_KEYS[0])
    speaker = str(fields.get(role_key)).strip().lower() if role_key in fields else None
    if speaker not in ROLES:
        known = ", ".join(map(repr, ROLES))
        raise ValueError(
            f"has {field} whose turn {number} has the {role_key} {fields.get(role_key)!r}; known roles are {known}"
        )
    role, place = ROLES[speaker], f"turn {number} of its {field}"
    message: Message = {"role": "assistant" if role == CALLS else role, "content": ""}
    text_key = next((key for key in TEXT_KEYS if key in fields), TEXT_KEYS[0])
    content = fields.get(text_key)
    if role == CALLS:
        _add_calls(message, content, place)
        content = None if CALLS in message else content
    _add_content(message, content, place, field, unread)
    for key in CALL_KEYS:
        if fields.get(key):
            _add_calls(message, fields[key], place, key)
    if reasoning := next((fields[key] for key in REASONING_KEYS if fields.get(key)), None):
        message["reasoning_content"] = text(reasoning, f"reasoning in {place}")
    message |= {key: fields[key] for key in OTHER_KEYS if fields.get(key)}
    weights = {key: fields[key] for key in WEIGHT_KEYS if key in fields}
    if message["role"] == "assistant":
        learnt = [_is_learnt(value, key, place) for key, value in weights.items()]  # checks every value
        message |= {} if all(learnt) else {"weight": 0}
    else:
        unread += [f"`{key}` of turns that are not answers" for key, value in weights.items() if value]
    known = {role_key, text_key, *WEIGHT_KEYS, *REASONING_KEYS, *CALL_KEYS, *OTHER_KEYS}
    unread += [f"`{field}.{key}`" for key, value in fields.items() if key not in known and value not in EMPTY]
    may_be_empty = message["role"] in ("system", "developer", "tool") or {CALLS, "reasoning_content"} & {*message}
    if not may_be_empty and not message["content"].strip():
        raise ValueError(f"has no {text_key} in {place}")
    return message


def _add_content(message: Message, content: Any, place: str, field: str, unread: list[str]) -> None:
    """Set the content of a message from the text of a turn, or of its parts."""
    is_parts = isinstance(content, list) and all(isinstance(part, (str, Mapping)) for part in content)
    if is_parts and all(isinstance(part, str) or "type" in part or "text" in part for part in content):
        texts = [part if isinstance(part, str) else _part(message, part, place, field, unread) for part in content]
        message["content"] = _checked("".join(texts), place)
    elif isinstance(content, (list, Mapping)) and message["role"] == "tool":
        message["content"] = as_json(content)
    elif content is not None:
        message["content"] = _checked(content, place)


def _checked(content: Any, place: str) -> str:
    return text(content, f"content in {place}") if not isinstance(content, str) or content.strip() else content


def _part(message: Message, part: Mapping[str, Any], place: str, field: str, unread: list[str]) -> str:
    """The text of a part; reasoning and calls are added to the message instead."""
    kind = part.get("type") or "text"
    keys = (*TEXT_PARTS, "value", "content", *REASONING_PARTS, *CALL_PARTS)
    name, content = next(((key, part[key]) for key in keys if part.get(key) is not None), ("text", None))
    others = [key for key, value in part.items() if key not in ("type", name) and value not in EMPTY]
    unread += [f"`{field}.content.{key}`" for key in others]
    if kind in TEXT_PARTS:
        return "" if content is None else _checked(content, place)
    if kind in REASONING_PARTS:
        message["reasoning_content"] = message.get("reasoning_content", "") + text(content, f"{kind} in {place}")
    elif kind in CALL_PARTS:
        _add_calls(message, content, place, kind)
    else:
        raise ValueError(f"has {place} with a part of the type {kind!r}; only text is supported, not images or sound")
    return ""


def _add_calls(message: Message, value: Any, place: str, key: str | None = None) -> None:
    """Add tool calls to a message, with arguments as an object; a text that is not a call is ignored.

    Raises:
        ValueError: the value under `key` is not a call.
    """
    loaded = from_json(value)
    calls: list[Any] = []
    for one in loaded if isinstance(loaded, list) else [loaded]:
        call = from_json(one)
        function = from_json(call.get("function", call)) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            if key is None:
                return
            raise ValueError(f"has {place} with {key} that are not a list of {{name, arguments}}: {str(value)[:80]!r}")
        arguments = next((function[k] for k in ("arguments", "parameters", "args") if function.get(k) is not None), {})
        calls.append(
            {
                "type": "function",
                **({"id": call["id"]} if call.get("id") else {}),
                "function": {"name": function["name"], "arguments": from_json(arguments)},
            }
        )
    if calls:
        message[CALLS] = [*message.get(CALLS, []), *calls]


def _is_learnt(value: Any, key: str, place: str) -> bool:
    """Whether a weight is 1; False for 0. Raises ValueError for any other weight."""
    words = {"true": 1.0, "false": 0.0}
    try:
        weight = words.get(value.strip().lower(), value) if isinstance(value, str) else value
        weight = float(weight)
    except (TypeError, ValueError):
        weight = math.nan
    if weight not in (0.0, 1.0):
        raise ValueError(
            f"has {place} with the {key} {value!r}; only the weights 1 (train on the answer) and 0 (do not)"
            " are supported"
        )
    return weight == 1.0


def _without_nulls(value: Any) -> Any:
    """The value without nulls, which columnar files store for keys that an object does not have."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def answer_text(message: Message) -> str:
    """An assistant's turn as one text: reasoning, content and calls, in the fallback format (see `chat_parts`)."""
    parts = [message["content"]] if message["content"] or not message.get(CALLS) else []
    parts += [f"<tool_call>\n{as_json(call['function'])}\n</tool_call>" for call in message.get(CALLS, ())]
    thought = message.get("reasoning_content")
    return (f"<think>\n{thought}\n</think>\n\n" if thought else "") + "\n".join(parts)


def transcript(messages: Sequence[Message]) -> str:
    """The messages as one text that does not depend on a chat template."""
    return "\n".join(f"{message['role']}: {answer_text(message)}" for message in messages)
