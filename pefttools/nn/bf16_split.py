"""Frozen weights in bf16 without forgetting their fp32 values: the upper and the lower half of every number, apart.

A float32 is the bf16 nearest to it and a correction of 16 bits, so both together take the room of the weights they
came from, and give them back bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

BITS = 16
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)
"""Modules that take bf16 inputs beside fp32 weights, but not the other way round; their vectors cost nothing."""


def split(values: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest bf16 and an int16 correction, each of the shape of the fp32 `values`; halves round away from zero."""
    bits = values.contiguous().view(torch.int32)
    lower = bits.to(torch.int16)  # the lower half, of either sign; without it the upper half is left
    return ((bits - lower) >> BITS).to(torch.int16).view(torch.bfloat16), lower


def joined(upper: Tensor, lower: Tensor) -> Tensor:
    """The fp32 values that `split` took apart."""
    bits = (upper.view(torch.int16).to(torch.int32) << BITS) + lower.to(torch.int32)
    return bits.view(torch.float32)


def keep_upper(model: nn.Module) -> Callable[[], None]:
    """Put the frozen fp32 weights of `model` in bf16; calling what is answered puts them back."""
    lower: list[tuple[nn.Parameter, Tensor]] = []
    for parameter in dict.fromkeys(_frozen(model)):  # tied ones once
        parameter.data, rest = split(parameter.data)
        lower.append((parameter, rest))

    def restore() -> None:
        while lower:
            parameter, rest = lower.pop()
            parameter.data = joined(parameter.data, rest)

    return restore


def _frozen(model: nn.Module) -> Iterator[nn.Parameter]:
    """What can be in bf16: frozen fp32 weights, but for norms and what stands beside quantised weights.

    A table that is only looked up gains nothing.
    """
    for module in model.modules():
        own = [*module.parameters(recurse=False)]
        if not isinstance(module, (*NORMS, nn.Embedding)) and all(p.is_floating_point() for p in own):
            yield from (p for p in own if not p.requires_grad and p.dtype is torch.float32)
