"""distillation: (1 − α) · the task's loss + α · T² · KL(teacher ‖ student), both softened by T (Hinton et al. 2015).

The teacher's logits for the training rows are computed once and cached on disk, so a step costs the same as without a
teacher. T² keeps the gradient's size independent of T. For language models, the sum is over the answer's tokens, and
the teacher's distribution is that of its `top` most likely tokens, normalised. The student may be smaller:
`base.layers`. For the intermediate layers see `layer_matching`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from pefttools.objectives import _soft_labels, _teacher
from pefttools.objectives.base import NUMBER, Batch, BoundObjective, Context, Forward, Objective
from pefttools.sources import absolute

if TYPE_CHECKING:
    from torch import Tensor

    from pefttools.strategies.base import Strategy
    from pefttools.tasks.base import Task


class Distillation(Objective):
    """Settings of distillation: the teacher and how much its soft labels count."""

    reads_numbers: ClassVar[bool] = True
    sample_settings: ClassVar[Mapping[str, Any]] = {"teacher": "a run"}

    teacher: str
    """A finished run, an exported folder, or `hf:NAME` or `pypi:NAME==VERSION/PATH` of a model with the task's head."""
    temperature: float = Field(default=2.0, gt=0)
    """T, the divisor of both models' logits; 2 to 8 are usual."""
    alpha: float = Field(default=0.5, gt=0, le=1)
    """α, the share of the soft labels; with 1 the rows' own labels have no effect."""
    top: int = Field(default=64, ge=1)
    """Number of the teacher's logits that are kept for each target of a language model."""

    @field_validator("teacher")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return absolute(value)

    def problem(self, task: Task, strategy: Strategy) -> str | None:
        del strategy
        if not task.has_target_logits:
            return f"task={task.name} has no targets that are one of several classes, so there are no soft labels"
        if task.draws_inputs:
            return (
                f"task={task.name} draws or packs the inputs of every step, so the teacher's outputs cannot be cached"
            )
        return None

    def bind(self, context: Context) -> BoundObjective:
        if context.encoded is None:
            return _Distilled(self, context.task)
        key = f"objectives.{self.name}.teacher"
        teacher = _teacher.load_teacher(self.teacher, context, key)
        soft = _soft_labels.soft_labels(teacher, context, self.top, key)
        return _Distilled(self, context.task, soft, teacher.key)


class _Distilled(BoundObjective):
    def __init__(
        self, settings: Distillation, task: Task, soft: _soft_labels.SoftLabels | None = None, key: str = ""
    ) -> None:
        self.settings, self.task, self.key = settings, task, key
        self.soft = soft
        """None while memory is planned; then the student's logits stand for the teacher's."""

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        outputs: list[Any] = []

        def recording_forward(batch: Batch, embeddings: Tensor | None = None) -> Any:
            outputs.append(forward(batch, embeddings))
            return outputs[-1]

        plain = self.inner(recording_forward, batch)
        logits = self.task.target_logits(outputs[-1], batch)
        values, chosen = self.soft.of(batch[NUMBER]) if self.soft else (logits.detach(), None)
        soft = soft_loss(logits, values, chosen, self.settings.temperature)
        return (1 - self.settings.alpha) * plain + self.settings.alpha * soft

    def state(self) -> dict[str, Any]:
        return {"teacher": self.key}

    def load_state(self, state: Mapping[str, Any]) -> None:
        _teacher.refuse_another(self.settings.name, self.key, state)


def soft_loss(logits: Tensor, teacher: Tensor, chosen: Tensor | None, temperature: float) -> Tensor:
    """T² · KL(teacher ‖ student), summed over targets, shape ().

    Args:
        logits: the student's, (targets, classes); −inf for classes that do not exist.
        teacher: the teacher's logits, (targets, classes), or of the classes `chosen`.
        chosen: the classes of the teacher's logits, of their shape; None for all.
    """
    log_student = (logits / temperature).log_softmax(-1)
    log_teacher = (teacher / temperature).log_softmax(-1)
    if chosen is not None:
        log_student = log_student.gather(1, chosen)
    log_teacher = log_teacher[:, : log_student.shape[1]]  # other rows may have more choices
    exists = log_teacher.isfinite() & log_student.isfinite()
    difference = (log_teacher - log_student).masked_fill(~exists, 0.0)
    return temperature**2 * (log_teacher.exp() * difference).sum()
