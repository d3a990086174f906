"""Parameters of a model, counted once per storage, the head apart from the adapter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def count_parameters(model: nn.Module, head: Iterable[str]) -> dict[str, int]:
    """`total`, `trainable`, `adapter` and `head`, the last two adding up to `trainable`.

    The frozen twin that peft keeps of a head it saves (`original_module`) is not a part of the model.
    """
    parts = [f".{path}." for path in head]
    counts = {"total": 0, "trainable": 0, "adapter": 0, "head": 0}
    seen: set[int] = set()
    for name, parameter in model.named_parameters():
        storage = parameter.untyped_storage()._cdata
        if ".original_module." in name or storage in seen:
            continue
        seen.add(storage)
        counts["total"] += parameter.numel()
        if parameter.requires_grad:
            counts["trainable"] += parameter.numel()
            counts["head" if any(part in f".{name}" for part in parts) else "adapter"] += parameter.numel()
    return counts
