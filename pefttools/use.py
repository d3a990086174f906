"""A finished run put to use: scored on other rows, or asked about new ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools import evaluate
from pefttools.answering import Answering, opened, opened_together
from pefttools.data.encoding import columns_of, encode
from pefttools.data.lines import json_object
from pefttools.data.reading import ENDINGS, Raw, stream
from pefttools.data.settings import FileSettings
from pefttools.data.splitting import load_rows, load_splits
from pefttools.errors import UserError
from pefttools.inference import Precision
from pefttools.models import add_tokens, load_tokenizer, locate, prepare_libraries
from pefttools.own_rows import own_rows, warn_of_known
from pefttools.recipe import Recipe
from pefttools.reporter import SILENT, Reporter
from pefttools.run import Run, load

if TYPE_CHECKING:
    from pefttools.data.splitting import Row

CHUNK = 4096
"""Rows that are read, sorted by length and answered together."""


def evaluate_run(path: Path, overrides: Sequence[str] = (), reporter: Reporter = SILENT) -> dict[str, Any]:
    """Metrics of a run's model on the rows it was scored on at its end, or on others that overrides name.

    Without overrides the rows come from the run's folder, and what their file has become is reported. With `data.test`
    every row of that file is scored; with other overrides, the rows that fall to test now (validation where there are
    none).

    Raises:
        UserError: an override of anything but data, or rows with labels the model does not know.
    """
    if strange := [o.partition("=")[0] for o in overrides if not o.startswith("data.")]:
        raise UserError(f"{', '.join(strange)}: evaluating takes overrides of data only; the model is the run's")
    run = Run.open(path)
    task, settings = run.recipe().task, run.recipe(overrides).data
    prepare_libraries()
    if not overrides:
        own = own_rows(run, task, reporter)
        name, rows = own.split, own.rows
    elif settings.test and any(o.startswith("data.test") for o in overrides):
        name, rows = "test", load_rows("test", settings, task, Counter(), reporter)
    else:
        splits = load_splits(settings, task, reporter)
        name = "test" if splits.test else "validation"
        rows = splits.named()[name]
    task.refuse_strange(f"data.{name}", rows)
    if overrides:
        warn_of_known(run, rows, task, reporter)
    trained = load(path, reporter)
    encoded = encode(rows, task, trained.base, name, reporter)
    tokenizer = trained.base.tokenizer
    scored = evaluate.score(trained.model, task, encoded, rows, tokenizer, name, reporter=reporter, generate=True)
    return {"rows": len(rows), "scored_on": name, **scored.metrics}


def sample(recipe: Recipe, number: int, reporter: Reporter = SILENT) -> Iterator[str]:
    """The first training rows as the model will see them: text with special tokens, and what is to be learnt.

    Raises:
        UserError: the data or the tokenizer cannot be had, or the data cannot serve the task.
    """
    prepare_libraries()
    splits = load_splits(recipe.data, recipe.task, reporter)
    task = recipe.task.fit(splits)
    folder, _ = locate(recipe.base, reporter)
    tokenizer = load_tokenizer(folder, recipe.base.source)
    add_tokens(tokenizer, task.new_tokens)
    for remark in task.remarks(splits, tokenizer):
        reporter.warn(remark)
    columns = columns_of(splits.train[:number], task, tokenizer, training=True)
    for i in range(min(number, len(columns["input_ids"]))):
        yield task.shown({name: values[i] for name, values in columns.items()}, tokenizer)


def rows_to_predict(recipe: Recipe, file: str | None, texts: Sequence[str], stdin: Iterable[str]) -> Iterable[Raw]:
    """Rows from `--text`, a data file, or JSON lines on standard input (`-`).

    A file is read like the run's training rows, unless its ending names a format of its own.

    Raises:
        UserError: nothing was given, or it cannot be read.
    """
    if not texts and file is None:
        raise UserError("predict: takes a file, - for standard input, or --text")
    rows: Iterable[Raw] = ({"text": text} for text in texts)
    if file in ("-", "/dev/stdin"):
        return chain(rows, _json_lines(stdin))
    if file is None:
        return rows
    values = dict(recipe.data.train) | {"source": file, "sha256": None, "last_rows": None, "beside": {}}
    if Path(file).suffix.lower() in ENDINGS:
        values |= {"format": "auto", "pattern": None}
    found: Iterator[Any] = stream(FileSettings.model_validate(values), "predict", SILENT)
    return chain(rows, [next(found)], found)  # the first at once: a file that cannot be read is told before all else


def _json_lines(stream: Iterable[str]) -> Iterator[Raw]:
    for number, line in enumerate(stream, 1):
        if line.strip():
            yield json_object(line, f"standard input line {number}")


def predict_rows(
    path: Path, raws: Iterable[Raw], reporter: Reporter = SILENT, precision: Precision = "auto"
) -> Iterator[dict[str, Any]]:
    """One answer a row, in order: the row's fields and the prediction's.

    Columns are called as in the recipe (`data.columns`) or like the task's fields. Labels are not needed. No more than
    `CHUNK` rows are held at a time.

    Args:
        precision: what to compute in; `auto` is bf16 where that is native, and fp32 is what `evaluate` says.
    """
    prepare_libraries()
    answering = opened(path, precision, reporter)
    questions = _questions(raws, answering)
    while chunk := list(islice(questions, CHUNK)):
        for row, prediction in zip(chunk, answering.answers(chunk, reporter), strict=True):
            yield {**row, **prediction}


def predict_together(
    paths: Sequence[Path], raws: Iterable[Raw], reporter: Reporter = SILENT, precision: Precision = "auto"
) -> Iterator[dict[str, Any]]:
    """Several runs' answers to every row, under `answers` by the runs' names, in one pass over the rows.

    The runs stand on one base, which is in memory once, their adapters beside it and not merged.

    Raises:
        UserError: they stand on different bases.
    """
    prepare_libraries()
    together = opened_together(paths, precision, reporter)
    rows = iter(raws)
    number = 0
    while chunk := list(islice(rows, CHUNK)):
        asked = [list(_questions(chunk, one, number)) for one in together]
        said = [one.answers(questions, reporter) for one, questions in zip(together, asked, strict=True)]
        number += len(chunk)
        for row, *answers in zip(asked[0], *said, strict=True):
            yield {**row, "answers": {one.name: answer for one, answer in zip(together, answers, strict=True)}}


def _questions(raws: Iterable[Raw], answering: Answering, before: int = 0) -> Iterator[Row]:
    """The rows, the first of them behind `before` others, as the task reads them. Raises UserError at one it cannot."""
    task, columns = answering.task, answering.recipe.data.columns
    asked = [(field, columns.get(field, field)) for field in task.fields if field not in task.targets]
    for number, raw in enumerate(raws, before + 1):
        values = {field: raw.get(column, raw.get(field)) for field, column in asked}
        try:
            yield task.question({f: v for f, v in values.items() if v is not None or task.fields[f]})
        except ValueError as error:
            raise UserError(f"predict: row {number} {error}") from error
