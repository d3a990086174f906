"""The interface of every objective.

An objective changes the loss of a batch, or the computation of a step's gradient, or both. Objectives apply in the
order of the recipe: the first one receives the task's own loss, the next one the loss of the first one.
Losses are summed over targets; the update step divides by their number in the whole step, over all processes and
micro-batches.

A `BoundTargetObjective` changes the loss of every target by itself (class weights, focal loss). Several of them share
one forward pass. They come before objectives that run the model several times or change its inputs.

An objective changes a step at one of three levels: the loss of a pass (`loss`), the passes over a micro-batch
(`add_gradients`, in at most one objective of a run), or the passes over the whole step (`run_passes`). Each level uses
all objectives of the level before it, whatever the order in the recipe.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from pefttools.device import Precision
from pefttools.reporter import SILENT, Reporter
from pefttools.settings import Choice

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from pefttools.bases.loading import Base
    from pefttools.data.rows import Row
    from pefttools.strategies.base import Strategy
    from pefttools.tasks.base import Task

Batch: TypeAlias = "Mapping[str, Tensor]"


class Forward(Protocol):
    """One forward pass of the model over a batch in a training step."""

    def __call__(self, batch: Batch, embeddings: Tensor | None = None) -> Any:
        """The model's outputs.

        Args:
            embeddings: replaces the output of the input embedding for `batch["input_ids"]`; shape (rows, tokens,
                width), with its graph. Only for an objective with `reuses_features = False`. If a loss passes
                embeddings to the forward that it was given, others may add to them.
        """
        ...


Loss: TypeAlias = "Callable[[Forward, Batch], Tensor]"
"""(forward, batch) -> the loss summed over the batch's targets, shape ()."""

TargetLosses: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
"""(logits of shape (targets, classes), indices of the right classes) -> the loss of every target, shape (targets,)."""


NUMBER = "number"
"""The entry of a batch with the index of each encoded training row, where an objective `reads_numbers`; (rows,)."""


@dataclass(frozen=True)
class Loaded:
    """A trained model in evaluation mode."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    task: Task
    base: Base
    key: str
    """A hash of its weights."""


class Gradients(Protocol):
    """The gradients of one micro-batch, as a share of the step's."""

    def add(self, loss: Callable[[], Tensor], more: bool = False) -> Tensor:
        """Add the gradients of a loss to `.grad`; returns `share` of it.

        Args:
            loss: runs forward passes, and returns the loss summed over the batch's targets, shape (), with its graph.
            more: whether another loss of this micro-batch will be added; processes exchange gradients after the last.
        """
        ...

    def of(self, loss: Callable[[], Tensor], tensor: Tensor) -> Tensor:
        """The gradient of a loss with respect to one tensor; no `.grad` changes."""
        ...

    def share(self, loss: Tensor) -> Tensor:
        """This micro-batch's share of the step's mean loss, shape (), without graph."""
        ...


@dataclass(frozen=True)
class Context:
    """The run that an objective is bound to: a wrapped model on its device, before its first step."""

    task: Task
    strategy: Strategy
    base: Base
    model: nn.Module
    rows: Sequence[Row] = ()
    """The training rows, with augmented ones."""
    encoded: Dataset | None = None
    """The encoded training rows; None while memory is planned, when there are no weights and no rows."""
    load_run: Callable[[str], Loaded] | None = None
    """Loads a finished run. Raises UserError when there is none."""
    reporter: Reporter = SILENT
    micro_batch_rows: int | None = None
    """The most rows that a forward pass of a step computes together; None in a plan."""
    precision: Precision = "fp32"
    """The number format that passes are computed in."""


class Objective(Choice, ABC):
    """The settings of an objective, which are frozen; the state of a run is in the `BoundObjective`."""

    reuses_features: ClassVar[bool] = True
    """Whether the outputs of frozen blocks may be cached for all steps; False if the objective changes embeddings."""
    needs_plain_autograd: ClassVar[bool] = False
    """Whether layers that write gradients themselves must be disabled, as for `torch.autograd.grad` or second
    derivatives."""
    reads_numbers: ClassVar[bool] = False
    """Whether the loss needs `batch[NUMBER]`."""
    reads_hidden_states: ClassVar[bool] = False
    """Whether the loss reads the blocks' outputs at all tokens, so that no block may compute only those of some."""
    shardable: ClassVar[bool] = False
    """Whether it works on weights that processes share (`train.shard`): a step has one forward and one backward pass of
    the model, and the objective reads no weights."""
    sample_settings: ClassVar[Mapping[str, Any]] = {}
    """Settings for contract tests: those without a default, and ones that suit tiny models."""
    adds_gradients: ClassVar[bool] = False
    """Whether its bound objective overrides `add_gradients`, which only one objective of a run can do."""
    excludes: ClassVar[tuple[str, ...]] = ()
    """Names of objectives that cannot be used in the same run."""

    def problem(self, task: Task, strategy: Strategy) -> str | None:
        """The reason why this objective does not fit the task or the strategy; None if it does."""
        del task, strategy
        return None

    @abstractmethod
    def bind(self, context: Context) -> BoundObjective:
        """The objective of one run.

        Raises:
            UserError: the objective does not work with this model.
        """


class BoundObjective:
    """An objective bound to one run; the base class changes nothing."""

    inner: Loss
    """The loss that this objective changes: the task's, or that of the previous objective."""
    inner_losses: TargetLosses | None = None
    """The losses that `inner` sums; None if it does more than sum one loss per target, such as run several passes."""

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        """The loss summed over the batch's targets, shape ()."""
        return self.inner(forward, batch)

    def add_gradients(self, loss: Loss, forward: Forward, batch: Batch, gradients: Gradients) -> Tensor:
        """Add the gradients of one micro-batch to `.grad`, and return its share of the reported loss, shape ().

        Args:
            loss: the loss of all objectives of the run together.
        """
        return gradients.add(partial(loss, forward, batch))

    def start_step(self) -> None:
        """Called once before the passes of a step, however often `run_passes` repeats them."""

    def abandon_step(self) -> None:
        """Called when a pass of the step ran out of memory, before the step starts anew with smaller micro-batches:
        undo `start_step`, and clear gradients that the objective keeps itself."""

    def run_passes(self, accumulate_gradients: Callable[[], Tensor]) -> Tensor:
        """Leave the gradients of one step in `.grad`, and return the step's loss, shape ().

        Args:
            accumulate_gradients: runs the forward and backward passes of all micro-batches of the step, adds to
                `.grad`, and returns the loss. Each call computes the same rows.
        """
        return accumulate_gradients()

    @property
    def partial_steps(self) -> int:
        """Number of first steps in which the task's own loss does not count, so that its head gets no gradient."""
        return 0

    def updated(self) -> None:
        """Called after the optimizer's step."""

    def state(self) -> dict[str, Any]:
        """The state that a resumed run needs: tensors, numbers and strings."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        del state


class BoundTargetObjective(BoundObjective, ABC):
    """A bound objective that computes the loss of every target from its logits, its class and its inner loss."""

    needs_inner_losses: ClassVar[bool] = True
    """Whether it must come before all objectives that do more than change the loss of every target."""

    def __init__(self, task: Task) -> None:
        self.task = task

    @abstractmethod
    def target_losses(self, logits: Tensor, classes: Tensor) -> Tensor:
        """As in `TargetLosses`."""

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        logits = self.task.target_logits(forward(batch), batch)
        return self.target_losses(logits, self.task.target_classes(batch)).sum()


def cross_entropies(logits: Tensor, classes: Tensor) -> Tensor:
    """The losses that tasks with `target_logits` sum."""
    from torch.nn import functional

    return functional.cross_entropy(logits, classes, reduction="none")
