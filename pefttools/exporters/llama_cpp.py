"""What llama.cpp makes of a GGUF file, through the xllamacpp package: next-token probabilities, and replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

BINDING = "xllamacpp"
LIKELIEST = 32
"""Number of the most likely next tokens whose probabilities are compared."""


def installed() -> bool:
    return find_spec(BINDING) is not None


def next_tokens(file: Path, prompts: Sequence[Sequence[int]]) -> list[dict[int, float]]:
    """The most likely next tokens of each prompt (token ids), each with the natural logarithm of its probability.

    A prompt has none where the likeliest token is a part of a character, which llama.cpp does not return alone.
    Keys and values are cached in fp32, and no cache is shared between prompts.

    Raises:
        RuntimeError: llama.cpp cannot load the file or process a prompt.
    """
    server = open_server(file, max(256, *(len(prompt) + 8 for prompt in prompts)))
    request = {"max_tokens": 1, "logprobs": LIKELIEST, "temperature": 0.0, "cache_prompt": False}
    return [_likeliest(server.handle_completions({**request, "prompt": list(prompt)})) for prompt in prompts]


def open_server(file: Path, num_tokens: int) -> Any:
    """llama.cpp with the model in a file, for prompts and answers of so many tokens together, one at a time.

    Raises:
        RuntimeError: llama.cpp cannot load the file.
    """
    import torch
    import xllamacpp

    library: Any = xllamacpp
    settings = library.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx = num_tokens
    settings.n_parallel, settings.cpuparams.n_threads = 1, torch.get_num_threads()
    settings.cache_type_k = settings.cache_type_v = library.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = library.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.warmup, settings.verbosity, settings.use_jinja = False, -1, True
    settings.reasoning_format = library.common_reasoning_format.COMMON_REASONING_FORMAT_NONE  # all text is the answer
    server = library.Server(settings)
    # a server that is freed before its first request may wait for its own thread for ever
    server.handle_completions({"prompt": "a", "max_tokens": 1, "cache_prompt": False})
    return server


def reply(server: Any, source: Mapping[str, Any], max_tokens: int) -> dict[str, Any]:
    """The `text` that llama.cpp generates greedily, why it ended (`finish`), and the numbers of tokens.

    Args:
        source: `messages` (and `tools`) for the chat template in the file, or a `text`.

    Raises:
        RuntimeError: llama.cpp cannot process the prompt.
    """
    common = {"max_tokens": max_tokens, "temperature": 0.0, "top_k": 1, "cache_prompt": False}
    if "messages" in source:
        tools = {"tools": source["tools"]} if source.get("tools") else {}
        answer = server.handle_chat_completions({**common, **tools, "messages": list(source["messages"])})
    else:
        answer = server.handle_completions({**common, "prompt": source["text"]})
    if "choices" not in answer:
        raise RuntimeError(f"llama.cpp: {answer.get('error', answer)}")
    choice = answer["choices"][0]
    if choice.get("message", {}).get("tool_calls"):
        raise RuntimeError("llama.cpp: the answer calls a tool, and its text is not returned")
    text = choice["message"].get("content") if "message" in choice else choice["text"]
    return {
        "text": text or "",
        "finish": choice["finish_reason"],
        "prompt_tokens": answer["usage"]["prompt_tokens"],
        "num_tokens": answer["usage"]["completion_tokens"],
    }


def _likeliest(answer: Any) -> dict[int, float]:
    if "choices" not in answer:
        raise RuntimeError(f"llama.cpp: {answer.get('error', answer)}")
    logprobs = answer["choices"][0].get("logprobs")
    if not logprobs or not logprobs["content"]:
        return {}
    (token,) = logprobs["content"]
    return {each["id"]: each["logprob"] for each in token["top_logprobs"]}


def gap(logprobs: dict[int, float], logits: Tensor) -> float:
    """The largest difference of llama.cpp's `logprobs` (token id -> value) from those of `logits` (vocabulary,)."""
    expected = logits.double().log_softmax(-1)
    return max(abs(value - float(expected[token])) for token, value in logprobs.items())
