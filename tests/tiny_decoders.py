"""Shared by tests of decoders: tiny models over bytes, rows, their encoding, and the loss of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pefttools.tasks.causal_lm import CausalLM

FAMILIES = ("llama", "qwen2", "gemma", "mistral", "gpt2")
ROWS = [
    {"prompt": "one", "completion": "1"},
    {"prompt": "two and three", "completion": "23"},
    {"prompt": "seven, eight and nine", "completion": "789 of them"},
    {"prompt": "four", "completion": "4"},
]


def make_model(family: str, seed: int = 0, **more: Any) -> Any:
    """A tiny decoder over bytes; weights large enough for every token to matter."""
    import transformers

    sizes = {"vocab_size": 259, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "attn_implementation": "sdpa"}
    wide = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    if family == "gpt2":
        sizes |= {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
        sizes |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    elif family == "opt":
        sizes |= {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        sizes |= {"word_embed_proj_dim": 32, "max_position_embeddings": 512}
    else:
        sizes |= {**wide, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512}
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(family, **{**sizes, **more})
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def encoded(task: CausalLM, rows: list[dict[str, Any]], tokenizer: Any) -> dict[str, list[Any]]:
    return task.encode([task.read(row) for row in rows], tokenizer)


def loss_of(task: CausalLM, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return task.loss(model(**task.inputs_of(batch)), batch)
