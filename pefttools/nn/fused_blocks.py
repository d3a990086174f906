"""Use `EncoderBlock` and `DecoderBlock` for the blocks of a model that computes in bf16 on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pefttools.nn import attention, fused_modules, module_paths
from pefttools.nn.decoder_block import DecoderBlock
from pefttools.nn.encoder_block import EncoderBlock
from pefttools.nn.fused_weights import DTYPE

IMPLEMENTATIONS = ("sdpa", attention.NAME)
UNUSED = ("position_ids", "use_cache")
"""Arguments of a decoder's block that it does not read where there is no cache."""


@dataclass(eq=False)
class _Masks:
    """The mask of the last pass as numbers to add to the scores, which all blocks share."""

    allowed: Tensor | None = None
    added: Tensor | None = None

    def of(self, allowed: Tensor) -> Tensor:
        if self.allowed is not allowed or self.added is None:
            lowest = torch.finfo(torch.float32).min
            self.allowed = allowed
            self.added = torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, lowest)
        return self.added

    def causal(self, tokens: int, device: torch.device) -> Tensor:
        """The mask of texts without padding."""
        if self.allowed is None or self.allowed.shape != (tokens, tokens):
            return self.of(torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril())
        return self.of(self.allowed)


@dataclass(eq=False)
class _Replaced:
    """A module whose forward is replaced."""

    module: Any
    block: EncoderBlock | DecoderBlock
    masks: _Masks

    def __post_init__(self) -> None:
        self.flags = self._flags()
        self.plain: Callable[..., Any] = self.module.forward
        forward = _encode if isinstance(self.block, EncoderBlock) else _decode
        self.module.forward = partial(forward, self)

    def _flags(self) -> list[bool]:
        return [parameter.requires_grad for parameter in self.block.parameters]

    def can_compute(self, hidden: Tensor, mask: Tensor | None) -> bool:
        known = mask is None or (mask.dtype is torch.bool and mask.ndim == 4 and mask.shape[-1] == hidden.shape[1])
        return known and hidden.shape[1] <= attention.LONGEST and _in_bf16(hidden) and self._flags() == self.flags

    def restore(self) -> None:
        del self.module.forward
        self.block.release()


def _in_bf16(hidden: Tensor) -> bool:
    """Whether the matrices of a block are multiplied in bf16."""
    kind = hidden.device.type
    autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is DTYPE
    return kind == "cpu" and (autocast or hidden.dtype is DTYPE)


def _encode(
    one: _Replaced, hidden_states: Tensor, attention_mask: Tensor | None = None, *others: Any, **named: Any
) -> Any:
    """The block's output; cases that `EncoderBlock` does not compute go to the module's own forward."""
    unusual = any(other is not None for other in (*others, *named.values()))
    if unusual or not one.can_compute(hidden_states, attention_mask):
        return one.plain(hidden_states, attention_mask, *others, **named)
    block: Any = one.block
    return block(hidden_states, None if attention_mask is None else one.masks.of(attention_mask))


def _decode(
    one: _Replaced,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    *others: Any,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **named: Any,
) -> Any:
    """The block's output; cases that `DecoderBlock` does not compute go to the module's own forward."""
    unusual = bool(others) or any(value is not None for name, value in named.items() if name not in UNUSED)
    if unusual or position_embeddings is None or not one.can_compute(hidden_states, attention_mask):
        return one.plain(hidden_states, attention_mask, *others, position_embeddings=position_embeddings, **named)
    masks, tokens = one.masks, hidden_states.shape[1]
    mask = masks.causal(tokens, hidden_states.device) if attention_mask is None else masks.of(attention_mask)
    block: Any = one.block
    return block(hidden_states, mask, *position_embeddings)


@contextmanager
def replace_blocks(model: nn.Module, without: nn.Module | None = None) -> Iterator[int]:
    """A context in which all suitable blocks are one function each; yields their number.

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
    """Make all suitable blocks of a model that is not trained any more one function each from now on."""
    for block in _blocks(model):
        for parameter in block.parameters():
            parameter.requires_grad_(False)  # so that weights need not be copied before every pass
    _replace(model, None)


def _replace(model: nn.Module, without: nn.Module | None) -> list[_Replaced]:
    masks = _Masks()
    modules = [module for module in _blocks(model) if module is not without and "forward" not in vars(module)]
    built = [fused_modules.encoder(module) or fused_modules.decoder(module, attention.LONGEST) for module in modules]
    return [_Replaced(module, block, masks) for module, block in zip(modules, built, strict=True) if block]


def _blocks(model: nn.Module) -> list[nn.Module]:
    config: Any = getattr(model, "config", None)
    if getattr(config, "_attn_implementation", None) not in IMPLEMENTATIONS:
        return []
    try:
        return [model.get_submodule(path) for path in module_paths.blocks(model)]
    except ValueError:
        return []
