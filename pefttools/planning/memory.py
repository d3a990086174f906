"""The peak memory of a run by part, estimated by running steps and evaluations on tensors without data.

torch's FakeTensorMode computes shapes only, and every allocation and release of a storage is counted. torch's own
`MemTracker` does the same, but adds hooks to all parameters and fails on frozen ones.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._pytree import tree_leaves

from pefttools.data.batching import step_multiple
from pefttools.device import Precision, half_type
from pefttools.nn import divergence
from pefttools.nn.first_token import LastBlock, last_block
from pefttools.nn.frozen import frozen_part
from pefttools.nn.input_embeddings import substituted
from pefttools.objectives._composition import Composed, composed, need_plain_autograd, read_hidden_states
from pefttools.objectives.base import Batch as Tensors
from pefttools.objectives.base import Context, Forward, Loss
from pefttools.planning.heap import Event, heap_peak_bytes
from pefttools.planning.storages import StorageTracker, without_data
from pefttools.planning.target import Target
from pefttools.recipe.recipe import Recipe
from pefttools.strategies.base import trained
from pefttools.tasks.base import LABELS
from pefttools.training import optimizer_setup, speedups
from pefttools.training.earlier import run_before
from pefttools.training.penalties import Penalties
from pefttools.training.process import forward
from pefttools.training.step import MicroBatch, Update

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from pefttools.bases.loading import Base
    from pefttools.nn.output_layer import OutputLayer
    from pefttools.tasks.base import Task

FEW = 2
"""Upper limit of simulated micro-batches in a step; from the second one on, gradients already exist."""
SHORT = 8
"""Number of tokens of the row with which the frozen part is found."""


@dataclass(frozen=True)
class Batch:
    """The size of a batch."""

    rows: int
    length: int
    """Number of tokens of a padded row."""
    count: int = 1
    """Number of such batches in a step."""


def largest(max_rows: int, max_tokens: int, longest: int, multiple: int, total: int) -> Batch:
    """The batch with most tokens for rows of up to `longest` tokens; of equal ones, that with the longest rows."""
    lengths = range(multiple, -(-longest // multiple) * multiple + 1, multiple)
    rows = {length: max(1, min(total, max_rows, max_tokens // length)) for length in lengths}
    length = max(lengths, key=lambda length: (rows[length] * length, length))
    return Batch(rows[length], length, -(-total // rows[length]))


def peak_by_part(
    recipe: Recipe,
    base: Base,
    model: nn.Module,
    row: Mapping[str, Any],
    step: Batch,
    evaluation: Batch,
    target: Target,
    rows: Sequence[int] = (),
) -> dict[str, int]:
    """Bytes of `weights`, `gradients`, `optimizer`, `activations`, `features` and `allocator` at the peak of a run.

    Weights, gradients and optimizer state have their full size. `activations` is the rest of the peak; the two overlap,
    because gradients appear while activations disappear. `allocator` is the size of the heap beyond its live tensors.

    Args:
        model: the wrapped model, on any device; its tensors are replaced.
        row: an encoded row, which is stretched to the batches' lengths.
        step: the micro-batch of a step.
        evaluation: the batch of an evaluation.
        target: the device; for one that is not here, shapes are those that a CPU's kernels allocate.
        rows: number of tokens of every row whose features a run would cache.
    """
    gc.disable()  # a collection would delay the release of tensors
    try:
        trace = _trace(recipe, base, model, row, step, evaluation, target, rows)
    finally:
        gc.enable()
    events, own = trace.events, trace.num_weights
    mapped = {number for number, _ in events[:own]}  # the base's weights are mapped from the file, not on the heap
    parts = (events[: trace.second_step], events[trace.second_step :])
    first, again = ([event for event in part if event[0] not in mapped] for part in parts)
    heap = heap_peak_bytes(first, again) if target.type == "cpu" else 0
    whole = {"weights": trace.weights, "gradients": trace.gradients, "optimizer": trace.optimizer}
    peak = max(trace.peak, sum(whole.values()))
    in_file = sum(size for _, size in events[:own])
    return {
        **whole,
        "activations": peak - sum(whole.values()),
        "features": trace.features,
        "allocator": max(0, heap - (peak - in_file)),
    }


@dataclass(frozen=True)
class _Trace:
    """Bytes that two simulated steps and the evaluations around them allocate."""

    weights: int
    gradients: int
    optimizer: int
    features: int
    peak: int
    events: Sequence[Event]
    """Every allocation and release: the tensor's number and its size."""
    num_weights: int
    """Number of events, from the first, that are tensors of the wrapped model."""
    second_step: int
    """Index of the event with which the second step begins."""


def _trace(
    recipe: Recipe, base: Base, model: nn.Module, row: Mapping[str, Any], step: Batch, evaluation: Batch,
    target: Target, rows: Sequence[int],
) -> _Trace:  # fmt: skip
    """Run two training steps between two evaluations on tensors without data."""
    device, precision = target.traced, target.precision(recipe.train.precision)
    optimizer, second_step = None, 0
    with FakeTensorMode(allow_non_fake_inputs=True):
        without_data(model, device)
        few = recipe.task.inputs_of(_batch(recipe, base, row, Batch(1, SHORT), target))
        reads_all = not recipe.strategy.trains or read_hidden_states(recipe.objectives)
        last = None if reads_all else last_block(model, few)
        features = _feature_bytes(recipe, model, few, rows, last, device, precision)
        tensors = (*model.parameters(), *model.buffers())
        num_weights = len({tensor.untyped_storage()._cdata for tensor in tensors})
        with StorageTracker(device) as tracker:
            for tensor in tensors:
                tracker.track(tensor)
            penalties = Penalties.bind(recipe, base, model, earlier=run_before(recipe))
            shapes: Any = _ShapesOnly(recipe.task)
            context, loss = Context(shapes, recipe.strategy, base, model, precision=precision), _loss_of(recipe.task)
            acting = composed(recipe.objectives, context, loss)
            weights = tracker.bytes
            layer = speedups.output_layer_of(recipe, model, few, acting.reads_outputs)
            scored = _batch(recipe, base, row, evaluation, target)
            _evaluate(recipe, model, scored, device, "fp32", layer)
            if recipe.strategy.trains:
                optimizer = optimizer_setup.build(model, recipe.strategy, recipe.train)
                batch = _batch(recipe, base, row, step, target)
                plain, settings = (
                    need_plain_autograd(recipe.objectives),
                    recipe.train.with_values(compile=False, liger=False),
                )
                with speedups.steps(model, settings, target.type, precision, last, plain):
                    for _ in range(2):  # the optimizer's state exists from the second step on
                        second_step = len(tracker.events)
                        count = min(step.count, FEW)
                        _step(recipe, model, optimizer, penalties, acting, batch, count, precision, layer)
                    scored = _batch(recipe, base, row, evaluation, target)
                    _evaluate(recipe, model, scored, device, precision, layer)
        gradients = sum(p.nbytes for p in trained(model).values())
    return _Trace(
        weights, gradients, _state_bytes(optimizer), features, tracker.peak, tracker.events, num_weights, second_step
    )


def _batch(recipe: Recipe, base: Base, row: Mapping[str, Any], size: Batch, target: Target) -> dict[str, Tensor]:
    """A batch of rows of full length, made by repeating the tokens of an encoded row."""
    full = recipe.task.repeat_to_length(row, size.length)
    columns = {name: [value] * size.rows for name, value in full.items()}
    batch = recipe.task.collate(columns, base.tokenizer, step_multiple(recipe.train.pad_multiple, target.type))
    return {name: value.to(target.traced) for name, value in batch.items()}


def _step(
    recipe: Recipe,
    model: nn.Module,
    optimizer: Optimizer,
    penalties: Penalties,
    acting: Composed,
    batch: dict[str, Tensor],
    count: int,
    precision: Precision,
    layer: OutputLayer | None,
) -> None:
    """The update step on tensors without data."""
    device = next(iter(batch.values())).device.type

    def run(batch: Tensors, embeddings: Tensor | None = None) -> Any:
        with substituted(model, batch["input_ids"], embeddings):
            return forward(model, recipe.task.inputs_of(batch), device, precision, layer)

    def norm() -> Tensor:
        return nn.utils.clip_grad_norm_(list(trained(model).values()), recipe.train.max_grad_norm or 1.0)

    model.train()
    for objectives in (acting, Composed(_loss_of(recipe.task))):
        update = Update(objectives, penalties, optimizer, lambda share: share.backward(), norm)
        try:
            update.step(lambda: (MicroBatch(batch, run) for _ in range(count)), 1)
        except DynamicOutputShapeException:  # an objective selects the targets, whose number is unknown
            continue
        return


def _loss_of(task: Task) -> Loss:
    """The task's loss; for a language model over all tokens, because shapes do not show which of them are targets."""

    def loss(forward: Forward, batch: Tensors) -> Tensor:
        outputs = forward(batch)
        try:
            return task.loss(outputs, batch)
        except DynamicOutputShapeException:
            return -task.logits(outputs, batch).float().log_softmax(-1).select(-1, 0).sum()

    return loss


class _ShapesOnly:
    """A task for objectives: where shapes do not show which tokens are targets, all of them are."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def _all_logits(self, outputs: Any, batch: Tensors) -> Tensor:
        return self.task.logits(outputs, batch).flatten(0, -2).float()

    def target_logits(self, outputs: Any, batch: Tensors) -> Tensor:
        try:
            return self.task.target_logits(outputs, batch)
        except DynamicOutputShapeException:
            return self._all_logits(outputs, batch)

    def target_classes(self, batch: Tensors) -> Tensor:
        try:
            return self.task.target_classes(batch)
        except DynamicOutputShapeException:
            return batch[LABELS].flatten()

    def divergence(self, outputs: Any, others: Any, batch: Tensors) -> Tensor:
        try:
            return self.task.divergence(outputs, others, batch)
        except DynamicOutputShapeException:
            return divergence.of_classes(self._all_logits(outputs, batch), self._all_logits(others, batch)).sum()


def _evaluate(
    recipe: Recipe, model: nn.Module, batch: Tensors, device: str, precision: Precision, layer: OutputLayer | None
) -> None:
    """Allocate the memory of `Evaluator.predictions`; that of its logits, where the model leaves out the layer that
    computes them."""
    model.eval()
    with torch.no_grad():
        outputs = forward(model, recipe.task.inputs_of(batch), device, precision, layer)
        if layer:
            recipe.task.loss(outputs, batch)


def _feature_bytes(
    recipe: Recipe,
    model: nn.Module,
    inputs: dict[str, Tensor],
    rows: Sequence[int],
    last: LastBlock | None,
    device: str,
    precision: Precision,
) -> int:
    """Bytes of the features that `feature_cache` keeps in memory for rows with these numbers of tokens."""
    if not rows:
        return 0
    with StorageTracker(device):
        frozen = frozen_part(model, inputs)
        if not frozen.forms:
            return 0
        with torch.no_grad(), torch.autocast(device, half_type(precision), enabled=precision != "fp32"):
            hidden = frozen.forward_to_boundary(model, inputs)
    tokens = len(rows) if last and last.block in frozen.blocks else sum(rows)
    size = tokens * hidden.shape[-1] * hidden.itemsize
    return size if size <= recipe.train.feature_cache_bytes else 0


def _state_bytes(optimizer: Optimizer | None) -> int:
    states: Iterable[Any] = optimizer.state.values() if optimizer else ()
    tensors = [leaf for state in states for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]
    return sum({id(leaf): leaf.nbytes for leaf in tensors}.values())  # 8-bit states share tensors
