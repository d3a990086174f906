"""Scoring a finished run on other rows, and showing training rows as the model sees them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools.augmentations.base import copies
from pefttools.bases.loading import prepare_libraries
from pefttools.data import overview
from pefttools.data.encoding import columns_of, encode
from pefttools.data.splitting import load_rows, load_splits
from pefttools.errors import UserError
from pefttools.recipe import needed_packages
from pefttools.recipe.recipe import Recipe
from pefttools.reporter import SILENT, Reporter
from pefttools.training import class_order, earlier
from pefttools.training.evaluation import Evaluator
from pefttools.training.own_rows import own_rows, unchanged_rows, warn_of_known
from pefttools.training.run import Run, load

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pefttools.data.rows import Row
    from pefttools.tasks.base import Prediction, Task


def evaluate_run(
    path: Path, overrides: Sequence[str] = (), reporter: Reporter = SILENT, split: str | None = None
) -> dict[str, Any]:
    """Metrics of a run's model on the rows that it was scored on at its end, or on other rows named by overrides.

    Without overrides the rows come from the run's folder; a warning reports changes in their file. With `data.test`
    every row of that file is scored; with other overrides, the rows of the test split that these give, or of the
    validation split if there are no test rows.

    Args:
        split: the split of the run's own data to score, where it is not the one that was scored at its end.

    Returns:
        The metrics, `rows` (their number) and `scored_on` (the split).

    Raises:
        UserError: an override is not one of data, rows have labels that the model does not know, or the data of the
            wanted split has changed.
    """
    found = score_rows(path, *rows_to_score(path, overrides, reporter, split), reporter)
    return {"rows": len(found.rows), "scored_on": found.split, **found.metrics}


@dataclass(frozen=True)
class ScoredSplit:
    """Rows of a split with a run's predictions on them."""

    task: Task
    split: str
    rows: Sequence[Row]
    predictions: Sequence[Prediction]
    metrics: Mapping[str, Any]
    """The task's metrics, and `loss`."""


def score_rows(path: Path, name: str, rows: Sequence[Row], reporter: Reporter = SILENT) -> ScoredSplit:
    """The predictions of a run's model on rows of the split `name`, from `rows_to_score`, and their metrics."""
    trained = load(path, reporter)
    encoded = encode(rows, trained.task, trained.base, name, reporter)
    evaluator = Evaluator(trained.model, trained.task, trained.base.tokenizer, reporter=reporter)
    scored = evaluator.score(encoded, rows, name, generate=True)
    return ScoredSplit(trained.task, name, rows, scored.predictions, scored.metrics)


def rows_to_score(
    path: Path, overrides: Sequence[str] = (), reporter: Reporter = SILENT, split: str | None = None
) -> tuple[str, Sequence[Row]]:
    """The split and the rows that `evaluate_run` scores. Raises UserError like it."""
    if strange := [o.partition("=")[0] for o in overrides if not o.startswith("data.")]:
        raise UserError(f"{', '.join(strange)}: evaluate accepts overrides of data only, because the model is trained")
    run = Run.open(path)
    task, settings = run.recipe().task, run.recipe(overrides).data
    needed_packages.refuse_unscored(task)
    prepare_libraries()
    if split and not overrides:
        name, rows = split, unchanged_rows(run, split, task, reporter)
    elif not overrides:
        own = own_rows(run, task, reporter)
        name, rows = own.split, own.rows
    elif settings.test and any(o.startswith("data.test") for o in overrides):
        name, rows = "test", load_rows("test", settings, task, Counter(), reporter)
    else:
        splits = load_splits(settings, task, reporter)
        name = "test" if splits.test else "validation"
        rows = splits.named()[name]
    task.check_scorable(f"data.{name}", rows)
    if overrides:
        warn_of_known(run, rows, task, reporter)
        for remark in overview.absent(name, rows, task.class_names):
            reporter.warn(remark)
    return name, rows


@dataclass(frozen=True)
class Sampled:
    """A training row as the model will see it."""

    text: str
    """The text with special tokens, and the targets."""
    augmentation: str | None = None
    """The augmentation that made this copy of the row before it; None for a row of the user's."""


def sample(recipe: Recipe, number: int, reporter: Reporter = SILENT) -> Iterator[Sampled]:
    """The first training rows as the model will see them, each followed by the copies that augmentations add.

    Raises:
        UserError: the data or the tokenizer cannot be loaded, or the data does not fit the task.
    """
    prepare_libraries()
    splits = load_splits(recipe.data, recipe.task, reporter)
    start = earlier.opened(recipe)
    task = class_order.fitted(recipe.task, recipe.base, splits, reporter, start.labels if start else ())
    tokenizer = task.load(recipe.base, reporter, empty=True).tokenizer
    for remark in task.remarks(splits, tokenizer):
        reporter.warn(remark)
    rows = splits.train[:number]
    copies(recipe.augmentations, rows, task, recipe.seed, tokenizer, reporter)  # reports its notes once for all rows
    columns = columns_of(rows, task, tokenizer, training=True)
    places = columns["row"][:number]
    for i, place in enumerate(places):
        yield Sampled(task.shown({name: values[i] for name, values in columns.items()}, tokenizer))
        if place in places[i + 1 :]:
            continue  # a further window of the same row
        for name, added in copies(recipe.augmentations, [rows[place]], task, recipe.seed, tokenizer).items():
            for text in _shown(added, task, tokenizer):
                yield Sampled(text, name)


def sample_values(rows: Sequence[Sampled]) -> dict[str, Any]:
    """The content of `show --sample --json`: `sample`, and, if there are copies, `augmented`, a list for each row."""
    own = [row.text for row in rows if row.augmentation is None]
    lists: list[list[dict[str, str]]] = []
    for row in rows:
        if row.augmentation is None:
            lists.append([])
        else:
            lists[-1].append({"augmentation": row.augmentation, "text": row.text})
    return {"sample": own, **({"augmented": lists} if any(lists) else {})}


def _shown(rows: Sequence[Row], task: Task, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Training rows as the model will see them."""
    columns = columns_of(rows, task, tokenizer, training=True) if rows else {"input_ids": []}
    for i in range(len(columns["input_ids"])):
        yield task.shown({name: values[i] for name, values in columns.items()}, tokenizer)
