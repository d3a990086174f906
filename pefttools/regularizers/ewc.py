"""ewc: (λ/2)ΣFᵢ(θᵢ − θᵢ*)², so that the weights that matter most for the old data change least.

Kirkpatrick et al. (2017), eq. 3. F is the diagonal of the empirical Fisher information: the mean over rows of the old
data of the squared gradient of a row's loss. It is computed once, at the start, for the trained pretrained weights.
"Empirical" means that labels come from the data; the exact Fisher information samples them from the model. The loss is
that of the task, with the initial head. Where training goes on from a run, its adapter and head are old weights, too,
and its rows are the old data.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pefttools.data.settings import FileSettings
from pefttools.errors import UserError
from pefttools.regularizers.base import (
    Affected,
    Penalty,
    Regularizer,
    RowLosses,
    Weighted,
    known_rows,
    pretrained_and_new,
    start_of,
)

if TYPE_CHECKING:
    from torch import Tensor, nn


class EWC(Regularizer):
    """Strength of the penalty, and the old data that it protects."""

    affects: ClassVar[Affected] = "pretrained"

    weight: float = Field(default=400.0, gt=0)
    """λ, the strength. Squared gradients are small, so useful values are large."""
    data: FileSettings | None = None
    """Rows of the old data. A plain string is their `source`. Null means the training rows of the run that training
    goes on from (`--from`) and of the runs before it, the same number of each."""
    rows: int = Field(default=256, ge=1)
    """Maximum number of rows to estimate the Fisher information with. Each row takes one backward pass."""

    def bind(self, model: nn.Module, head: Sequence[str], row_losses: RowLosses) -> Penalty:
        pretrained, _ = pretrained_and_new(model, head, continued=True)
        if not pretrained:
            raise self.refusal("pretrained parameter", model)
        parameters = list(pretrained.values())
        fisher = self.fisher(parameters, row_losses)
        return Weighted(
            self.weight / 2,
            [partial(_weighted_distance, p, start_of(p), f) for p, f in zip(parameters, fisher, strict=True)],
        )

    def fisher(self, parameters: Sequence[Tensor], row_losses: RowLosses) -> list[Tensor]:
        """The mean over rows of the squared gradient, of each parameter's shape."""
        import torch

        where = self.data.source if self.data else "the earlier run"
        sums, num_rows = [torch.zeros_like(p) for p in parameters], 0
        for loss in row_losses(self.data, self.rows):
            num_rows += 1
            for total, gradient in zip(sums, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
                if gradient is not None:
                    total += gradient.square()
        if not num_rows:
            raise UserError(f"regularizers.{self.name}.data: {where} has no rows")
        if not any(total.any() for total in sums):
            raise UserError(
                f"regularizers.{self.name}: every Fisher value is zero over {num_rows} rows of {where}:"
                " no pretrained weight has a gradient there, so ewc would have no effect; use other rows"
            )
        for total, parameter in zip(sums, parameters, strict=True):
            if total.ndim:
                total[known_rows(parameter) :] = 0  # classes that the old data does not have
        return [total / num_rows for total in sums]


def _weighted_distance(x: Tensor, start: Tensor, fisher: Tensor) -> Tensor:
    return (fisher * (x - start).square()).sum()
