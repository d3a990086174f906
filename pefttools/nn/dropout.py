"""Dropout from cheap random bits (Srivastava et al. 2014), for CPUs, where torch draws a number an element.

Eight elements share one 64-bit draw of torch's generator (four where the probability asks for finer steps), so runs
resume as they do with torch's own. What is kept is scaled by the probability that is really used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

COARSE, FINE = (torch.int8, 7), (torch.int16, 15)
"""Integers that are drawn, and their random bits: the sign is not one of them."""
TOLERANCE = 0.02
"""Relative difference between the probability that is asked for and a multiple of 1/128 that is used for it."""
WHOLE = {2: torch.int16, 4: torch.int32}
"""Integers as wide as a float of so many bytes."""


class _Dropout(torch.autograd.Function):
    """x -> x where a random bit says so, divided by its probability; the bits (0 or -1) are kept for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return _masked(x, kept, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (kept,) = ctx.saved_tensors
        return _masked(grad, kept, ctx.scale), None, None


def _masked(x: Tensor, kept: Tensor, scale: float) -> Tensor:
    whole = WHOLE[x.element_size()]
    bits = x.contiguous().view(whole) & kept.to(whole)
    return bits.view(x.dtype) * scale  # no view leaves a function of autograd: models change answers in place


def dropout(x: Tensor, p: float) -> Tensor:
    """`x` on a CPU with every element set to zero with probability `p` (within 2%), the others scaled up."""
    if p <= 0 or x.element_size() not in WHOLE:
        return nn.functional.dropout(x, p)
    steps = 1 << COARSE[1]
    dtype, bits = COARSE if abs(round(p * steps) / steps - p) <= TOLERANCE * p else FINE
    dropped = round(p * (1 << bits))
    if dropped >= 1 << bits:
        return nn.functional.dropout(x, p)
    size = torch.iinfo(dtype).bits // 8
    drawn = torch.empty(-(-x.numel() * size // 8), dtype=torch.int64, device=x.device).random_(-(1 << 63), None)
    numbers = drawn.view(dtype)[: x.numel()].view(x.shape)
    numbers &= (1 << bits) - 1
    numbers -= dropped
    numbers >>= bits  # -1 where the number is below, else 0
    kept = numbers.bitwise_not_().to(torch.int8)
    return _Dropout.apply(x, kept, 1 / (1 - dropped / (1 << bits)))  # type: ignore[return-value]


class Dropout(nn.Dropout):
    """`nn.Dropout` by `dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p) if self.training else input


@contextmanager
def in_place_of_torchs(model: nn.Module) -> Iterator[None]:
    """Every plain `nn.Dropout` of the model draws cheap bits meanwhile."""
    changed = [module for module in model.modules() if type(module) is nn.Dropout and not module.inplace]
    for module in changed:
        module.__class__ = Dropout
    try:
        yield
    finally:
        for module in changed:
            module.__class__ = nn.Dropout
