"""How far two predicted distributions are apart: Jeffreys' divergence KL(p‖q) + KL(q‖p) (Jeffreys 1946)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def of_classes(logits: Tensor, others: Tensor, dim: int = -1) -> Tensor:
    """The divergence of two categorical distributions, in nats; the result lacks the dimension `dim`.

    Classes that do not exist have the logit −inf in both.
    """
    log_p, log_q = logits.log_softmax(dim), others.log_softmax(dim)
    ratio = (log_p - log_q).masked_fill(~torch.isfinite(logits), 0.0)  # −inf − (−inf) is not a number
    return ((log_p.exp() - log_q.exp()) * ratio).sum(dim)


def of_yes_or_no(logits: Tensor, others: Tensor) -> Tensor:
    """The divergence of Bernoulli distributions with these log-odds, in nats; the shape is that of `logits`."""
    return (functional.sigmoid(logits) - functional.sigmoid(others)) * (logits - others)
