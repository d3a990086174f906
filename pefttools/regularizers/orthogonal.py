"""orthogonal: γΣ(‖PᵀP − I‖²_F + ‖QQᵀ − I‖²_F), which keeps the factors of low-rank changes orthonormal.

From AdaLoRA (Zhang et al. 2023, eq. 4), for its PΛQ; here also for LoRA's BA, with P = B and Q = A. peft adds the term
only if the model computes its own loss, and without the squares. LoRA's B starts at zero, where the term has no
gradient for B, until the loss has changed B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pefttools.nn.orthogonal import orthogonality
from pefttools.regularizers.base import Affected, Penalty, Regularizer, RowLosses

if TYPE_CHECKING:
    from torch import Tensor, nn


class Orthogonal(Regularizer):
    """Strength of the penalty."""

    affects: ClassVar[Affected] = "factors"

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
        assert total is not None, "the model had factors when this was bound"
        return self.weight * total
