"""Convert frozen weights to bf16 reversibly: store the upper and the lower half of every fp32 number separately.

A float32 equals its nearest bf16 number plus a correction of 16 bits. So both together need as much memory as the
original weights, and restore them exactly. The corrections of weights on a GPU are in main memory.
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
"""Modules that accept bf16 inputs with fp32 weights, but not the reverse; their weights are small and stay in fp32."""


def split(values: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest bf16 numbers and an int16 correction, each of the shape of the fp32 `values`; ties round away from
    zero."""
    bits = values.contiguous().view(torch.int32)
    lower = bits.to(torch.int16)  # the lower half as a signed number; subtracting it rounds the upper half
    return ((bits - lower) >> BITS).to(torch.int16).view(torch.bfloat16), lower


def joined(upper: Tensor, lower: Tensor) -> Tensor:
    """The fp32 values from the two results of `split`."""
    bits = (upper.view(torch.int16).to(torch.int32) << BITS) + lower.to(torch.int32)
    return bits.view(torch.float32)


def keep_upper(model: nn.Module) -> Callable[[], None]:
    """Convert the frozen fp32 weights of `model` to bf16; returns a function that restores them."""
    lower: list[tuple[nn.Parameter, Tensor]] = []
    for parameter in dict.fromkeys(_frozen(model)):  # tied weights once
        parameter.data, rest = split(parameter.data)
        lower.append((parameter, rest.cpu()))  # on a GPU, the weights take half the memory

    def restore() -> None:
        while lower:
            parameter, rest = lower.pop()
            parameter.data = joined(parameter.data, rest.to(parameter.device))

    return restore


def _frozen(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the weights to convert: frozen fp32 weights, except norms and modules with quantised weights.

    Embedding tables are skipped, since lookups do not get faster.
    """
    for module in model.modules():
        own = [*module.parameters(recurse=False)]
        if not isinstance(module, (*NORMS, nn.Embedding)) and all(p.is_floating_point() for p in own):
            yield from (p for p in own if not p.requires_grad and p.dtype is torch.float32)
