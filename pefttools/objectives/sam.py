"""sam: use the gradient at the nearby point of highest loss (Foret et al. 2021, algorithm 1).

A step computes the gradient g of its rows, moves the trained weights w to w + ρ · g / ‖g‖₂, computes the gradient of
the same rows there, moves the weights back, and passes that gradient to the optimizer. That is two passes per step, and
twice the time. The norm is over all trained weights (not per layer) and over the whole step, so micro-batches and
processes give the same result as one batch. The reported loss is that of the first pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field

from pefttools.objectives.base import BoundObjective, Context, Objective
from pefttools.strategies.base import trained

if TYPE_CHECKING:
    from torch import Tensor, nn


class Sam(Objective):
    """Settings of sam: the size of the neighbourhood."""

    rho: float = Field(default=0.05, gt=0)
    """ρ, the distance; the paper's default."""

    def bind(self, context: Context) -> BoundObjective:
        return _Sharpness(self.rho, list(trained(context.model).values()))


class _Sharpness(BoundObjective):
    def __init__(self, rho: float, parameters: list[nn.Parameter]) -> None:
        self.rho, self.parameters = rho, parameters

    def run_passes(self, accumulate_gradients: Callable[[], Tensor]) -> Tensor:
        import torch

        loss = accumulate_gradients()
        there = [parameter for parameter in self.parameters if parameter.grad is not None]
        with torch.no_grad():
            norm = torch.stack([p.grad.norm() for p in there if p.grad is not None]).norm()
            scale = self.rho / (norm + torch.finfo(norm.dtype).tiny)
            before = [parameter.clone() for parameter in there]
            for parameter in there:
                parameter.add_(parameter.grad * scale)  # type: ignore[operator]
                parameter.grad = None
        try:
            accumulate_gradients()
        finally:
            with torch.no_grad():
                for parameter, value in zip(there, before, strict=True):
                    parameter.copy_(value)  # restoring a copy avoids rounding errors of a subtraction
        return loss
