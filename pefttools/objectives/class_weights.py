"""class_weights: multiply the loss of every target by a weight of its class, larger for rare classes.

`by: inverse` gives w_c ∝ 1/n_c, where n_c is the number of training targets of class c. `by: effective_number` gives
w_c ∝ (1 − β)/(1 − β^n_c) (Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of Samples", eq. 3 and 4),
which lies between equal weights (β = 0) and `inverse` (β → 1). Or you list the relative `weights`.

In all cases the weights are scaled so that their mean over the training targets is 1, and with equal counts nothing
changes. (Cui et al. scale them so that the mean over classes is 1.) Therefore the update step still divides by the
number of targets: the loss is a weighted mean over all training rows, although the weights of a single step may have
another mean. Counts are those of the training rows as the model reads them, with rows that augmentations add and
without truncated words. Results depend neither on the size of micro-batches nor on the number of processes. Validation
and test losses are not weighted, and the best checkpoint is still that with the best primary metric.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from pefttools.data.fields import listed
from pefttools.errors import UserError, unknown
from pefttools.objectives.base import BoundObjective, BoundTargetObjective, Context, Objective
from pefttools.tasks.base import IGNORED, LABELS

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

    from pefttools.strategies.base import Strategy
    from pefttools.tasks.base import Task


class ClassWeights(Objective):
    """Settings of class_weights: the rule for the weights, or the weights themselves."""

    shardable: ClassVar[bool] = True
    only_with: ClassVar[Any] = {
        "beta": ("by=effective_number without weights", lambda it: it.by == "effective_number" and not it.weights),
        "by": ("no weights", lambda it: not it.weights),
    }

    by: Literal["inverse", "effective_number"] = "inverse"
    """The rule that computes weights from the numbers of training targets."""
    beta: float = Field(default=0.999, ge=0, lt=1)
    """β of `effective_number`; counts far above 1/(1 − β) are treated as equal."""
    weights: Mapping[str, Annotated[float, Field(gt=0)]] = {}
    """Class -> relative weight, instead of a rule; other classes have 1. All are scaled by a common factor."""

    def problem(self, task: Task, strategy: Strategy) -> str | None:
        del strategy
        if task.has_class_head and task.has_target_logits:
            return None
        if task.has_class_head:
            return f"weights belong to rows with one class, but task={task.name} has several here; remove it"
        return f"task={task.name} has no fixed classes that could have weights; remove it"

    def bind(self, context: Context) -> BoundObjective:
        names: Sequence[str] = context.task.labels  # type: ignore[attr-defined]
        for name in self.weights:
            if name not in names:
                raise UserError(f"objectives.class_weights.weights: {unknown('class', name, names)}")
        if context.encoded is None:
            return _Weighted([1.0] * len(names), context.task)
        counts = class_counts(context.encoded, len(names))
        if unused := [name for name, count in zip(names, counts, strict=True) if name in self.weights and not count]:
            raise UserError(
                f"objectives.class_weights.weights: no training row has {listed(unused)}, so its weight has no effect;"
                " remove it"
            )
        return _Weighted(self.of(counts, names), context.task)

    def of(self, counts: Sequence[int], names: Sequence[str]) -> list[float]:
        """The weight of every class; its mean over the training targets is 1, and it is 0 for classes without any."""
        relative = [self._relative(name, n) if n else 0.0 for name, n in zip(names, counts, strict=True)]
        mean = sum(n * weight for n, weight in zip(counts, relative, strict=True)) / sum(counts)
        return [weight / mean for weight in relative]

    def _relative(self, name: str, count: int) -> float:
        if self.weights:
            return self.weights.get(name, 1.0)
        if self.by == "inverse":
            return 1 / count
        return (1 - self.beta) / -math.expm1(count * math.log(self.beta)) if self.beta else 1.0


def class_counts(rows: Dataset, num_classes: int) -> list[int]:
    """The number of targets of every class in encoded rows; ignored tokens are no targets."""
    import pyarrow

    column = rows.data.column(LABELS).combine_chunks()
    while pyarrow.types.is_list(column.type) or pyarrow.types.is_large_list(column.type):
        column = column.flatten()
    found = {one["values"]: one["counts"] for one in column.value_counts().to_pylist()}
    assert not {*found} - {IGNORED, *range(num_classes)}, "labels are indices of classes"
    return [found.get(i, 0) for i in range(num_classes)]


class _Weighted(BoundTargetObjective):
    def __init__(self, weights: Sequence[float], task: Task) -> None:
        import torch

        super().__init__(task)
        self.weights = torch.tensor(weights, dtype=torch.float32)

    def target_losses(self, logits: Tensor, classes: Tensor) -> Tensor:
        assert self.inner_losses
        self.weights = self.weights.to(logits.device)
        return self.weights[classes] * self.inner_losses(logits, classes)
