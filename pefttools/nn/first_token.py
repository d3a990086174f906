"""Compute the last block only for its first token, if the head uses no other token.

A BERT-like classifier uses one vector of the last block, that of the first token. Keys and values are needed for all
tokens, but for the other tokens the query, the attention's output, the feed-forward part, dropout and all gradients are
superfluous. Without them, every logit and gradient stays the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from pefttools.nn import attention, module_paths

PROJECTIONS = ("query", "key", "value")
"""Names of the three projections in BERT-like self-attention."""
IMPLEMENTATIONS = ("sdpa", attention.NAME)
SAME = 1e-4
"""Largest accepted difference of logits, relative to the largest logit; rounding causes 1e-6."""


@dataclass(frozen=True, eq=False)
class LastBlock:
    """The last block, of which the head uses only the output for the first token."""

    block: nn.Module
    attention: Any
    """The block's self-attention module."""
    place: int = 0
    """The position of the token."""

    @contextmanager
    def restricted(self) -> Iterator[None]:
        """A context in which the block returns (rows, 1, width)."""
        former = [vars(module).get("forward") for module in (self.block, self.attention)]
        self.use()
        try:
            yield
        finally:
            for module, forward in zip((self.block, self.attention), former, strict=True):
                if forward is None:
                    del vars(module)["forward"]
                else:
                    vars(module)["forward"] = forward

    def use(self) -> None:
        """Make the block return (rows, 1, width) from now on."""
        vars(self.attention)["forward"] = partial(_attend, self.attention, self.place)
        vars(self.block)["forward"] = partial(_forward_one_token, self.block.forward, self.place)


def _forward_one_token(forward: Any, place: int, hidden_states: Tensor, *others: Any, **named: Any) -> Any:
    """The block's forward for one token; its attention receives all tokens."""
    return forward(hidden_states[:, place : place + 1], *others, **named, all_tokens=hidden_states)


def _attend(
    module: Any,
    place: int,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    encoder_hidden_states: Tensor | None = None,
    *,
    all_tokens: Tensor,
    **named: Any,
) -> tuple[Tensor, None]:
    """The attention output for the token of `hidden_states`, (rows, 1, width), over all tokens."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if past_key_values is not None or encoder_hidden_states is not None:
        raise ValueError("cached or cross-attention keys are not supported")
    attend = ALL_ATTENTION_FUNCTIONS[module.config._attn_implementation]
    query, key, value = (
        getattr(module, name)(tokens.contiguous()).unflatten(-1, (-1, module.attention_head_size)).transpose(1, 2)
        for name, tokens in zip(PROJECTIONS, (hidden_states, all_tokens, all_tokens), strict=True)
    )
    mask = None if attention_mask is None else attention_mask[:, :, place : place + 1]
    p = module.dropout.p if module.training else 0.0
    output, _ = attend(module, query, key, value, mask, dropout=p, scaling=module.scaling, is_causal=False, **named)
    return output.flatten(-2), None


def last_block(model: nn.Module, inputs: Mapping[str, Any]) -> LastBlock | None:
    """The last block, if its attention has a known form and the logits depend only on its first token; else None.

    This is tested: the logits must equal those of the whole block, and must change if the second token is used instead.

    Args:
        inputs: a small batch whose rows have more than one token.
    """
    if not (found := _of_known_kind(model)):
        return None
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            wide = _logits(model, inputs)
            with found.restricted():
                narrow = _logits(model, inputs)
            is_fake = isinstance(wide, FakeTensor)
            with replace(found, place=1).restricted():
                wrong = None if is_fake else _logits(model, inputs)
    except (ValueError, RuntimeError, IndexError, TypeError):  # models that need all tokens may raise any of these
        return None
    finally:
        model.train(was_training)
    return found if _same(narrow, wide) and (is_fake or not _same(wrong, wide)) else None


def _of_known_kind(model: nn.Module) -> LastBlock | None:
    config: Any = getattr(model, "config", None)
    encodes = config is not None and not (config.is_encoder_decoder or getattr(config, "is_decoder", False))
    if not encodes or getattr(config, "_attn_implementation", None) not in IMPLEMENTATIONS:
        return None
    try:
        paths = module_paths.blocks(model)
    except ValueError:
        return None
    block = model.get_submodule(paths[-1])
    found = [m for m in block.modules() if all(isinstance(getattr(m, name, None), nn.Module) for name in PROJECTIONS)]
    if len(found) != 1 or not all(hasattr(found[0], name) for name in ("attention_head_size", "scaling", "dropout")):
        return None
    return LastBlock(block, found[0])


def _logits(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor | None:
    found = getattr(model(**inputs), "logits", None)
    return found if isinstance(found, Tensor) else None


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one.shape != other.shape:
        return False
    if isinstance(one, FakeTensor):  # fake tensors have no values; equal shapes suffice
        return True
    return bool((one - other).abs().max() <= SAME * other.abs().max())
