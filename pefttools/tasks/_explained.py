"""The numbers that an explanation is about: how strongly a model favors an answer over the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pefttools.errors import UserError, unknown

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


def chosen(of: str | None, kind: str, names: Sequence[str], predicted: str) -> str:
    """The answer to explain: the one that `of` names, else the predicted one.

    Raises:
        UserError: `of` is none of the names.
    """
    if of is not None and of not in names:
        raise UserError(f"--of: {unknown(kind, of, names)}")
    return predicted if of is None else of


def log_odds(logits: Tensor, index: int) -> Tensor:
    """log p / (1 − p) of a class, from logits of shape (rows, classes); shape (rows,)."""
    import torch

    others = torch.cat((logits[:, :index], logits[:, index + 1 :]), 1)
    return logits[:, index] - others.logsumexp(1)
