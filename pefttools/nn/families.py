"""Roles of the matrices in a block, as a small table per model family.

A block is one member of a stack (`bert.encoder.layer.0`). Roles are named after what the module computes: `query`,
`key`, `value` and `output` of attention (including cross-attention), `gate`, `up` and `down` of the MLP. A matrix that
computes several roles (GPT-2's `c_attn`, ModernBERT's `Wqkv` and `Wi`) is listed under each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ROLES = ("query", "key", "value", "output", "gate", "up", "down")


@dataclass(frozen=True)
class Family:
    """The paths of a model family's blocks, and the roles of the matrices in a block."""

    stacks: tuple[str, ...]
    """Suffixes of the paths of the lists of blocks, lowest first."""
    roles: Mapping[str, tuple[str, ...]]
    """Role -> paths inside a block; paths that a model lacks (cross-attention in an encoder) are ignored."""
    below: tuple[str, ...] = ()
    """Suffixes of the paths of modules that feed the blocks although they follow them in the model's order."""


BERT = Family(
    ("encoder.layer",),
    {
        "query": ("attention.self.query",),
        "key": ("attention.self.key",),
        "value": ("attention.self.value",),
        "output": ("attention.output.dense",),
        "up": ("intermediate.dense",),
        "down": ("output.dense",),
    },
)
DEBERTA = Family(
    BERT.stacks,
    {
        **BERT.roles,
        "query": ("attention.self.query_proj", "attention.self.in_proj"),
        "key": ("attention.self.key_proj", "attention.self.in_proj"),
        "value": ("attention.self.value_proj", "attention.self.in_proj"),
    },
    below=("encoder.LayerNorm", "encoder.conv"),
)
DISTILBERT = Family(
    ("transformer.layer",),
    {
        "query": ("attention.q_lin",),
        "key": ("attention.k_lin",),
        "value": ("attention.v_lin",),
        "output": ("attention.out_lin",),
        "up": ("ffn.lin1",),
        "down": ("ffn.lin2",),
    },
)
MODERNBERT = Family(
    ("layers",),
    {
        "query": ("attn.Wqkv",),
        "key": ("attn.Wqkv",),
        "value": ("attn.Wqkv",),
        "output": ("attn.Wo",),
        "gate": ("mlp.Wi",),
        "up": ("mlp.Wi",),
        "down": ("mlp.Wo",),
    },
)
LLAMA = Family(
    ("layers",),
    {
        "query": ("self_attn.q_proj",),
        "key": ("self_attn.k_proj",),
        "value": ("self_attn.v_proj",),
        "output": ("self_attn.o_proj",),
        "gate": ("mlp.gate_proj",),
        "up": ("mlp.up_proj",),
        "down": ("mlp.down_proj",),
    },
)
GPT2 = Family(
    ("transformer.h", "h"),
    {
        "query": ("attn.c_attn",),
        "key": ("attn.c_attn",),
        "value": ("attn.c_attn",),
        "output": ("attn.c_proj",),
        "up": ("mlp.c_fc",),
        "down": ("mlp.c_proj",),
    },
)
T5 = Family(
    ("encoder.block", "decoder.block"),
    {
        "query": ("layer.0.SelfAttention.q", "layer.1.EncDecAttention.q"),
        "key": ("layer.0.SelfAttention.k", "layer.1.EncDecAttention.k"),
        "value": ("layer.0.SelfAttention.v", "layer.1.EncDecAttention.v"),
        "output": ("layer.0.SelfAttention.o", "layer.1.EncDecAttention.o"),
        "gate": ("layer.1.DenseReluDense.wi_0", "layer.2.DenseReluDense.wi_0"),
        "up": tuple(f"layer.{i}.DenseReluDense.{name}" for i in (1, 2) for name in ("wi", "wi_1")),
        "down": ("layer.1.DenseReluDense.wo", "layer.2.DenseReluDense.wo"),
    },
)
BART = Family(
    ("encoder.layers", "decoder.layers"),
    {
        "query": ("self_attn.q_proj", "encoder_attn.q_proj"),
        "key": ("self_attn.k_proj", "encoder_attn.k_proj"),
        "value": ("self_attn.v_proj", "encoder_attn.v_proj"),
        "output": ("self_attn.out_proj", "encoder_attn.out_proj"),
        "up": ("fc1",),
        "down": ("fc2",),
    },
    below=("layernorm_embedding",),
)

FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), BERT),
    **dict.fromkeys(("deberta", "deberta-v2"), DEBERTA),
    "distilbert": DISTILBERT,
    "modernbert": MODERNBERT,
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text", "olmo2"), LLAMA
    ),
    "gpt2": GPT2,
    **dict.fromkeys(("t5", "mt5"), T5),
    **dict.fromkeys(("bart", "mbart", "marian", "pegasus", "m2m_100"), BART),
}
"""`model_type` of the configuration -> its family."""
