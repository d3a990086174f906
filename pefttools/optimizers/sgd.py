"""sgd: plain gradient descent, with optional momentum, and weight decay added to the gradient.

Robbins and Monro (1951); momentum of Polyak (1964): g ← g + λw, b ← μb + g, w ← w − ηb.
The implementation is torch.optim's fused kernel. Without momentum it has no state. Its learning rate is about a hundred
times adamw's, because the gradient is not divided by its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pefttools.optimizers.base import Group, Optimizer

if TYPE_CHECKING:
    import torch


class SGD(Optimizer):
    """Momentum."""

    adamw_lr_ratio: ClassVar[float] = 100.0
    variants: ClassVar[Any] = {"momentum": {"momentum": 0.5}}

    momentum: float = Field(default=0.0, ge=0, lt=1)
    """μ: share of the previous step that is added to the next one."""

    def build(self, groups: Sequence[Group], learning_rate: float) -> torch.optim.Optimizer:
        import torch

        return torch.optim.SGD(groups, lr=learning_rate, momentum=self.momentum, fused=True)
