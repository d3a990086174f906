"""Counting a model's parameters, and those that are trained."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def count_parameters(model: nn.Module, head: Iterable[str]) -> dict[str, int]:
    """Numbers of parameters: `total`, `trainable`, `adapter` and `head`; the last two add up to `trainable`.

    Shared weights count once. The frozen copy of a head that peft stores (`original_module`) does not count.
    """
    from pefttools.nn.sharding import local

    parts = [f".{path}." for path in head]
    counts = {"total": 0, "trainable": 0, "adapter": 0, "head": 0}
    seen: set[int] = set()
    for name, parameter in model.named_parameters():
        storage = local(parameter).untyped_storage()._cdata
        if ".original_module." in name or storage in seen:
            continue
        seen.add(storage)
        counts["total"] += _numel(parameter)
        if parameter.requires_grad:
            counts["trainable"] += parameter.numel()
            counts["head" if any(part in f".{name}" for part in parts) else "adapter"] += parameter.numel()
    return counts


def _numel(parameter: nn.Parameter) -> int:
    """Number of weights in a parameter; bitsandbytes packs two 4-bit weights into a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)
