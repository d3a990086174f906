"""Next-token probabilities of a GGUF file, computed by llama.cpp through the xllamacpp package."""

from __future__ import annotations

from collections.abc import Sequence
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

    Keys and values are cached in fp32, and no cache is shared between prompts.

    Raises:
        RuntimeError: llama.cpp cannot load the file or process a prompt.
    """
    import torch
    import xllamacpp

    library: Any = xllamacpp
    settings = library.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx = max(256, *(len(prompt) + 8 for prompt in prompts))
    settings.n_parallel, settings.cpuparams.n_threads = 1, torch.get_num_threads()
    settings.cache_type_k = settings.cache_type_v = library.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = library.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.warmup, settings.verbosity = False, -1
    server = library.Server(settings)
    request = {"max_tokens": 1, "logprobs": LIKELIEST, "temperature": 0.0, "cache_prompt": False}
    return [_likeliest(server.handle_completions({**request, "prompt": list(prompt)})) for prompt in prompts]


def _likeliest(answer: Any) -> dict[int, float]:
    if "choices" not in answer:
        raise RuntimeError(f"llama.cpp: {answer.get('error', answer)}")
    (token,) = answer["choices"][0]["logprobs"]["content"]
    return {each["id"]: each["logprob"] for each in token["top_logprobs"]}


def gap(logprobs: dict[int, float], logits: Tensor) -> float:
    """The largest difference of llama.cpp's `logprobs` (token id -> value) from those of `logits` (vocabulary,)."""
    expected = logits.double().log_softmax(-1)
    return max(abs(value - float(expected[token])) for token, value in logprobs.items())
