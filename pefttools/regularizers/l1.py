"""l1: λ‖θ‖₁ on all trained weights, or λ‖w − w⁰‖₁ on pretrained weights.

Tibshirani (1996). It uses the subgradient with sign(0) = 0: unlike with a proximal step, weights come close to zero (or
to their start) but rarely reach it. It penalizes a strategy's factors themselves, not their product.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from pefttools.regularizers.base import Penalty, Regularizer, RowLosses, Weighted, pretrained_and_new, start_of
from pefttools.strategies.base import trained

if TYPE_CHECKING:
    from torch import Tensor, nn


class L1(Regularizer):
    """Strength of the penalty, and the values toward which it pulls the weights."""

    shardable: ClassVar[bool] = True

    weight: float = Field(default=1e-5, gt=0)
    """λ, on the sum of absolute values."""
    toward: Literal["zero", "start"] = "zero"
    """Pull all trained weights to zero, or pretrained weights to their start (then new weights are not penalized)."""

    def bind(self, model: nn.Module, head: Sequence[str], row_losses: RowLosses) -> Penalty:  # noqa: ARG002
        if self.toward == "start":
            pretrained, _ = pretrained_and_new(model, head)
            if not pretrained:
                raise self.refusal("pretrained parameter (toward: start)", model)
            return Weighted(self.weight, [partial(_distance, p, start_of(p)) for p in pretrained.values()])
        parameters = trained(model)
        if not parameters:
            raise self.refusal("parameter", model)
        return Weighted(self.weight, [partial(_size, p) for p in parameters.values()])


def _size(x: Tensor) -> Tensor:
    return x.abs().sum()


def _distance(x: Tensor, start: Tensor) -> Tensor:
    return (x - start).abs().sum()
