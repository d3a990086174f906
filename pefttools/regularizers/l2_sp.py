"""l2_sp: (α/2)‖w − w⁰‖² on what was pretrained, (β/2)‖w_new‖² on what is new.

Li, Grandvalet and Davoine (2018), eq. 3, on biases and norms too, as there. New is the head, and whatever a strategy
added: LoRA's factors, adapters, prompts. The U and V of a low-rank projection are held each at its own start
(`frobenius` holds their product). Where nothing pretrained is trained, as under LoRA, only β is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from pefttools.regularizers.base import (
    Penalty,
    Regularizer,
    RowLosses,
    pretrained_and_new,
    square,
    square_from,
    start_of,
)

if TYPE_CHECKING:
    from torch import Tensor, nn


class L2SP(Regularizer):
    """Strength for pretrained weights, and strength for new weights."""

    alpha: float = Field(default=0.01, gt=0)
    """α, on half the squared distance of pretrained weights from their start; choose it by validation."""
    beta: float = Field(default=0.01, ge=0)
    """β, on half the squared size of new weights."""

    def bind(self, model: nn.Module, head: Sequence[str], row_losses: RowLosses) -> Penalty:  # noqa: ARG002
        pretrained, new = pretrained_and_new(model, head)
        if not pretrained and (not new or not self.beta):
            raise self.refusal("pretrained parameter" if new else "parameter", model)
        anchored = [(p, start_of(p)) for p in pretrained.values()]
        return _Anchored(self.alpha, self.beta, anchored, list(new.values()))


@dataclass(frozen=True)
class _Anchored(Penalty):
    alpha: float
    beta: float
    anchored: list[tuple[nn.Parameter, Tensor]]
    """Each with its start."""
    new: list[nn.Parameter]

    def value(self) -> Tensor:
        import torch

        old = [self.alpha / 2 * square_from(p, start) for p, start in self.anchored]
        return torch.stack([*old, *(self.beta / 2 * square(p) for p in self.new)]).sum()
