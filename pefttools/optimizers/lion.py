"""lion: steps of constant size along the sign of an average of gradients, with half of Adam's state.

Chen et al. (2023), Symbolic Discovery of Optimization Algorithms, algorithm 2:
w ← w − η·(sign(β₁m + (1−β₁)g) + λw), m ← β₂m + (1−β₂)g. The implementation is bitsandbytes'. Every weight changes by η
in each step, so use a third to a tenth of adamw's learning rate, and three to ten times its weight decay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pefttools.optimizers.base import Group, Optimizer, Rate

if TYPE_CHECKING:
    import torch


class Lion(Optimizer):
    """Averages."""

    adamw_lr_ratio: ClassVar[float] = 0.2

    betas: tuple[Rate, Rate] = (0.9, 0.99)
    """β₁ of the update's direction, and β₂ of the running average."""

    @property
    def needed_modules(self) -> Mapping[str, str]:
        return {"bitsandbytes": ""}

    def build(self, groups: Sequence[Group], learning_rate: float) -> torch.optim.Optimizer:
        import bitsandbytes

        return bitsandbytes.optim.Lion(groups, lr=learning_rate, betas=self.betas)
