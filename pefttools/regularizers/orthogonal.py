"""orthogonal: γΣ(‖PᵀP − I‖²_F + ‖QQᵀ − I‖²_F), the factors of every low-rank change kept orthonormal.

AdaLoRA (Zhang et al. 2023, eq. 4), there for its PΛQ; here also for LoRA's BA, with P = B and Q = A. peft adds the
term only when the model computes its own loss, and without the squares. Under LoRA B starts at zero, where the
term has no gradient for it: the loss must move B first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pefttools.nn.orthogonal import orthogonality
from pefttools.regularizers.base import Penalty, Regularizer, RowLosses, Touched

if TYPE_CHECKING:
    from torch import Tensor, nn


class Orthogonal(Regularizer):
    """Strength of the penalty."""

    touches: ClassVar[Touched] = "factors"

    weight: float = Field(default=0.1, gt=0)
    """γ, the strength; the paper uses 0.1 to 0.5."""

    def bind(self, model: nn.Module, head: Sequence[str], row_losses: RowLosses) -> Penalty:  # noqa: ARG002
        if orthogonality(model) is None:
            raise self.refusal("pair of factors lora_A and lora_B", model)
        return _Orthonormal(self.weight, model)


@dataclass(frozen=True)
class _Orthonormal(Penalty):
    weight: float
    model: nn.Module

    def value(self) -> Tensor:
        total = orthogonality(self.model)
        assert total is not None, "the factors were there when this was bound"
        return self.weight * total
