"""Fast dropout (Srivastava et al. 2014) on CPUs, where torch draws one random number per element.

Eight elements share one 64-bit draw of torch's generator (four if the probability needs finer steps), so resumed runs
continue exactly as with torch's dropout. Remaining elements are scaled by the probability actually used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

COARSE, FINE = (torch.int8, 7), (torch.int16, 15)
"""Integer types of the draws, and their number of random bits, without the sign."""
TOLERANCE = 0.02
"""Largest relative difference between the given probability and the multiple of 1/128 that is used instead."""
WHOLE = {2: torch.int16, 4: torch.int32}
"""Bytes of a float -> integer type of the same size."""


class _Dropout(torch.autograd.Function):
    """x -> x · mask / probability; the mask (0 or 1) is saved for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return _masked(x, mask, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (mask,) = ctx.saved_tensors
        return _masked(grad, mask, ctx.scale), None, None


def _masked(x: Tensor, mask: Tensor, scale: float) -> Tensor:
    return hide(x.clone(memory_format=torch.contiguous_format), mask) * scale  # not a view: models change outputs


def hide(x: Tensor, mask: Tensor) -> Tensor:
    """`x`, which is contiguous, with zeros where the mask is 0, in place."""
    x.view(WHOLE[x.element_size()]).mul_(mask)  # a product of bits; torch multiplies integers faster than it selects
    return x


def dropout(x: Tensor, p: float) -> Tensor:
    """Set every element of `x` on a CPU to zero with probability `p` (within 2%), and scale up the others."""
    if p <= 0 or x.element_size() not in WHOLE or factor(p) is None:
        return nn.functional.dropout(x, p)
    return _Dropout.apply(x, drawn_mask(x, p), factor(p))  # type: ignore[return-value]


def drawn_mask(x: Tensor, p: float) -> Tensor:
    """An int8 mask of the shape of `x`: 0 with probability `p` (within 2%), else 1."""
    dtype, bits, dropped = _draw(p)
    size = torch.iinfo(dtype).bits // 8
    draws = torch.empty(-(-x.numel() * size // 8), dtype=torch.int64, device=x.device).random_(-(1 << 63), None)
    numbers = draws.view(dtype)[: x.numel()].view(x.shape)
    return numbers.bitwise_and_((1 << bits) - 1).ge_(dropped).to(torch.int8)


def factor(p: float) -> float | None:
    """1 / (1 - the probability that `drawn_mask` uses); None if it drops everything."""
    _, bits, dropped = _draw(p)
    share = dropped / (1 << bits)
    return 1 / (1 - share) if share < 1 else None


def _draw(p: float) -> tuple[torch.dtype, int, int]:
    """The integer type of the draws, their number of random bits, and how many of their values mean "dropped"."""
    steps = 1 << COARSE[1]
    dtype, bits = COARSE if abs(round(p * steps) / steps - p) <= TOLERANCE * p else FINE
    return dtype, bits, round(p * (1 << bits))


class Dropout(nn.Dropout):
    """`nn.Dropout` that uses `dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p) if self.training else input


@contextmanager
def replace_dropout(model: nn.Module) -> Iterator[None]:
    """A context in which every plain `nn.Dropout` of the model uses `dropout`."""
    changed = [module for module in model.modules() if type(module) is nn.Dropout and not module.inplace]
    for module in changed:
        module.__class__ = Dropout
    try:
        yield
    finally:
        for module in changed:
            module.__class__ = nn.Dropout
