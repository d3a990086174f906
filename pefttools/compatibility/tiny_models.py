"""Tiny models of every architecture, built from a configuration, for the support matrix."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pefttools.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from pefttools.bases.loading import Base
    from pefttools.tasks.base import Task

_SIZES = {"vocab_size": 60, "pad_token_id": 0, "eos_token_id": 2}
_PLAIN = {
    **_SIZES, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
_DEBERTA = {**_PLAIN, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
_LLAMA = {**_PLAIN, "num_key_value_heads": 2, "head_dim": 8}
_BART = {
    **_SIZES, "d_model": 32, "max_position_embeddings": 64, "decoder_start_token_id": 2, "forced_eos_token_id": None,
    **{f"{side}_{name}": value for side in ("encoder", "decoder")
       for name, value in {"layers": 2, "attention_heads": 4, "ffn_dim": 64}.items()},
}  # fmt: skip


class Architecture(NamedTuple):
    """A kind of model and the configuration of a tiny one."""

    group: str
    sizes: Mapping[str, Any]


ARCHITECTURES: Mapping[str, Architecture] = {
    "bert": Architecture("encoders", _PLAIN),
    "roberta": Architecture("encoders", _PLAIN),
    "distilbert": Architecture(
        "encoders",
        {**_SIZES, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64},
    ),
    "electra": Architecture("encoders", {**_PLAIN, "embedding_size": 16}),
    "deberta": Architecture("encoders", _DEBERTA),
    "deberta-v2": Architecture("encoders", _DEBERTA),
    "modernbert": Architecture(
        "encoders",
        {**_PLAIN, "global_attn_every_n_layers": 2, "local_attention": 16, "bos_token_id": 2, "cls_token_id": 2,
         "sep_token_id": 2},
    ),
    "llama": Architecture("decoders", _LLAMA),
    "qwen2": Architecture("decoders", _LLAMA),
    "gpt2": Architecture(
        "decoders", {**_SIZES, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 2}
    ),
    "gemma": Architecture("decoders", _LLAMA),
    "t5": Architecture(
        "encoder-decoders",
        {**_SIZES, "d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 4, "d_kv": 8,
         "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0},
    ),
    "bart": Architecture("encoder-decoders", _BART),
    "marian": Architecture("encoder-decoders", _BART),
}  # fmt: skip
"""`model_type` -> its tiny configuration."""
WIDE = {**_PLAIN, "hidden_size": 256, "intermediate_size": 512}
"""Configuration of the BERT for `peft_types`: many of peft's defaults are too large for a width of 32."""
QUANTISED = ("bert", "llama")
"""Architectures that are also measured with quantised blocks."""


def base(task: Task, architecture: str, quantised: bool, sizes: Mapping[str, Any]) -> Base:
    """A tiny base with a dummy tokenizer."""
    from types import SimpleNamespace

    from pefttools.bases.heads import tops
    from pefttools.bases.loading import Base
    from pefttools.nn import new_tokens

    values = json.dumps({**sizes, **task.config_values()})
    model = copy.deepcopy(_pretrained(task.auto_class, architecture, values, quantised))
    tokenizer: Any = SimpleNamespace(model_max_length=64)
    head = tops(model) if task.own_head else []
    if task.new_tokens:
        try:
            head += new_tokens.extend(model, len(task.new_tokens))
        except ValueError as error:
            raise UserError(f"base: {architecture} cannot take new tokens: {error}") from error
    made = Base(model, tokenizer, tuple(head), task.peft_type, "it", "", Path())
    task.adapt(made)
    return made


@cache
def _pretrained(auto_class: str, architecture: str, values: str, quantised: bool) -> PreTrainedModel:
    """A model with random weights, none of which has its usual initial value."""
    import torch
    import transformers

    from pefttools.bases.loading import not_causal

    config = transformers.AutoConfig.for_model(architecture, **json.loads(values))
    auto = getattr(transformers, auto_class)
    if type(config) not in auto._model_mapping:
        raise UserError(f"base: transformers has no {auto_class} for it")
    if reason := not_causal(auto_class, config):
        raise UserError(f"base: {reason}")
    torch.manual_seed(0)
    model = jittered(auto.from_config(config))
    return _quantised(model) if quantised else model


def jittered(model: Any) -> Any:
    """The model with noise on every weight, biases and norms included, as if all had been trained."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def _quantised(model: Any) -> PreTrainedModel:
    """The model as transformers would load it in nf4; its head is not quantised."""
    import bitsandbytes as bnb
    import torch

    from pefttools.bases.quantized import matrices

    for path in matrices(model):
        old = model.get_submodule(path)
        new = bnb.nn.Linear4bit(
            old.in_features, old.out_features, old.bias is not None, torch.float32, quant_type="nf4"
        )
        new.weight = bnb.nn.Params4bit(old.weight.detach(), requires_grad=False, quant_type="nf4")  # type: ignore[call-arg]
        new.bias = old.bias
        new.support_avx512bf16_for_cpu = False  # else eval mode repacks the weights, which then pass no gradient
        model.set_submodule(path, new.to("cpu"))
    model.is_loaded_in_4bit = True
    return model


def batch(task: Task, config: Any, padding: int) -> dict[str, Tensor]:
    """The task's batch of four rows of eight tokens, each ending with an end token, which encoder-decoders need."""
    import torch

    ids = torch.randint(3, config.vocab_size, (4, 8), generator=torch.Generator().manual_seed(0))
    added = len(task.new_tokens)
    ids[:, 1 : 1 + added] = config.vocab_size + torch.arange(added)
    ids[:, -1] = config.eos_token_id
    ids = torch.nn.functional.pad(ids, (0, padding), value=config.pad_token_id)
    return task.probe({"input_ids": ids, "attention_mask": (ids != config.pad_token_id).long()})
