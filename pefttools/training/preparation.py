"""Preparation of a run: load and check data, base, strategy and penalties before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pefttools.augmentations.base import copies
from pefttools.bases import loading
from pefttools.checks import cheap
from pefttools.data import overview
from pefttools.data.batching import step_multiple, steps, token_budget
from pefttools.data.encoding import encode
from pefttools.data.splitting import Row, Splits, load_splits
from pefttools.data.spool import join
from pefttools.device import precision_of
from pefttools.metrics import _own
from pefttools.nn.first_token import LastBlock, last_block
from pefttools.nn.frozen import Frozen, frozen_part
from pefttools.nn.output_layer import OutputLayer
from pefttools.objectives._composition import Composed, composed, read_hidden_states, read_numbers
from pefttools.objectives.base import NUMBER, Context
from pefttools.recipe.recipe import Recipe
from pefttools.reporter import SILENT, Reporter
from pefttools.training import class_order, earlier, replay, speedups, wrapping
from pefttools.training.backward_transfer import EarlierTests
from pefttools.training.earlier import Earlier
from pefttools.training.launch import num_processes
from pefttools.training.padding import refuse_padding_readers
from pefttools.training.penalties import Penalties
from pefttools.training.placement import place
from pefttools.training.run import loaded_run
from pefttools.training.trial_step import FirstStep, refusal

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from torch import nn

    from pefttools.recipe.train_settings import TrainSettings
    from pefttools.tasks.base import Task

START_BATCHES = 32
"""Upper limit of batches for strategies that initialize from the data."""


@dataclass(frozen=True)
class Prepared:
    """A recipe with its loaded and checked data and model."""

    recipe: Recipe
    splits: Splits
    """The user's own rows."""
    added: dict[str, list[Row]]
    """Augmentation -> the training rows that it adds."""
    replayed: dict[str, list[Row]]
    """Earlier run -> the rows of it that are trained on again."""
    earlier: Earlier | None
    """The trained model that training goes on from."""
    tests: EarlierTests
    """The test rows of the runs before."""
    encoded: dict[str, Dataset]
    base: loading.Base
    model: nn.Module
    penalties: Penalties
    objectives: Composed
    frozen: Frozen
    last: LastBlock | None
    """The last block, where the head reads only one token of it."""
    layer: OutputLayer | None
    """The output layer, where steps and evaluations compute it for targets only."""


def prepare(recipe: Recipe, reporter: Reporter = SILENT, device: torch.device | str = "cpu") -> Prepared:
    """Load and check everything a run needs. Seeds the random generators, and writes nothing but caches.

    Raises:
        UserError: the data, the base or the strategy's settings cannot work.
    """
    import torch
    from accelerate.utils import set_seed

    _own.refuse_unknown(recipe.task.extra_metrics)
    strategy, start = recipe.strategy, earlier.opened(recipe, reporter)
    recipe = earlier.taken_over(recipe, start)
    splits = load_splits(recipe.data, recipe.task, reporter)
    task = class_order.fitted(recipe.task, recipe.base, splits, reporter, start.labels if start else ())
    recipe = recipe.model_copy(update={"task": task})
    tests = EarlierTests.of(start, task, splits.train, reporter)
    replayed = replay.replayed(recipe, task, splits, reporter)
    set_seed(recipe.seed)
    base = wrapping.load_base(recipe, reporter, earlier=start)
    model = wrapping.wrap(recipe, base, earlier=start)
    remarks = (*overview.remarks(splits), *task.remarks(splits, base.tokenizer))
    for remark in (*remarks, *cheap.findings(recipe, splits, base.tokenizer)):
        reporter.warn(remark)
    added = copies(recipe.augmentations, splits.train, task, recipe.seed, base.tokenizer, reporter)
    more = [row for rows in (*added.values(), *replayed.values()) for row in rows]
    encoded = _encoded(splits, more, task, base, reporter)
    speedups.refuse_impossible(model, recipe.train, torch.device(device).type)
    place(model, recipe.train, torch.device(device))
    lengths = encoded["train"]["length"][:]
    shortest: Any = encoded["train"][[lengths.index(min(lengths))]]
    with refusal(recipe, base, "fp32"):
        refuse_padding_readers(
            base, task, strategy.name, model, shortest, lambda: task.load(recipe.base, SILENT), reporter
        )
    if not (start and start.continues):
        strategy.start(model, _first_batches(recipe, base, encoded["train"], device))
    penalties = Penalties.bind(recipe, base, model, reporter, start.run if start else None)
    if read_numbers(recipe.objectives):
        encoded["train"] = encoded["train"].add_column(NUMBER, list(range(len(encoded["train"]))))
    acting = _bound(
        recipe, base, model, join(splits.train, more), encoded["train"], torch.device(device).type, reporter
    )
    for name, value in strategy.facts(model).items():
        if isinstance(value, float):
            reporter.note(f"{strategy.name}: {name.replace('_', ' ')} {value:.4g} before training")
    for note in (*task.notes(splits), overview.overview(splits)):
        reporter.note(note)
    _report_added(added, splits, reporter)
    frozen, last, layer = _tried(recipe, base, model, acting, encoded, splits, torch.device(device).type)
    return Prepared(
        recipe, splits, added, replayed, start, tests, encoded, base, model, penalties, acting, frozen, last, layer
    )


def _bound(
    recipe: Recipe,
    base: loading.Base,
    model: nn.Module,
    rows: Sequence[Row],
    encoded: Dataset,
    device: str,
    reporter: Reporter,
) -> Composed:
    """The objectives of the run, whose training rows are `rows`. Raises UserError when one does not work with this
    model."""
    together = _micro_batch_rows(recipe.train, device, min(encoded["length"]))
    precision = precision_of(recipe.train.precision)
    context = Context(
        recipe.task, recipe.strategy, base, model, rows, encoded, loaded_run, reporter, together, precision
    )  # fmt: skip
    return composed(recipe.objectives, context)


def _encoded(
    splits: Splits, added: Sequence[Row], task: Task, base: loading.Base, reporter: Reporter
) -> dict[str, Dataset]:
    """The encoded rows of every split that has some; `added` rows follow the training rows."""
    parts = splits.named()
    parts["train"] = join(parts["train"], added)
    return {
        name: encode(rows, task, base, name, reporter, training=name == "train") for name, rows in parts.items() if rows
    }


def _report_added(added: Mapping[str, Sequence[Row]], splits: Splits, reporter: Reporter) -> None:
    """Report the rows that augmentations add; warn of augmentations that add none."""
    for name in (name for name, rows in added.items() if not rows):
        reporter.warn(f"augmentations.{name}: adds no rows, because its settings change no training text")
    if number := sum(map(len, added.values())):
        counts = ", ".join(f"{name} {len(rows)}" for name, rows in added.items())
        reporter.note(f"augmentations added {number} rows to the {len(splits.train)} training rows: {counts}")


def _tried(
    recipe: Recipe,
    base: loading.Base,
    model: nn.Module,
    acting: Composed,
    encoded: Mapping[str, Dataset],
    splits: Splits,
    device: str,
) -> tuple[Frozen, LastBlock | None, OutputLayer | None]:
    """Find the frozen part, the last block of which one token is read and the output layer that can be left out, and
    take a trial step with them.

    Raises:
        UserError: the trial step fails.
    """
    frozen, last, rows = Frozen(), None, encoded["train"]
    with refusal(recipe, base, "fp32"):
        columns: Any = rows[: min(2, len(rows))]
        batch = recipe.task.collate(columns, base.tokenizer, 1)  # unlike collate_training, draws no random numbers
        few = {name: value.to(device) for name, value in recipe.task.inputs_of(batch).items()}
        layer = speedups.output_layer_of(recipe, model, few, acting.reads_outputs)
        if recipe.strategy.trains:
            frozen = frozen_part(model, few)
            last = None if read_hidden_states(recipe.objectives) else last_block(model, few)
    scored = splits.test or splits.validation
    number = recipe.task.num_generated(len(scored)) if recipe.task.generates else 0
    step = FirstStep(recipe, base, model, acting, rows, encoded["validation"], device, frozen, last, layer)
    step.take(scored[:number])
    return frozen, last, layer


def _micro_batch_rows(settings: TrainSettings, device: str, shortest: int) -> int:
    """The most rows that can be in a micro-batch.

    Args:
        shortest: number of tokens of the shortest training row.
    """
    share = -(-settings.batch_size // num_processes())
    budget = settings.tokens_at_once(token_budget(device))
    return max(1, min(share, settings.micro_batch_size, budget // max(1, shortest)))


def _first_batches(
    recipe: Recipe, base: loading.Base, rows: Dataset, device: torch.device | str
) -> Iterator[Mapping[str, Any]]:
    """Training batches for a strategy that initializes from the data."""
    import torch

    lengths, multiple = rows["length"][:], step_multiple(recipe.train.pad_multiple, torch.device(device).type)
    for indices in steps(lengths, recipe.train.batch_size, recipe.seed, 0)[:START_BATCHES]:
        columns: Any = rows[indices]
        batch = recipe.task.collate_training(columns, base.tokenizer, multiple)
        yield {name: value.to(device) for name, value in recipe.task.inputs_of(batch).items()}
