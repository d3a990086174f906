"""Logits and losses of the tokens that are targets, from logits of all tokens or from the output layer's inputs.

`states` are the targets' rows of `outputs.logits`: logits, (targets, vocabulary), or, where `nn.output_layer` left out
the output layer, its inputs, (targets, width).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pefttools.tasks.base import IGNORED

if TYPE_CHECKING:
    from torch import Tensor

PLACES = "places"
"""The entry of a batch with the indices, among its flattened tokens, at which targets are predicted; (targets,). They
are found while the batch is made, so that no device has to wait for their number."""


def places(labels: Sequence[Sequence[int]], width: int, before: int = 0) -> Tensor:
    """The `PLACES` of rows that are padded on the right.

    Args:
        labels: those of every row.
        width: tokens of a padded row.
        before: how many tokens before its target a prediction is made; targets without such a token do not count.
    """
    import torch

    found = [
        row * width + i - before
        for row, one in enumerate(labels)
        for i, label in enumerate(one)
        if label != IGNORED and i >= before
    ]
    return torch.tensor(found, dtype=torch.long)


def logits(outputs: Any, states: Tensor) -> Tensor:
    """The logits of the targets in fp32, (targets, vocabulary)."""
    layer = getattr(outputs, "output_layer", None)
    return states.float() if layer is None else layer.logits(states)


def loss(outputs: Any, states: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy summed over the targets, shape ()."""
    from torch.nn import functional

    layer = getattr(outputs, "output_layer", None)
    if layer is not None:
        return layer.loss(states, targets)
    return functional.cross_entropy(states.float(), targets, reduction="sum")


def scored(outputs: Any, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The cross-entropy of every target, and whether its logit is the largest; each of shape (targets,)."""
    import torch
    from torch.nn import functional

    layer = getattr(outputs, "output_layer", None)
    parts = [(slice(None), states.float())] if layer is None else layer.chunks(states)
    losses = torch.zeros(len(targets), dtype=torch.float32, device=states.device)
    right = torch.zeros(len(targets), dtype=torch.bool, device=states.device)
    for part, found in parts:
        losses[part] = functional.cross_entropy(found, targets[part], reduction="none")
        right[part] = found.argmax(-1) == targets[part]
    return losses, right
