"""A trained embedding table that reuses the memory of its dense gradient in every step.

torch allocates the gradient of an embedding anew in every step. For a vocabulary of 30,000 that is tens of megabytes to
allocate, fill with zeros and free, although a batch uses only a few hundred rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LARGE = 1 << 20
"""Size of a table in bytes from which on this is faster."""


class _Lookup(torch.autograd.Function):
    """(ids, W) -> W[ids]; the backward pass adds the gradient to `W.grad` itself."""

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
    """`nn.Embedding` that uses `_Lookup`."""

    grad_buffer: Tensor | None
    """The memory of the gradient."""

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(input)
        return _Lookup.apply(input, self.weight, self)  # type: ignore[return-value]

    @torch.no_grad()
    def add_gradient(self, ids: Tensor, grad: Tensor) -> None:
        """Add the rows of `grad` to the table's gradient at `ids`, except for the padding token."""
        if self.padding_idx is not None:
            grad = grad.masked_fill((ids == self.padding_idx)[:, None], 0)
        if self.weight.grad is None:
            self.grad_buffer = torch.zeros_like(self.weight) if self.grad_buffer is None else self.grad_buffer.zero_()
            self.weight.grad = self.grad_buffer
        self.weight.grad.index_add_(0, ids, grad.to(self.weight.dtype))


def applies(module: nn.Module) -> bool:
    """Whether a module is a large trained embedding without special features, and gradients are not shared by
    processes."""
    if type(module) is not nn.Embedding or module.sparse or module.scale_grad_by_freq or module.max_norm is not None:
        return False
    weight = module.weight
    has_hooks = weight._backward_hooks or weight._post_accumulate_grad_hooks
    return weight.requires_grad and weight.nbytes >= LARGE and not has_hooks and not _is_distributed()


def _is_distributed() -> bool:
    """Whether several processes sum their gradients, which needs autograd's hooks."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def replace_embeddings(model: nn.Module) -> Iterator[int]:
    """A context in which suitable tables reuse their gradient's memory; yields their number."""
    changed = [module for module in model.modules() if applies(module)]
    for module in changed:
        module.__class__ = Embedding
        module.grad_buffer = None  # type: ignore[assignment]
    try:
        yield len(changed)
    finally:
        for module in changed:
            module.__class__ = nn.Embedding
            del module.grad_buffer
