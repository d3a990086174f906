"""adam: running averages of the gradient and of its square, with weight decay added to the gradient.

Kingma and Ba (2015), Adam: A Method for Stochastic Optimization, algorithm 1: g ← g + λw,
m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g², w ← w − η·m̂/(√v̂ + ε), with m̂ = m/(1−β₁ᵗ) and v̂ = v/(1−β₂ᵗ).
The implementation is torch.optim's fused kernel. Without weight decay it equals adamw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pefttools.optimizers.base import AdamOptimizer, Group

if TYPE_CHECKING:
    import torch


class Adam(AdamOptimizer):
    """Averages and ε."""

    shardable: ClassVar[bool] = True

    def build(self, groups: Sequence[Group], learning_rate: float) -> torch.optim.Optimizer:
        import torch

        return torch.optim.Adam(groups, lr=learning_rate, betas=self.betas, eps=self.eps, fused=True)
