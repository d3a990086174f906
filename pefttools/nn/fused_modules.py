"""Build an `EncoderBlock` or a `DecoderBlock` from a block of transformers, where it computes the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers.activations import GELUActivation

from pefttools.nn import lora_linear
from pefttools.nn.decoder_block import DecoderBlock
from pefttools.nn.encoder_block import EncoderBlock
from pefttools.nn.fused_weights import DTYPE
from pefttools.nn.joint_linear import JointLinear, Layer

ENCODERS = ("BertLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer", "ElectraLayer", "ErnieLayer")
"""Names of the block classes of transformers that compute what `EncoderBlock` does."""
DECODERS = {
    "LlamaDecoderLayer": "LlamaRMSNorm",
    "MistralDecoderLayer": "MistralRMSNorm",
    "Qwen2DecoderLayer": "Qwen2RMSNorm",
}
"""Names of the block classes that compute what `DecoderBlock` does, and those of their norms."""
SILU = ("SiLU", "SiLUActivation")
MOST_DROPOUT = 0.9
"""Largest probability of dropout; masks for larger ones may leave nothing."""


def encoder(block: Any) -> EncoderBlock | None:
    """None unless `EncoderBlock` computes what the block does."""
    if type(block).__name__ not in ENCODERS or block.is_decoder or block.chunk_size_feed_forward or _has_hooks(block):
        return None
    own, after, last = block.attention.self, block.attention.output, block.output
    linears = (own.query, own.key, own.value, after.dense, block.intermediate.dense, last.dense)
    norms, dropouts = (after.LayerNorm, last.LayerNorm), (own.dropout, after.dropout, last.dropout)
    activation = block.intermediate.intermediate_act_fn
    known = (
        _are_known(linears)
        and all(type(norm) is nn.LayerNorm and norm.bias is not None for norm in norms)
        and all(isinstance(dropout, nn.Dropout) and dropout.p <= MOST_DROPOUT for dropout in dropouts)
        and type(activation) is GELUActivation
        and activation.act is nn.functional.gelu
    )
    if not known:
        return None
    return EncoderBlock(own.num_attention_heads, own.scaling, _products(linears, (3, 1, 1, 1)), norms, dropouts)


def decoder(block: Any, longest: int) -> DecoderBlock | None:
    """None unless `DecoderBlock` computes what the block does for texts of up to `longest` tokens."""
    if type(block).__name__ not in DECODERS or _has_hooks(block):
        return None
    own, mlp, norms = block.self_attn, block.mlp, (block.input_layernorm, block.post_attention_layernorm)
    linears = (own.q_proj, own.k_proj, own.v_proj, own.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    known = (
        _are_known(linears)
        and all(type(norm).__name__ == DECODERS[type(block).__name__] for norm in norms)
        and type(mlp.act_fn).__name__ in SILU
        and own.attention_dropout == 0
        and own.is_causal
        and all((getattr(one, "sliding_window", None) or longest) >= longest for one in (own, own.config))
    )
    if not known:
        return None
    heads = own.config.num_attention_heads
    return DecoderBlock(
        heads, heads // own.num_key_value_groups, own.head_dim, own.scaling, _products(linears, (3, 1, 2, 1)),
        (norms[0].weight, norms[1].weight), (norms[0].variance_epsilon, norms[1].variance_epsilon),
    )  # fmt: skip


def _has_hooks(block: nn.Module) -> bool:
    return any(m._forward_hooks or m._forward_pre_hooks or hasattr(m, "_hf_hook") for m in block.modules())


def _are_known(linears: Sequence[Any]) -> bool:
    return all(type(linear) is nn.Linear or lora_linear.applies(linear) for linear in linears)


def _products(
    linears: Sequence[Any], numbers: tuple[int, int, int, int]
) -> tuple[JointLinear, JointLinear, JointLinear, JointLinear]:
    """Four products, of which each computes as many of the layers as `numbers` says."""
    layers = iter([_layer(linear) for linear in linears])
    one, two, three, four = (JointLinear([next(layers) for _ in range(number)], DTYPE) for number in numbers)
    return one, two, three, four


def _layer(linear: Any) -> Layer:
    if not hasattr(linear, "base_layer"):
        return Layer(linear.weight, linear.bias)
    (name,) = linear.active_adapters
    base: Any = linear.base_layer
    down, up = linear.lora_A[name].weight, linear.lora_B[name].weight
    return Layer(base.weight, base.bias, down, up, lambda: linear.scaling[name])
