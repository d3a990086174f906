"""adagrad: divide the gradient by the root of the sum of all its previous squares.

Duchi, Hazan and Singer (2011), Adaptive Subgradient Methods for Online Learning and Stochastic Optimization:
g ← g + λw, s ← s + g², w ← w − η·g/(√s + ε). The implementation is torch.optim's. Steps get smaller during a run, so
its learning rate is about ten times adamw's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pefttools.optimizers.base import Group, Optimizer

if TYPE_CHECKING:
    import torch


class Adagrad(Optimizer):
    """Settings of adagrad."""

    shardable: ClassVar[bool] = True
    adamw_lr_ratio: ClassVar[float] = 10.0

    eps: float = Field(default=1e-8, gt=0)
    """ε, which keeps the division by √s finite."""

    def build(self, groups: Sequence[Group], learning_rate: float) -> torch.optim.Optimizer:
        import torch

        return torch.optim.Adagrad(groups, lr=learning_rate, eps=self.eps)
