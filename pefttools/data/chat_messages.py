"""The turns of a chat, as files of any common form write them, as the messages that chat templates take.

A message is `{"role": "system" | "developer" | "user" | "assistant" | "tool", "content": text}`, with these where the
file has them: `tool_calls`, `reasoning_content`, `name`, `tool_call_id`, and `weight: 0` of an answer that is not to be
learnt.
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
"""What files call who speaks, in small letters -> what templates call them; `tool_calls` is an assistant's call."""
ROLE_KEYS, TEXT_KEYS = ("role", "from"), ("content", "value")
WEIGHT_KEYS = ("weight", "loss_weight", "train", "training", "loss")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
CALL_KEYS = (CALLS, "function_call")
EMPTY = (None, "", [], {})
OTHER_KEYS = ("name", "tool_call_id")
"""Keys that go to the chat template as they are."""
TEXT_PARTS = ("text", "input_text", "output_text")
REASONING_PARTS = ("reasoning", "thinking")
CALL_PARTS = ("tool_call", "function_call")


def read_messages(value: Any, field: str, unread: list[str]) -> list[Message]:
    """The messages of a list of turns, of one turn, or of the JSON text of either; empty system messages left out.

    Args:
        field: where they stand in the row, for messages.
        unread: what of the turns was not read is added to it.

    Raises:
        ValueError: something is no turn, or has an unknown role, no text, or a weight between 0 and 1.
    """
    turns = from_json(value)
    if isinstance(turns, Mapping):
        turns = [turns]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
        raise ValueError(
            f"has {field} that are not a list of {{role, content}} or {{from, value}}: {str(value)[:80]!r}"
        )
    turns = [turn for one in turns for turn in _spoken(one)]
    messages = [_message(turn, number, field, unread) for number, turn in enumerate(turns, 1)]
    return [message for message in messages if message["role"] != "system" or message["content"].strip()]


def read_tools(value: Any) -> list[dict[str, Any]]:
    """Descriptions of functions, as chat templates take them, from a list or its JSON text; empty where there are none.

    Raises:
        ValueError: it is no list of descriptions.
    """
    given = from_json(value)
    given = [given] if isinstance(given, Mapping) else given
    if given is None or given == "" or given == []:
        return []
    tools = [from_json(tool) for tool in given] if isinstance(given, list) else [given]
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError(f"has tools that are not a list of {{name, description, parameters}}: {str(value)[:80]!r}")
    bare = [_without_nulls(tool) for tool in tools]
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in bare]


def from_json(value: Any) -> Any:
    """What a text of JSON holds, if it is one of a list or an object; any other value as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _spoken(turn: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The turns of `{human: text, assistant: text}`; any other turn alone."""
    if not {*ROLE_KEYS} & {*turn} and {str(key).lower() for key in turn} <= {*ROLES}:
        return [{"role": role, "content": said} for role, said in turn.items() if said is not None]
    return [turn]


def _message(turn: Mapping[str, Any], number: int, field: str, unread: list[str]) -> Message:
    given = {str(key): value for key, value in turn.items() if value is not None}
    named = next((key for key in ROLE_KEYS if key in given), ROLE_KEYS[0])
    who = str(given.get(named)).strip().lower() if named in given else None
    if who not in ROLES:
        known = ", ".join(map(repr, ROLES))
        raise ValueError(f"has {field} whose turn {number} has the {named} {given.get(named)!r}; known are {known}")
    role, place = ROLES[who], f"turn {number} of its {field}"
    message: Message = {"role": "assistant" if role == CALLS else role, "content": ""}
    written = next((key for key in TEXT_KEYS if key in given), TEXT_KEYS[0])
    said = given.get(written)
    if role == CALLS:
        _add_calls(message, said, place)
        said = None if CALLS in message else said
    _add_content(message, said, place, field, unread)
    for key in CALL_KEYS:
        if given.get(key):
            _add_calls(message, given[key], place, key)
    if reasoning := next((given[key] for key in REASONING_KEYS if given.get(key)), None):
        message["reasoning_content"] = text(reasoning, f"reasoning in {place}")
    message |= {key: given[key] for key in OTHER_KEYS if given.get(key)}
    weights = {key: given[key] for key in WEIGHT_KEYS if key in given}
    if message["role"] == "assistant":
        learnt = [_is_learnt(value, key, place) for key, value in weights.items()]  # each is checked
        message |= {} if all(learnt) else {"weight": 0}
    else:
        unread += [f"`{key}` of turns that are no answers" for key, value in weights.items() if value]
    known = {named, written, *WEIGHT_KEYS, *REASONING_KEYS, *CALL_KEYS, *OTHER_KEYS}
    unread += [f"`{field}.{key}`" for key, value in given.items() if key not in known and value not in EMPTY]
    may_be_empty = message["role"] in ("system", "developer", "tool") or {CALLS, "reasoning_content"} & {*message}
    if not may_be_empty and not message["content"].strip():
        raise ValueError(f"has no {written} in {place}")
    return message


def _add_content(message: Message, said: Any, place: str, field: str, unread: list[str]) -> None:
    """Put the text of a turn, or of its parts, into its message."""
    is_parts = isinstance(said, list) and all(isinstance(part, (str, Mapping)) for part in said)
    if is_parts and all(isinstance(part, str) or "type" in part or "text" in part for part in said):
        texts = [part if isinstance(part, str) else _part(message, part, place, field, unread) for part in said]
        message["content"] = _checked("".join(texts), place)
    elif isinstance(said, (list, Mapping)) and message["role"] == "tool":
        message["content"] = as_json(said)
    elif said is not None:
        message["content"] = _checked(said, place)


def _checked(said: Any, place: str) -> str:
    return text(said, f"content in {place}") if not isinstance(said, str) or said.strip() else said


def _part(message: Message, part: Mapping[str, Any], place: str, field: str, unread: list[str]) -> str:
    """The text of a part; reasoning and calls go into the message."""
    kind = part.get("type") or "text"
    keys = (*TEXT_PARTS, "value", "content", *REASONING_PARTS, *CALL_PARTS)
    name, said = next(((key, part[key]) for key in keys if part.get(key) is not None), ("text", None))
    others = [key for key, value in part.items() if key not in ("type", name) and value not in EMPTY]
    unread += [f"`{field}.content.{key}`" for key in others]
    if kind in TEXT_PARTS:
        return "" if said is None else _checked(said, place)
    if kind in REASONING_PARTS:
        message["reasoning_content"] = message.get("reasoning_content", "") + text(said, f"{kind} in {place}")
    elif kind in CALL_PARTS:
        _add_calls(message, said, place, kind)
    else:
        raise ValueError(f"has {place} with a part of the type {kind!r}; only text is learnt here, not images or sound")
    return ""


def _add_calls(message: Message, value: Any, place: str, key: str | None = None) -> None:
    """Put calls of tools into a message, their arguments as an object; a text that is no call is left where it is.

    Raises:
        ValueError: what stands under `key` is no call.
    """
    given = from_json(value)
    calls: list[Any] = []
    for one in given if isinstance(given, list) else [given]:
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
    """Whether a weight is 1 and not 0. Raises ValueError where it is neither."""
    words = {"true": 1.0, "false": 0.0}
    try:
        weight = words.get(value.strip().lower(), value) if isinstance(value, str) else value
        weight = float(weight)
    except (TypeError, ValueError):
        weight = math.nan
    if weight not in (0.0, 1.0):
        raise ValueError(
            f"has {place} with the {key} {value!r}; an answer is learnt (1) or not (0), and no weight between or"
            " above can be given to it"
        )
    return weight == 1.0


def _without_nulls(value: Any) -> Any:
    """The value without the nulls that columnar files put where an object lacks what another one has."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def answer_text(message: Message) -> str:
    """All that an assistant writes in a turn, in the form of templates that have none of their own for it."""
    parts = [message["content"]] if message["content"] or not message.get(CALLS) else []
    parts += [f"<tool_call>\n{as_json(call['function'])}\n</tool_call>" for call in message.get(CALLS, ())]
    thought = message.get("reasoning_content")
    return (f"<think>\n{thought}\n</think>\n\n" if thought else "") + "\n".join(parts)


def transcript(messages: Sequence[Message]) -> str:
    """The messages as text, the same under every template."""
    return "\n".join(f"{message['role']}: {answer_text(message)}" for message in messages)
