"""adamw: Adam with weight decay on the weights themselves, not in the gradient.

Loshchilov and Hutter (2019), Decoupled Weight Decay Regularization, algorithm 2:
m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g², w ← w − ηλw − η·m̂/(√v̂ + ε), with m̂ = m/(1−β₁ᵗ) and v̂ = v/(1−β₂ᵗ).
The implementation is torch.optim's fused kernel. The strategies' default learning rates are chosen for adamw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pefttools.optimizers.base import AdamOptimizer, Group

if TYPE_CHECKING:
    import torch


class AdamW(AdamOptimizer):
    """Averages and ε."""

    shardable: ClassVar[bool] = True

    def build(self, groups: Sequence[Group], learning_rate: float) -> torch.optim.Optimizer:
        import torch

        return torch.optim.AdamW(groups, lr=learning_rate, betas=self.betas, eps=self.eps, fused=True)
