"""focal: −(1 − p)^γ · log p instead of −log p, so that targets which are predicted well count less (Lin et al. 2017).

p is the probability of the right class (the paper's p_t, section 3.2). The factor multiplies the loss of the
objectives that come before: after class_weights this is the paper's α-balanced form, −α (1 − p)^γ log p, and after
label_smoothing it multiplies the smoothed loss. As in the paper, the gradient flows through the factor. The loss of
well-predicted targets becomes small, so a model may need a higher learning rate. With enough steps the likeliest class
stays the same (Charoenphakdee et al. 2021), so rare classes need class_weights in addition. Results depend neither on
the size of micro-batches nor on the number of processes. Validation and test losses are not focal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pefttools.objectives.base import BoundObjective, BoundTargetObjective, Context, Objective

if TYPE_CHECKING:
    from torch import Tensor

    from pefttools.strategies.base import Strategy
    from pefttools.tasks.base import Task


class Focal(Objective):
    """Settings of focal: the exponent."""

    shardable: ClassVar[bool] = True

    gamma: float = Field(default=2.0, ge=0)
    """γ, the paper's best value is 2; 0 leaves the loss exactly unchanged."""

    def problem(self, task: Task, strategy: Strategy) -> str | None:
        del strategy
        if task.has_target_logits:
            return None
        return f"task={task.name} has no targets that are one of several classes; remove it"

    def bind(self, context: Context) -> BoundObjective:
        return _Focal(self.gamma, context.task) if self.gamma else BoundObjective()


class _Focal(BoundTargetObjective):
    def __init__(self, gamma: float, task: Task) -> None:
        super().__init__(task)
        self.gamma = gamma

    def target_losses(self, logits: Tensor, classes: Tensor) -> Tensor:
        import torch

        assert self.inner_losses
        log_p = logits.log_softmax(-1).gather(-1, classes[:, None])[:, 0]
        # at p = 1 the slope of the power is infinite for γ < 1, and the loss is 0
        wrong = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
        return wrong**self.gamma * self.inner_losses(logits, classes)
