"""adafactor: Adam's second average factored into one row and one column per matrix, so its state is very small.

Shazeer and Stern (2018), Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, algorithm 4: for a matrix
R ← β̂R + (1−β̂)·mean_columns(g² + ε₁), C ← β̂C + (1−β̂)·mean_rows(g² + ε₁), V = RCᵀ/mean(R), with β̂ = 1 − t^τ;
u = g/√V, w ← w − ηλw − η·u/max(1, RMS(u)/d). Vectors are not factored. The implementation is transformers'. The paper
computes the learning rate itself and scales it by RMS(w). Here it is `train.learning_rate` with its schedule, about as
large as adamw's, and the scaling is off by default, because weights that start at zero, such as LoRA's, would hardly
change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pefttools.optimizers.base import Group, Optimizer, Rate

if TYPE_CHECKING:
    import torch


class Adafactor(Optimizer):
    """Settings of adafactor: clipping, averages and scaling by the weights."""

    variants: ClassVar[Any] = {"first average": {"beta1": 0.9}}

    clip_threshold: float = Field(default=1.0, gt=0)
    """d: larger root mean squares of an update are scaled down to this value."""
    decay_rate: float = Field(default=-0.8, lt=0)
    """τ: exponent of the average of squares, β̂ = 1 − t^τ at step t."""
    beta1: Rate | None = None
    """β₁ of the running average of the updates; null disables it, which saves the memory of one copy of the weights."""
    eps: tuple[float, float] = (1e-30, 1e-3)
    """ε₁ is added to squared gradients; ε₂ is the smallest RMS(w) that `scale_parameter` uses."""
    scale_parameter: bool = False
    """Multiply the learning rate of each tensor by RMS(w), as in the paper."""

    def build(self, groups: Sequence[Group], learning_rate: float) -> torch.optim.Optimizer:
        from transformers.optimization import Adafactor as Implementation

        return Implementation(
            groups, lr=learning_rate, eps=self.eps, clip_threshold=self.clip_threshold, decay_rate=self.decay_rate,
            beta1=self.beta1, scale_parameter=self.scale_parameter, relative_step=False, warmup_init=False,
        )  # fmt: skip
