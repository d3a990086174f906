"""A trained table whose dense gradient keeps its memory from step to step.

torch makes the gradient of an embedding anew in every step: of a vocabulary of 30,000 that is tens of megabytes which
the system hands out, fills with zeros and takes back, for a few hundred rows that were looked up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LARGE = 1 << 20
"""Bytes of a table from which on it pays."""


class _Lookup(torch.autograd.Function):
    """(ids, W) -> W[ids]; the gradient is added to `W.grad` by the way back itself."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, table: Embedding) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.table = table
        return nn.functional.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:  # type: ignore[override]
        (ids,) = ctx.saved_tensors
        ctx.table.add_gradient(ids.reshape(-1), grad.reshape(-1, grad.shape[-1]))
        return None, None, None


class Embedding(nn.Embedding):
    """`nn.Embedding` by `_Lookup`."""

    kept: Tensor | None
    """The memory of the gradient."""

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(input)
        return _Lookup.apply(input, self.weight, self)  # type: ignore[return-value]

    @torch.no_grad()
    def add_gradient(self, ids: Tensor, grad: Tensor) -> None:
        """Add the rows of `grad` to those of the table's gradient that were looked up; the padding's has none."""
        if self.padding_idx is not None:
            grad = grad.masked_fill((ids == self.padding_idx)[:, None], 0)
        if self.weight.grad is None:
            self.kept = torch.zeros_like(self.weight) if self.kept is None else self.kept.zero_()
            self.weight.grad = self.kept
        self.weight.grad.index_add_(0, ids, grad.to(self.weight.dtype))


def applies(module: nn.Module) -> bool:
    """Whether a module is a large table, trained here alone, that looks up and nothing more."""
    if type(module) is not nn.Embedding or module.sparse or module.scale_grad_by_freq or module.max_norm is not None:
        return False
    weight = module.weight
    watched = weight._backward_hooks or weight._post_accumulate_grad_hooks
    return weight.requires_grad and weight.nbytes >= LARGE and not watched and not _shared()


def _shared() -> bool:
    """Whether several processes sum their gradients, which they do when autograd hands them over."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def in_place_of_torchs(model: nn.Module) -> Iterator[int]:
    """Every table this applies to keeps its gradient's memory meanwhile; yields how many there are."""
    changed = [module for module in model.modules() if applies(module)]
    for module in changed:
        module.__class__ = Embedding
        module.kept = None  # type: ignore[assignment]
    try:
        yield len(changed)
    finally:
        for module in changed:
            module.__class__ = nn.Embedding
            del module.kept
