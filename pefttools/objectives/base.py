"""What every objective offers, and how several of them compose.

An objective changes the loss of a batch, or how the gradient of a step is taken, or both. The recipe names them in the
order in which they act: the first one sees the task's own loss, the next one the loss that the first one made of it.
Losses are summed over targets; the update step divides by their number in the whole step, over all processes and
micro-batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from pefttools.settings import Choice

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pefttools.bases.loading import Base
    from pefttools.strategies.base import Strategy
    from pefttools.tasks.base import Task

Batch: TypeAlias = "Mapping[str, Tensor]"


class Forward(Protocol):
    """One pass of the model over a batch, as a training step makes it."""

    def __call__(self, batch: Batch, embeddings: Tensor | None = None) -> Any:
        """The model's outputs.

        Args:
            embeddings: in place of what the input embedding returns for `batch["input_ids"]`: shape (rows, tokens,
                width), with its graph. Only for an objective with `reuses_features = False`.
        """
        ...


Loss: TypeAlias = "Callable[[Forward, Batch], Tensor]"
"""(forward, batch) -> the loss summed over the batch's targets, shape ()."""


@dataclass(frozen=True)
class Context:
    """What an objective is bound to: a wrapped model on its device, before its first step."""

    task: Task
    strategy: Strategy
    base: Base
    model: nn.Module


class Objective(Choice, ABC):
    """Frozen settings; what changes during a run lives in the `BoundObjective`."""

    reuses_features: ClassVar[bool] = True
    """Whether frozen blocks may be computed once for all steps. False where embeddings are changed."""
    needs_plain_autograd: ClassVar[bool] = False
    """Whether shortcuts that write gradients themselves must be off: for `torch.autograd.grad`, and second orders."""
    excludes: ClassVar[tuple[str, ...]] = ()
    """Names of objectives that cannot act in the same run."""

    def problem(self, task: Task, strategy: Strategy) -> str | None:
        """Why this objective does not fit the task or the strategy; None where it does."""
        del task, strategy
        return None

    @abstractmethod
    def bind(self, context: Context) -> BoundObjective:
        """The objective of one run.

        Raises:
            UserError: it cannot act on this model.
        """


class BoundObjective:
    """An objective of one run; by itself it changes nothing."""

    inner: Loss
    """The loss that this one changes: the task's, or that of the objective named before it."""

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        """The loss summed over the batch's targets, shape ()."""
        return self.inner(forward, batch)

    def step(self, gradients: Callable[[], Tensor]) -> Tensor:
        """Let the gradients of one step accumulate; returns the step's loss, shape ().

        Args:
            gradients: runs all passes of the step, adds to the parameters' gradients and returns the loss. Calling it
                again computes the same rows again.
        """
        return gradients()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs; tensors, numbers and texts."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        del state


class Composed:
    """Several bound objectives around the task's own loss. Without any, both methods do what the loop does alone."""

    def __init__(self, task_loss: Loss, bound: Mapping[str, BoundObjective] | None = None) -> None:
        self.bound = dict(bound or {})
        self.loss = task_loss
        """As in `BoundObjective`."""
        for one in self.bound.values():
            one.inner = self.loss
            self.loss = one.loss

    def step(self, gradients: Callable[[], Tensor]) -> Tensor:
        """As in `BoundObjective`."""
        for one in self.bound.values():
            gradients = partial(one.step, gradients)
        return gradients()

    def state(self) -> dict[str, dict[str, Any]]:
        return {name: one.state() for name, one in self.bound.items()}

    def load_state(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        for name, one in self.bound.items():
            one.load_state(state[name])


def loss_of(task: Task) -> Loss:
    """The task's own loss."""
    return lambda forward, batch: task.loss(forward(batch), batch)


def composed(chosen: Mapping[str, Objective], context: Context, task_loss: Loss | None = None) -> Composed:
    """The objectives of a recipe, bound and composed around the task's loss or another one.

    Raises:
        UserError: one of them cannot act on this model.
    """
    bound = {name: one.bind(context) for name, one in chosen.items()}
    return Composed(task_loss or loss_of(context.task), bound)


def misfits(chosen: Mapping[str, Objective], task: Task, strategy: Strategy) -> list[str]:
    """One sentence on every objective that does not fit the task, the strategy or another objective."""
    found = []
    for name, one in chosen.items():
        if not strategy.trains:
            found.append(f"objectives.{name}: strategy={strategy.name} trains nothing, so there is no step to change")
        elif reason := one.problem(task, strategy):
            found.append(f"objectives.{name}: {reason}")
        found += [
            f"objectives.{name}: cannot act together with {other}; take one of the two"
            for other in one.excludes
            if other in chosen and (name not in chosen[other].excludes or name < other)
        ]
    return found


def reuse_features(chosen: Mapping[str, Objective]) -> bool:
    """Whether frozen blocks may be computed once for all steps."""
    return all(one.reuses_features for one in chosen.values())


def need_plain_autograd(chosen: Mapping[str, Objective]) -> bool:
    """Whether shortcuts that write gradients themselves must be off."""
    return any(one.needs_plain_autograd for one in chosen.values())
