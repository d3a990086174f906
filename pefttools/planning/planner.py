"""The plan of a recipe, made before weights are loaded: the exact number of parameters, and the peak memory by part.

The model is built on the meta device. Its head is found by the load report and by a few biases that show whether a
module was ever trained, so the counts are exact. Weights are loaded only for strategies whose shapes or initial error
depend on them (ranks by energy).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pefttools import imports
from pefttools.augmentations.base import copies
from pefttools.bases import loading, quantized
from pefttools.bases.parameters import count_parameters
from pefttools.data.splitting import Splits, load_splits
from pefttools.objectives._composition import reuse_features
from pefttools.planning import shares
from pefttools.planning import target as targets
from pefttools.planning.target import Target
from pefttools.reporter import SILENT, Reporter
from pefttools.training import class_order, earlier
from pefttools.training.launch import num_processes

if TYPE_CHECKING:
    from torch import nn

    from pefttools.bases.loading import Base
    from pefttools.planning.memory import Batch
    from pefttools.recipe.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """The parameters and memory of a recipe."""

    recipe: str
    base: str
    task: str
    strategy: str
    params: dict[str, int]
    """`total`, `trainable`, `adapter`, `head`."""
    rows: int
    """Upper limit of rows in a micro-batch."""
    length: int
    """Upper limit of tokens of a padded row."""
    micro_batches: int
    """Upper limit of micro-batches in a step."""
    precision: str
    device: str
    bytes: dict[str, int]
    """`weights`, `gradients`, `optimizer`, `activations`, `features`, `allocator`, `process`, with
    `train.shard` also `gathered`, and `peak`, their sum."""
    facts: dict[str, Any]
    """Facts about the strategy's initialization, such as the reconstruction error of a projection."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Draft:
    """A recipe with its rows and its model without weights, of which plans for devices and settings are made."""

    recipe: Recipe
    """With the classes of the data."""
    base: Base
    model: nn.Module
    splits: Splits
    params: dict[str, int]
    facts: dict[str, Any]
    row: dict[str, Any]
    """An encoded training row."""
    cacheable: Sequence[int]
    """Number of tokens of each row whose features a run may cache in memory."""
    saved: int
    """Bytes that quantising the weights saves."""
    process: int
    """Resident bytes of the process before weights are loaded."""

    def plan(self, target: Target, processes: int, **train: Any) -> Plan:
        """The plan with these settings of `train` changed. Raises UserError where the model cannot do them."""
        from pefttools.planning import memory
        from pefttools.training.trial_step import refusal

        recipe = self.recipe.model_copy(update={"train": self.recipe.train.with_values(**train)})
        shares.refuse_alone(recipe.train, processes)
        precision = target.precision(recipe.train.precision)
        evaluated = max(len(self.splits.validation), len(self.splits.test))
        step, evaluation = _batches(recipe, self.base, evaluated, processes, target.type)
        with refusal(recipe, self.base, precision):
            parts = memory.peak_by_part(
                recipe, self.base, self.model, self.row, step, evaluation, target, self.cacheable
            )
        parts = {**parts, "process": self.process if target.type == "cpu" else 0}
        parts["weights"] -= self.saved
        if recipe.train.shard:
            parts = shares.per_process(parts, self.model, processes)
        return Plan(
            recipe=recipe.name,
            base=self.base.source,
            task=recipe.task.name,
            strategy=recipe.strategy.name,
            params=self.params,
            rows=step.rows,
            length=step.length,
            micro_batches=step.count,
            precision=precision,
            device=target.type,
            bytes={**parts, "peak": sum(parts.values())},
            facts=self.facts,
        )


def plan(
    recipe: Recipe, reporter: Reporter = SILENT, processes: int | None = None, target: Target | None = None
) -> Plan:
    """The plan of a recipe for one process of a launch.

    Args:
        processes: their number; those of this launch if it is None.
        target: the device; this machine's if it is None.

    Raises:
        UserError: something is wrong with the data, the base or the strategy's settings.
    """
    number = processes or num_processes()
    shares.refuse_alone(recipe.train, number)
    return draft(recipe, reporter).plan(target or targets.here(), number)


def draft(recipe: Recipe, reporter: Reporter = SILENT, splits: Splits | None = None) -> Draft:
    """What plans of a recipe are made of.

    Args:
        splits: the rows, where they were read before.

    Raises:
        UserError: something is wrong with the data, the base or the strategy's settings.
    """
    with imports.importing():
        import datasets  # noqa: F401  # `process` includes its memory, as in training

        from pefttools.training import wrapping

    loading.prepare_libraries()
    splits = splits or load_splits(recipe.data, recipe.task, reporter)
    start = earlier.opened(recipe)
    task = class_order.fitted(recipe.task, recipe.base, splits, reporter, start.labels if start else ())
    recipe = recipe.model_copy(update={"task": task})
    strategy = recipe.strategy

    base, model, saved, process = _wrapped(recipe, start, reporter)
    facts = strategy.facts(model)
    if any(value != value for value in facts.values()):  # NaN: the facts depend on the weights
        facts = strategy.facts(strategy.wrap(wrapping.load_base(recipe, reporter)))
    encoded = task.encode_training(splits.train[:1], base.tokenizer)
    return Draft(
        recipe=recipe,
        base=base,
        model=model,
        splits=splits,
        params=count_parameters(model, base.head),
        facts=facts,
        row={name: values[0] for name, values in encoded.items()},
        cacheable=_cacheable_rows(recipe, base, model, splits, reporter),
        saved=saved,
        process=process,
    )


def _wrapped(recipe: Recipe, start: earlier.Earlier | None, reporter: Reporter) -> tuple[Base, nn.Module, int, int]:
    """The base and the wrapped model, without weights if the strategy allows that.

    Returns:
        The base, the model, the bytes that quantizing the weights will save, and the resident bytes of this process
        before any weight is loaded.
    """
    from pefttools.device import resident_bytes
    from pefttools.training import wrapping

    base = wrapping.load_base(recipe, reporter, empty=True)
    packed = recipe.base.quantize  # models on the meta device are not quantised
    saved = quantized.saved_bytes(packed, base.model) if packed else 0
    try:
        model = wrapping.wrap(recipe, base, empty=True, earlier=start)
    except (RuntimeError, NotImplementedError):  # torch raises these where an empty tensor's values are needed
        model = None
    process = resident_bytes()
    if model is not None:
        return base, model, saved, process
    reporter.note(f"loading the weights of {base.source}, because the shapes of {recipe.strategy.name} depend on them")
    base = wrapping.load_base(recipe, reporter)
    return base, wrapping.wrap(recipe, base, earlier=start), 0, process


def _batches(recipe: Recipe, base: Base, num_evaluated: int, processes: int, device: str) -> tuple[Batch, Batch]:
    """The largest micro-batch of a step on one of the processes, and the largest batch of an evaluation of
    `num_evaluated` rows."""
    from pefttools.data.batching import eval_budget, pad_multiple, step_multiple, token_budget
    from pefttools.planning import memory
    from pefttools.training import evaluation

    settings = recipe.train
    longest = recipe.task.longest(base.tokenizer.model_max_length)
    total = -(-settings.batch_size // processes)
    tokens = settings.tokens_at_once(token_budget(device))
    padded = step_multiple(settings.pad_multiple, device)
    step = memory.largest(settings.micro_batch_size, tokens, longest, padded, total)
    return step, memory.largest(evaluation.MAX_ROWS, eval_budget(device), longest, pad_multiple(device), num_evaluated)


def _cacheable_rows(
    recipe: Recipe, base: loading.Base, model: nn.Module, splits: Splits, reporter: Reporter
) -> list[int]:
    """Number of tokens of each row whose features a run may cache in memory; encodes the rows to count them."""
    from pefttools.data.encoding import encode
    from pefttools.nn import module_paths
    from pefttools.training.feature_cache import read_again

    task, settings = recipe.task, recipe.train
    lowest = model.get_submodule(module_paths.blocks(model)[0])
    if not (recipe.strategy.trains and task.fixed_inputs and settings.feature_cache in ("auto", "memory")):
        return []
    if (
        settings.compile
        or not reuse_features(recipe.objectives)
        or any(parameter.requires_grad for parameter in lowest.parameters())
    ):
        return []
    names = sorted(read_again(settings))
    rows = {name: splits.named()[name] for name in names}
    if "train" in rows:
        added = copies(recipe.augmentations, splits.train, task, recipe.seed, base.tokenizer)
        rows["train"] = [*rows["train"], *(row for some in added.values() for row in some)]
    return [
        length
        for name in names
        if rows[name]
        for length in encode(rows[name], task, base, name, reporter, training=name == "train")["length"]
    ]
