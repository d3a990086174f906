"""The product with a vocabulary and its cross-entropy, a few tokens at a time, so that not all logits exist at once.

For logits z = Wh + b the loss of a token with class y is log Σ exp z − z_y, and its gradient is softmax(z) − 1_y. So
the forward pass computes both for a chunk of tokens, multiplies the gradient by W, and frees the logits; the backward
pass only scales the result. This is the fused linear cross-entropy of Liger (Hsu et al. 2024, "Liger Kernel: Efficient
Triton Kernels for LLM Training"). We sum over tokens, where Liger averages, and compute with torch's own functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

CHUNK = {"cpu": 1 << 24}
"""Upper limit of logits in a chunk by device type: 64 MiB in fp32, which a product of good speed fills."""
LARGE_CHUNK = 1 << 27
"""That limit on devices with more memory and more cores."""


def chunks(hidden: Tensor, num_classes: int) -> Iterator[slice]:
    """Slices of the tokens of `hidden`, (tokens, width), of nearly equal size."""
    limit = max(1, CHUNK.get(hidden.device.type, LARGE_CHUNK) // num_classes)
    number = -(-len(hidden) // limit)
    for i in range(number):
        yield slice(len(hidden) * i // number, len(hidden) * (i + 1) // number)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """(hidden, W, bias, classes, dtype) -> the summed loss; hidden (tokens, width), W (classes, width)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, classes: Tensor, dtype: torch.dtype
    ) -> Tensor:
        rows, matrix = hidden.to(dtype), weight.to(dtype)
        offset = None if bias is None else bias.to(dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        needed = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(rows) if needed[0] else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if needed[1] else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needed[2] else None
        for part in chunks(rows, len(weight)):
            log_p = functional.log_softmax(functional.linear(rows[part], matrix, offset), -1, dtype=torch.float32)
            right = classes[part, None]
            total -= log_p.gather(1, right).sum()
            if not any(needed):
                continue
            grad = log_p.exp_().scatter_add_(1, right, log_p.new_full(right.shape, -1.0))
            if d_bias is not None:
                d_bias += grad.sum(0)
            grad = grad.to(dtype)
            if d_hidden is not None:
                d_hidden[part] = grad @ matrix
            if d_weight is not None:
                d_weight += grad.T @ rows[part]
        ctx.gradients = (d_hidden, d_weight, d_bias)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        found, ctx.gradients = ctx.gradients, None
        assert found is not None, "the gradients are scaled in place, so a second backward pass is not possible"
        scaled = (
            None if one is None else one.mul_(grad).to(dtype) for one, dtype in zip(found, ctx.dtypes, strict=True)
        )
        return *scaled, None, None


def cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, classes: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """The summed cross-entropy of softmax(Wh + b), shape (), of which no second derivative exists.

    Args:
        hidden: (tokens, width).
        weight: W, (classes, width).
        bias: b, (classes,).
        classes: the right ones, (tokens,).
        dtype: of the products; None means the promoted type of `hidden` and `weight`.
    """
    found: Any = _ChunkedCrossEntropy.apply(
        hidden, weight, bias, classes, dtype or torch.promote_types(hidden.dtype, weight.dtype)
    )
    return found
