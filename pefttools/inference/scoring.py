"""Scoring a finished run on other rows, and showing training rows as the model sees them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pefttools.bases.loading import prepare_libraries
from pefttools.data import overview
from pefttools.data.encoding import columns_of, encode
from pefttools.data.splitting import load_rows, load_splits
from pefttools.errors import UserError
from pefttools.recipe.recipe import Recipe
from pefttools.reporter import SILENT, Reporter
from pefttools.training import class_order
from pefttools.training.evaluation import Evaluator
from pefttools.training.own_rows import own_rows, unchanged_rows, warn_of_known
from pefttools.training.run import Run, load


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
    if strange := [o.partition("=")[0] for o in overrides if not o.startswith("data.")]:
        raise UserError(f"{', '.join(strange)}: evaluate accepts overrides of data only, because the model is trained")
    run = Run.open(path)
    task, settings = run.recipe().task, run.recipe(overrides).data
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
    trained = load(path, reporter)
    encoded = encode(rows, task, trained.base, name, reporter)
    evaluator = Evaluator(trained.model, task, trained.base.tokenizer, reporter=reporter)
    scored = evaluator.score(encoded, rows, name, generate=True)
    return {"rows": len(rows), "scored_on": name, **scored.metrics}


def sample(recipe: Recipe, number: int, reporter: Reporter = SILENT) -> Iterator[str]:
    """The first training rows as the model will see them: the text with special tokens, and the targets.

    Raises:
        UserError: the data or the tokenizer cannot be loaded, or the data does not fit the task.
    """
    prepare_libraries()
    splits = load_splits(recipe.data, recipe.task, reporter)
    task = class_order.fitted(recipe.task, recipe.base, splits, reporter)
    tokenizer = task.load(recipe.base, reporter, empty=True).tokenizer
    for remark in task.remarks(splits, tokenizer):
        reporter.warn(remark)
    columns = columns_of(splits.train[:number], task, tokenizer, training=True)
    for i in range(min(number, len(columns["input_ids"]))):
        yield task.shown({name: values[i] for name, values in columns.items()}, tokenizer)
