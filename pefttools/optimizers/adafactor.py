"""adafactor: Adam's second average kept as a row and a column a matrix, so its state is almost nothing.

Shazeer and Stern (2018), Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, algorithm 4: for a matrix
R ← β̂R + (1−β̂)·mean_columns(g² + ε₁), C ← β̂C + (1−β̂)·mean_rows(g² + ε₁), V = RCᵀ/mean(R), with β̂ = 1 − t^τ;
u = g/√V, w ← w − ηλw − η·u/max(1, RMS(u)/d). Vectors keep V whole.

From transformers. The paper sets the learning rate itself and scales it by RMS(w); here it is `train.learning_rate`
with its schedule, about as large as adamw's, and the scaling is off: weights that start at zero, as LoRA's do, would
hardly move.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pefttools.optimizers.base import Group, Optimizer, Rate

if TYPE_CHECKING:
    import torch


class Adafactor(Optimizer):
    """Clipping, averages and the scaling by the weights."""

    variants: ClassVar[Any] = {"first average": {"beta1": 0.9}}

    clip_threshold: float = Field(default=1.0, gt=0)
    """d: an update whose root mean square is above it is scaled down to it."""
    decay_rate: float = Field(default=-0.8, lt=0)
    """τ: how the average of the squares grows longer with the step t, by β̂ = 1 − t^τ."""
    beta1: Rate | None = None
    """β₁: of the running average of the updates; null keeps none, which saves a whole copy of the weights."""
    eps: tuple[float, float] = (1e-30, 1e-3)
    """ε₁ is added to squared gradients; ε₂ is the least RMS(w) that `scale_parameter` multiplies with."""
    scale_parameter: bool = False
    """Multiply the learning rate of each tensor with RMS(w), as the paper does."""

    def build(self, groups: Sequence[Group], learning_rate: float) -> torch.optim.Optimizer:
        from transformers.optimization import Adafactor as Implementation

        return Implementation(
            groups, lr=learning_rate, eps=self.eps, clip_threshold=self.clip_threshold, decay_rate=self.decay_rate,
            beta1=self.beta1, scale_parameter=self.scale_parameter, relative_step=False, warmup_init=False,
        )  # fmt: skip
