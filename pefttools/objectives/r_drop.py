"""r_drop: two passes with different dropout whose predictions should agree (Liang, Wu et al. 2021).

The loss is the mean of the two passes' losses, plus (α/2) · (KL(p₁‖p₂) + KL(p₂‖p₁)) for every target: every row, or
every token that is a target. This is the loss of the authors' code; eq. 4 of the paper adds the two losses instead of
averaging them, so its α counts half as much. For several labels per row p is the probability of each label; for
answers in a context it is the mean over start and end; for numbers the second term is α · (ŷ₁ − ŷ₂)² in the unit of
the loss, which is the same divergence for a normal distribution.

A step takes twice the time and memory. Frozen lower blocks use no dropout, so their outputs may be cached: both passes
take the same ones. Dropout masks come from torch's random generator, so a resumed run draws the same ones; another size
of micro-batches or number of processes draws different ones, as in training without r_drop. Put objectives that change
the loss of targets (class_weights, focal, label_smoothing) before it; their loss is that of each pass, and they do not
change the second term.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from pefttools.errors import UserError
from pefttools.objectives.base import Batch, BoundObjective, Context, Forward, Objective

if TYPE_CHECKING:
    from torch import Tensor

    from pefttools.strategies.base import Strategy
    from pefttools.tasks.base import Task

TRIES = 20
"""Further passes until one must differ from the first; a small dropout rarely changes the outputs of short rows."""


class RDrop(Objective):
    """Settings of r_drop: the weight of the divergence."""

    alpha: float = Field(default=1.0, ge=0)
    """α; the paper uses 0.1, 0.5 or 1 for understanding tasks, 0.7 for summaries and 5 for translation."""

    def problem(self, task: Task, strategy: Strategy) -> str | None:
        del strategy
        if task.has_divergence:
            return None
        return f"task={task.name} defines no divergence of two predictions; remove it"

    def bind(self, context: Context) -> BoundObjective:
        return _TwoPasses(self.alpha, context)


class _TwoPasses(BoundObjective):
    def __init__(self, alpha: float, context: Context) -> None:
        self.alpha, self.task, self.model, self.source = alpha, context.task, context.model, context.base
        self.checked = context.encoded is None
        """Whether two passes are known to differ; a plan cannot check it."""

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        outputs: list[Any] = []

        def recording_forward(batch: Batch, embeddings: Tensor | None = None) -> Any:
            outputs.append(forward(batch, embeddings))
            return outputs[-1]

        first, one = self.inner(recording_forward, batch), outputs[-1]
        second, other = self.inner(recording_forward, batch), outputs[-1]
        if self.model.training and not self.checked:
            self._refuse_identical(recording_forward, batch, outputs)
        mean = (first + second) / 2
        return mean + self.alpha / 2 * self.task.divergence(one, other, batch) if self.alpha else mean

    def _refuse_identical(self, forward: Forward, batch: Batch, outputs: list[Any]) -> None:
        """Raises UserError if passes never differ; called in the trial step, before a run begins.

        Args:
            forward: adds every pass to `outputs`.
        """
        import torch

        first = self.task.logits(outputs[0], batch)
        for _ in range(TRIES):
            if not torch.equal(self.task.logits(outputs[-1], batch), first):
                self.checked = True
                return
            with torch.no_grad():
                self.inner(forward, batch)
        raise UserError(
            "objectives.r_drop: two passes over the same rows are identical, so it would have no effect: the part of"
            f" {self.source.source} that is trained uses no dropout; set base.dropout, for example to 0.1, or remove"
            " r_drop"
        )
