"""l2_sp: (α/2)‖w − w⁰‖² on pretrained weights, (β/2)‖w_new‖² on new weights.

Li, Grandvalet and Davoine (2018), eq. 3, including biases and norms as in the paper. New weights are the head and the
strategy's additions: LoRA's factors, adapters, prompts. U and V of a low-rank projection are each pulled to their own
start (`frobenius` pulls their product). If no pretrained weights are trained, as with LoRA, only the term with β
remains. Where training goes on from a run, its adapter and the rows of its head are pretrained weights, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pefttools.regularizers.base import (
    Penalty,
    Regularizer,
    RowLosses,
    known_rows,
    pretrained_and_new,
    square,
    square_from,
    start_of,
)

if TYPE_CHECKING:
    from torch import Tensor, nn


class L2SP(Regularizer):
    """Strength for pretrained weights, and strength for new weights."""

    shardable: ClassVar[bool] = True

    alpha: float = Field(default=0.01, gt=0)
    """α, on half the squared distance of pretrained weights from their start; choose it by validation."""
    beta: float = Field(default=0.01, ge=0)
    """β, on half the squared size of new weights."""

    def bind(self, model: nn.Module, head: Sequence[str], row_losses: RowLosses) -> Penalty:  # noqa: ARG002
        pretrained, new = pretrained_and_new(model, head, continued=True)
        if not pretrained and (not new or not self.beta):
            raise self.refusal("pretrained parameter" if new else "parameter", model)
        anchored = [(p, start_of(p)) for p in pretrained.values()]
        return _Anchored(self.alpha, self.beta, anchored, list(new.values()))


@dataclass(frozen=True)
class _Anchored(Penalty):
    alpha: float
    beta: float
    anchored: list[tuple[nn.Parameter, Tensor]]
    """Pretrained parameters with their start."""
    new: list[Tensor]

    def value(self) -> Tensor:
        import torch

        new, old = [*self.new], []
        for parameter, start in self.anchored:
            if start.ndim and (known := known_rows(parameter)) < len(start):
                new.append(parameter[known:])
                parameter, start = parameter[:known], start[:known]
            old.append(self.alpha / 2 * square_from(parameter, start))
        return torch.stack([*old, *(self.beta / 2 * square(p) for p in new)]).sum()
