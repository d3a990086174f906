"""Compare llama.cpp's replies with those of transformers: prompts through the chat template in the file, and the end.

Greedy replies are compared token by token. They may part where two tokens are almost equally likely, because llama.cpp
rounds activations; so only prompts of other tokens, and replies none of which ends, are a problem.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pefttools.exporters import llama_cpp
from pefttools.exporters.base import Chat

INCOMPLETE = "\ufffd"


def compared(folder: Path, file: str, chats: Sequence[Chat]) -> tuple[dict[str, Any], list[str]]:
    """Facts on llama.cpp's replies for the manifest, under `replies`, and problems.

    Args:
        folder: with the tokenizer.
        file: the name of the GGUF file in it.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    limits = [max(1, one.answer["num_tokens"]) for one in chats]
    longest = max(len(one.prompt) + 2 * limit for one, limit in zip(chats, limits, strict=True))
    server = llama_cpp.open_server(folder / file, max(256, longest + 64))
    problems: list[str] = []
    failures: list[str] = []
    equal = tokens = stopped = 0
    for one, limit in zip(chats, limits, strict=True):
        ends = one.answer["finish"] == "stop"
        try:
            found = llama_cpp.reply(server, one.source, 2 * limit if ends else limit)
        except RuntimeError as error:  # its parser of templates is not Jinja2
            failures.append(str(error))
            continue
        if _is_plain(one) and found["prompt_tokens"] != len(one.prompt):
            problems.append(
                f"llama.cpp's chat template makes {found['prompt_tokens']} tokens of a prompt that has"
                f" {len(one.prompt)} in training"
            )
        # the two show characters that the limit of tokens cuts in different ways
        texts = (text.rstrip(INCOMPLETE) for text in (one.answer["text"], found["text"]))
        expected, written = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
        equal += common(expected, written)
        tokens += max(len(expected), 1)
        stopped += ends and found["finish"] == "stop"
    ending = sum(one.answer["finish"] == "stop" for one in chats)
    if len(failures) == len(chats):
        problems.append(f"llama.cpp answers no prompt: {failures[0]}")
    elif ending and not stopped:
        problems.append(f"llama.cpp's replies do not stop, while the trained model's do in {ending} of {len(chats)}")
    replies = {
        "rows": len(chats), "equal_tokens": equal, "tokens": tokens, "stopped": stopped,
        "ending": ending, "failed": len(failures),
    }  # fmt: skip
    return {"replies": replies}, problems


def _is_plain(chat: Chat) -> bool:
    """Whether a prompt consists of texts alone; llama.cpp writes tools and their calls with other spaces."""
    messages = chat.source.get("messages", ())
    return not chat.source.get("tools") and all({*one} <= {"role", "content"} for one in messages)


def common(expected: Sequence[int], written: Sequence[int]) -> int:
    """The number of tokens up to the first difference; 1 for two empty texts."""
    if not expected:
        return int(not written)
    pairs = zip(expected, written, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(expected), len(written)))


def sentence(replies: Mapping[str, Any]) -> str:
    """The facts as a sentence."""
    return (
        f"llama.cpp's greedy replies to {replies['rows']} prompts have {replies['equal_tokens']} of transformers'"
        f" {replies['tokens']} tokens up to the first difference; it stops by itself in {replies['stopped']} of the"
        f" {replies['ending']} where transformers does"
        + (f"; it cannot process {replies['failed']} of the prompts" if replies["failed"] else "")
    )
