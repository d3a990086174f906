"""Use `EncoderBlock` for the blocks of BERT-like models that compute in bf16 on a CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation

from pefttools.nn import attention, lora_linear, module_paths
from pefttools.nn.encoder_block import DTYPE, EncoderBlock
from pefttools.nn.joint_linear import JointLinear, Layer

BLOCKS = ("BertLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer", "ElectraLayer", "ErnieLayer")
"""Names of the block classes of transformers that compute what `EncoderBlock` does."""
IMPLEMENTATIONS = ("sdpa", attention.NAME)
MOST_DROPOUT = 0.9
"""Largest probability of dropout; masks for larger ones may leave nothing."""


@dataclass(eq=False)
class _Masks:
    """The mask of the last pass as numbers to add to the scores, which all blocks share."""

    allowed: Tensor | None = None
    added: Tensor | None = None

    def of(self, allowed: Tensor | None) -> Tensor | None:
        if allowed is None:
            return None
        if self.allowed is not allowed:
            lowest = torch.finfo(torch.float32).min
            self.allowed = allowed
            self.added = torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, lowest)
        return self.added


@dataclass(frozen=True, eq=False)
class _Parts:
    """The modules of a block."""

    linears: Sequence[Any]
    """Query, key, value, attention's output, and the two of the feed-forward part."""
    norms: tuple[nn.LayerNorm, nn.LayerNorm]
    dropouts: tuple[nn.Dropout, nn.Dropout, nn.Dropout]
    activation: Any

    @staticmethod
    def of(block: Any) -> _Parts | None:
        """None unless `EncoderBlock` computes what the block does."""
        if type(block).__name__ not in BLOCKS or block.is_decoder or block.chunk_size_feed_forward:
            return None
        own, after, last = block.attention.self, block.attention.output, block.output
        linears = (own.query, own.key, own.value, after.dense, block.intermediate.dense, last.dense)
        parts = _Parts(
            linears, (after.LayerNorm, last.LayerNorm), (own.dropout, after.dropout, last.dropout),
            block.intermediate.intermediate_act_fn,
        )  # fmt: skip
        hooked = any(m._forward_hooks or m._forward_pre_hooks or hasattr(m, "_hf_hook") for m in block.modules())
        return parts if parts._are_known() and not hooked else None

    def _are_known(self) -> bool:
        return (
            all(type(linear) is nn.Linear or lora_linear.applies(linear) for linear in self.linears)
            and all(type(norm) is nn.LayerNorm and norm.bias is not None for norm in self.norms)
            and all(isinstance(dropout, nn.Dropout) and dropout.p <= MOST_DROPOUT for dropout in self.dropouts)
            and type(self.activation) is GELUActivation
            and self.activation.act is nn.functional.gelu
        )


@dataclass(eq=False)
class _Replaced:
    """A block whose forward is replaced."""

    module: Any
    parts: _Parts
    masks: _Masks

    def __post_init__(self) -> None:
        own = self.module.attention.self
        query, key, value, *others = [_layer(linear) for linear in self.parts.linears]
        out, up, down = (JointLinear([layer], DTYPE) for layer in others)
        products = (JointLinear([query, key, value], DTYPE), out, up, down)
        self.block = EncoderBlock(own.num_attention_heads, own.scaling, products, self.parts.norms, self.parts.dropouts)
        self.flags = self._flags()
        self.plain = self.module.forward
        self.module.forward = partial(_forward, self)

    def _flags(self) -> list[bool]:
        return [parameter.requires_grad for parameter in self.block.parameters]

    def can_compute(self, hidden: Tensor, mask: Tensor | None, others: Sequence[Any]) -> bool:
        return (
            all(other is None for other in others)
            and (mask is None or (mask.dtype is torch.bool and mask.ndim == 4))
            and hidden.shape[1] <= attention.LONGEST
            and _in_bf16(hidden)
            and self._flags() == self.flags
        )

    def restore(self) -> None:
        del self.module.forward
        for product in self.block.products:
            product.release()


def _in_bf16(hidden: Tensor) -> bool:
    """Whether the matrices of a block are multiplied in bf16."""
    kind = hidden.device.type
    autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is DTYPE
    return kind == "cpu" and (autocast or hidden.dtype is DTYPE)


def _layer(linear: Any) -> Layer:
    if not hasattr(linear, "base_layer"):
        return Layer(linear.weight, linear.bias)
    (name,) = linear.active_adapters
    base: Any = linear.base_layer
    down, up = linear.lora_A[name].weight, linear.lora_B[name].weight
    return Layer(base.weight, base.bias, down, up, lambda: linear.scaling[name])


def _forward(
    one: _Replaced, hidden_states: Tensor, attention_mask: Tensor | None = None, *others: Any, **named: Any
) -> Any:
    """The block's output; cases that `EncoderBlock` does not compute go to the module's own forward."""
    if not one.can_compute(hidden_states, attention_mask, (*others, *named.values())):
        return one.plain(hidden_states, attention_mask, *others, **named)
    return one.block(hidden_states, one.masks.of(attention_mask))


@contextmanager
def replace_blocks(model: nn.Module, without: nn.Module | None = None) -> Iterator[int]:
    """A context in which all suitable blocks use `EncoderBlock`; yields their number.

    Args:
        without: a block that stays as it is.
    """
    changed = _replace(model, without)
    try:
        yield len(changed)
    finally:
        for one in changed:
            one.restore()


def use(model: nn.Module) -> None:
    """Make all suitable blocks of a model that is not trained any more use `EncoderBlock` from now on."""
    for block, _ in _suitable(model):
        for parameter in block.parameters():
            parameter.requires_grad_(False)  # so that weights need not be copied before every pass
    _replace(model, None)


def _replace(model: nn.Module, without: nn.Module | None) -> list[_Replaced]:
    masks = _Masks()
    return [_Replaced(block, parts, masks) for block, parts in _suitable(model) if block is not without]


def _suitable(model: nn.Module) -> list[tuple[nn.Module, _Parts]]:
    config: Any = getattr(model, "config", None)
    if getattr(config, "_attn_implementation", None) not in IMPLEMENTATIONS:
        return []
    try:
        blocks = [model.get_submodule(path) for path in module_paths.blocks(model)]
    except ValueError:
        return []
    return [(block, parts) for block in blocks if "forward" not in vars(block) and (parts := _Parts.of(block))]
