"""label_smoothing: (1 − ε) · cross-entropy + ε · mean over classes of −log p (Szegedy et al. 2016, section 7).

The probability mass ε of a target is spread over all C classes, so the loss of a
target is (1 − ε) · −log p_y + ε/C · Σ −log
p_c; this is what `label_smoothing` of `torch.nn.functional.cross_entropy` computes. Classes that a row does not have
(choices of a question with fewer choices) get no mass. Validation and test losses are not smoothed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pefttools.objectives.base import Batch, BoundObjective, BoundTargetObjective, Context, Forward, Objective

if TYPE_CHECKING:
    from torch import Tensor

    from pefttools.strategies.base import Strategy
    from pefttools.tasks.base import Task


class LabelSmoothing(Objective):
    """Settings of label_smoothing: the mass spread over all classes."""

    shardable: ClassVar[bool] = True

    smoothing: float = Field(default=0.1, ge=0, lt=1)
    """ε; 0 leaves the loss exactly unchanged."""

    def problem(self, task: Task, strategy: Strategy) -> str | None:
        del strategy
        if task.has_target_logits:
            return None
        return f"task={task.name} has no targets that are one of several classes, so labels cannot be smoothed"

    def bind(self, context: Context) -> BoundObjective:
        return _Smoothed(self.smoothing, context.task) if self.smoothing else BoundObjective()


class _Smoothed(BoundTargetObjective):
    needs_inner_losses: ClassVar[bool] = False

    def __init__(self, smoothing: float, task: Task) -> None:
        super().__init__(task)
        self.smoothing = smoothing

    def target_losses(self, logits: Tensor, classes: Tensor) -> Tensor:
        assert self.inner_losses
        return (1 - self.smoothing) * self.inner_losses(logits, classes) + self.smoothing * _uniform(logits)

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        outputs: list[Any] = []

        def recording_forward(batch: Batch, embeddings: Tensor | None = None) -> Any:
            outputs.append(forward(batch, embeddings))
            return outputs[-1]

        plain = self.inner(recording_forward, batch)
        uniform = _uniform(self.task.target_logits(outputs[-1], batch)).sum()
        return (1 - self.smoothing) * plain + self.smoothing * uniform


def _uniform(logits: Tensor) -> Tensor:
    """The mean over a target's classes of −log p; shape (targets,)."""
    import torch

    exists = torch.isfinite(logits)
    log_p = logits.log_softmax(-1).masked_fill(~exists, 0.0)
    return -(log_p.sum(-1) / exists.sum(-1))
