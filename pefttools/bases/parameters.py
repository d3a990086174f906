"""How many parameters a model has, and how many of them are trained."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def count_parameters(model: nn.Module, head: Iterable[str]) -> dict[str, int]:
    """`total`, `trainable`, `adapter` and `head`, the last two adding up to `trainable`.

    Each storage counts once. The frozen twin that peft keeps of a head it saves (`original_module`) is not a part of
    the model.
    """
    parts = [f".{path}." for path in head]
    counts = {"total": 0, "trainable": 0, "adapter": 0, "head": 0}
    seen: set[int] = set()
    for name, parameter in model.named_parameters():
        storage = parameter.untyped_storage()._cdata
        if ".original_module." in name or storage in seen:
            continue
        seen.add(storage)
        counts["total"] += _numel(parameter)
        if parameter.requires_grad:
            counts["trainable"] += parameter.numel()
            counts["head" if any(part in f".{name}" for part in parts) else "adapter"] += parameter.numel()
    return counts


def _numel(parameter: nn.Parameter) -> int:
    """How many weights it stands for; bitsandbytes packs two of four bits into a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)
