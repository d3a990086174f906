"""Attention on a CPU (Vaswani et al. 2017, eq. 1) by batched matrix products, for cases where torch's kernel is slow.

torch's fused attention does not support dropout on a CPU, and its backward pass in bf16 is slower than these products.
Long texts, and texts in fp32 without dropout, use torch's kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pefttools.nn.dropout import dropout as dropped

LONGEST = 256
"""Largest number of keys for which probabilities are computed as a matrix, whose memory grows with the square."""
FEW = {False: 32, True: 64}
"""Whether in bf16 -> the limit for inference, and for fp32 without dropout."""
NAME = "plain_while_short"
"""The name of `forward` in transformers' registry of attention implementations."""
OTHERS = ("softcap", "position_bias", "cache", "s_aux")
"""Arguments of other kinds of attention, which transformers computes."""


def attention(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, scaling: float, p: float, is_causal: bool
) -> Tensor:
    """softmax(QKᵀ · scaling) V, with dropout of probabilities.

    Args:
        query: (rows, heads, tokens, size); `key` and `value` have the same form with any number of tokens.
        allowed: the keys that each query attends to: bool, (rows or 1, 1, tokens, keys); all when None.
        is_causal: without `allowed`, a query does not attend to later keys.
    """
    scores = (query * scaling) @ key.transpose(-1, -2)
    if allowed is None and is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if allowed is not None:
        hidden = torch.zeros_like(allowed, dtype=scores.dtype).masked_fill_(~allowed, torch.finfo(scores.dtype).min)
        scores = scores + hidden
    probabilities = softmax(scores)
    return (dropped(probabilities, p) if p else probabilities) @ value


class _Softmax(torch.autograd.Function):
    """The softmax of bf16 scores over the last dimension, in fp32, rounded; only the rounded values are saved."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        probabilities = scores.float().softmax(-1).to(scores.dtype)
        ctx.save_for_backward(probabilities)
        return probabilities

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (probabilities,) = ctx.saved_tensors
        exact = torch.ops.aten._softmax_backward_data(grad.float(), probabilities.float(), -1, torch.float32)
        return exact.to(probabilities.dtype)


def softmax(scores: Tensor) -> Tensor:
    """The softmax over the last dimension; in bf16 torch's own is several times slower than this."""
    return _Softmax.apply(scores) if scores.dtype is torch.bfloat16 else scores.softmax(-1)  # type: ignore[return-value]


def _is_faster(query: Tensor, keys: int, p: float) -> bool:
    if keys <= FEW[query.dtype is torch.bfloat16]:
        return True
    return keys <= LONGEST and torch.is_grad_enabled() and (p > 0 or query.dtype is torch.bfloat16)


def forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """`attention` with the interface of transformers; uses transformers' `sdpa` for cases that are unsupported or
    slower here.

    Returns a tensor (rows, tokens, heads, size).
    """
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    tokens, keys = query.shape[2], key.shape[2]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    plain = attention_mask.dtype is torch.bool if attention_mask is not None else tokens == keys or not causal
    other_kind = any(others.get(name) is not None for name in OTHERS) or others.get("output_attentions")
    if other_kind or not plain or (tokens == 1 and causal) or not _is_faster(query, keys, dropout):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **others)
    groups = query.shape[1] // key.shape[1]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    output = attention(query, key, value, attention_mask, scale, dropout, causal)
    return output.transpose(1, 2).contiguous(), None


@contextmanager
def replace_sdpa() -> Iterator[None]:
    """A context in which all models of transformers with `sdpa` attention use `forward`."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    former = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS.register("sdpa", forward)
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS.register("sdpa", former)


def use(model: nn.Module) -> None:
    """Make a model on a CPU with `sdpa` attention use `forward` from now on."""
    from transformers import AttentionInterface, PreTrainedModel
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu and isinstance(model, PreTrainedModel) and model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, forward)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)
