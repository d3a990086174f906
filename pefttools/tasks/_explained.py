"""The numbers that an explanation is about: how strongly a model favors an answer over the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Explained(NamedTuple):
    """One answer of a model that can be explained."""

    about: str
    """The answer: `class HUM`, `PER: Ada Lovelace`."""
    window: int
    """The encoded row that it comes from, for rows that become several."""
    score: Callable[[Any, Mapping[str, Tensor]], Tensor]
    """(outputs, batch) -> the score of the answer on every encoded row of a batch; shape (rows,)."""


def log_odds(logits: Tensor, index: int) -> Tensor:
    """log p / (1 − p) of a class, from logits of shape (rows, classes); shape (rows,)."""
    import torch

    others = torch.cat((logits[:, :index], logits[:, index + 1 :]), 1)
    return logits[:, index] - others.logsumexp(1)
